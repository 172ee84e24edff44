"""Every `javisc …` that a document shows is one that the command's own parser takes; every option it names exists."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import click
import pytest

from javisc.cli import cli
from support.documents import DOCUMENTS, ROOT, blocks, mentions, options, split
from support.options import leaves, names_of

ALL = [(document, *mention) for document in DOCUMENTS if (ROOT / document).exists() for mention in mentions(document)]
#: Options of other programs that our documents name.
FOREIGN = {
    "--nproc-per-node", "--nnodes", "--max-restarts", "--rdzv-backend", "--rdzv-id", "--rdzv-endpoint", "--array", "--signal",
    "--nodes", "--rdzv-conf", "--run-path", "--local-addr", "--help", "--debug", "--time", "--requeue",
}  # fmt: skip


def parsed(words: list[str]) -> None:
    """Parse a line as `javisc` does, and run nothing. A line of nothing but commands' names may lack what they need."""
    group: click.Command = cli
    context = click.Context(cli, info_name="javisc")
    names = []
    while isinstance(group, click.Group) and words and not words[0].startswith("-"):
        found = group.get_command(context, words[0])
        assert found is not None, f"no command {words[0]!r}"
        group = found
        names.append(words[0])
        words = words[1:]
    if not words:
        return
    assert not isinstance(group, click.Group) or words[0].startswith("-"), words
    if len(words) == 1 and words[0] in {name for name, _ in names_of(group)}:
        return  # `javisc export --csv` in running text names an option
    with suppress(click.exceptions.Exit):  # --help and its like
        group.make_context(" ".join(names), list(words), parent=context)


def test_documents_show_commands() -> None:
    assert len(ALL) > 60 and {document for document, _, _ in ALL} >= {"README.md", "docs/train.md", "docs/tables.md"}


@pytest.mark.parametrize(("document", "line", "words"), ALL, ids=[f"{d}:{n}" for d, n, _ in ALL])
def test_a_documents_command_is_parsed(document: str, line: int, words: str) -> None:
    if words.split()[0].isupper():
        return  # `javisc COMMAND --help`
    try:
        parsed(split(words))
    except click.ClickException as error:
        pytest.fail(f"{document}:{line}: javisc {words}: {error.format_message()}")


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if (ROOT / document).exists()])
def test_options_in_running_text_exist(document: str) -> None:
    known = {name for _, command in leaves() for name, _ in names_of(command)} | FOREIGN
    known |= {
        name
        for script in [*Path(ROOT, "benchmarks").glob("*.py"), Path(ROOT, "kernels/aot.py")]
        for name in re.findall(r'"(--[\w-]+)"', script.read_text())
    }
    unknown = [f"{document}:{line}: {name}" for line, name in options(document) if name not in known]
    assert not unknown, unknown


@pytest.mark.parametrize(("document", "line", "words"), [row for row in ALL if row[2].startswith("train ")])
def test_a_documents_recipe_and_its_keys_exist(document: str, line: int, words: str) -> None:
    from javisc.trainer.tasks.registry import recipe_of

    given = split(words)[1:]
    if not given or not given[0][0].islower():
        return  # `javisc train RECIPE --dry-run`
    changes = [word for word in given[1:] if "=" in word and not word.startswith("-")]
    recipe_of(given[0], changes)


def test_what_make_is_told_in_documents_is_there() -> None:
    """Every `make TARGET NAME=VALUE` of a block: the target and its variables are the Makefile's, files and tests exist."""
    makefile = (ROOT / "Makefile").read_text()
    lines = [
        command
        for document in DOCUMENTS
        if (ROOT / document).exists()
        for block in blocks(document)
        if block.language in ("", "sh", "bash")
        for _, command in block.commands()
        if command.startswith("make ")
    ]
    assert len(lines) >= 4
    for line in lines:
        _, target, *settings = split(line)
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
        for setting in settings:
            name, _, value = setting.partition("=")
            assert f"$({name})" in makefile, line
            paths = [word for word in value.split() if "/" in word]
            assert all((ROOT / path).exists() for path in paths), line

"""The documents' commands and snippets, run in order as they stand on small films, and what came out is looked at.

A line of a shell block is run by bash with the real `javisc`, in a folder that holds RAW and captions.csv; what takes minutes
of training, or machines that are not here, is named in `LEFT` and parsed only (test_parsed.py). A line that has no row in
`LOOKS` (tests/support/looks.py) fails.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import films, looks, selector
from support.documents import Block, blocks
from support.looks import LOOKS, SNIPPETS, shell, table
from support.raw import write_clip
from support.sane import sane

RUN = ("README.md", "docs/compile.md", "docs/cluster.md", "docs/dataset.md", "docs/tables.md")
#: Lines that are not run, and why.
LEFT = {
    r"^make (demo|test)": "the whole demonstration, the whole suite",
    r"^DS/": "a list of files, compared below",
}
#: Lines that need larger pictures: run in the folder `large`, where RAW has two films of them.
LARGE = re.compile(r"javisc (build .* --renditions|render )")
#: Lines of one worker: each takes seconds to import torch.
ALONE = ("javisc score",)
#: The chains that train or need many machines: tests/trainer runs them in small.
PARSED = ("docs/testing.md", "docs/train.md", "docs/sync.md", "docs/javisdit.md", "docs/load.md", "docs/parallel.md")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's folder: RAW, captions.csv, a second small dataset, and a trained selector where the documents have one."""
    root = tmp_path_factory.mktemp("reader")
    films.write(root)
    (root / "newer.csv").write_text("id,caption,mood\nsea,the sea roars,0.5\nrain,it pours,\nnobody,nothing,\n")
    write_clip(root / "more/bell.mp4", seconds=2.3, size=(96, 64), seed=50)
    write_clip(root / "more/bark.mp4", seconds=2.3, size=(96, 64), seed=51)
    (root / "more/bark.txt").write_text("a Dog barks twice")
    selector.write_best(root / "runs/a/best")
    write_clip(root / "large/RAW/tall.mp4", seconds=films.SECONDS, size=(600, 500), seed=52)
    write_clip(root / "large/RAW/low.mp4", seconds=films.SECONDS, size=(400, 300), seed=53)
    return root


#: What a snippet goes on from, where it continues another.
BEFORE = {"from javisc.compiler import DatasetWriter": "from javisc.manifests import Dataset"}


def snippet(place: Path, block: Block) -> None:
    first = block.text.strip().splitlines()[0]
    assert first in SNIPPETS, (
        f"{block.document}:{block.line}: say in SNIPPETS of {looks.__file__} what this snippet must leave behind"
    )
    before = [other.text for other in blocks(block.document) if other.text.strip().startswith(BEFORE.get(first, "\0"))]
    code = "\n".join([*before, block.text, SNIPPETS[first]])
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{block.document}:{block.line}\n{done.stderr[-3000:]}"


def follow(place: Path, document: str) -> int:
    """Run a document's blocks in order. Returns how many lines and snippets were run."""
    ran = 0
    for block in blocks(document):
        if block.language == "python":
            snippet(place, block)
            ran += 1
        for _, command in block.commands() if block.language in ("", "sh", "bash") else ():
            if any(re.match(pattern, command) for pattern in LEFT):
                continue
            said = LOOKS.get(document, {})
            beginning = next((words for words in said if command.startswith(words)), None)
            assert beginning is not None, (
                f"{document}:{block.line}: say in LOOKS of {looks.__file__} what must come of: {command}"
            )
            where = place / "large" if LARGE.match(command) else place
            said[beginning](where, shell(where, command, alone=beginning in ALONE))
            ran += 1
    return ran


def readme(place: Path) -> None:
    assert follow(place, "README.md") == 4
    listed = next(block.text for block in blocks("README.md") if block.text.startswith("DS/"))
    for name in re.findall(r"DS/[\w./]+", listed):
        assert (place / name).is_file(), f"README lists {name}"
    members = re.search(r"(KEY\.\w+ )+", listed)
    assert members is not None
    key = table(place, "DS")["key"][0]
    tar = subprocess.run(
        ["tar", "tf", place / "DS/shards/000000.tar"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in tar if name.startswith(key)] == members[0].replace("KEY", key).split()


def dataset(place: Path) -> None:
    """Its snippets read the dataset that README's commands made; its one-liner prints the columns."""
    assert follow(place, "docs/dataset.md") == 6
    sane(place / "WRITTEN", split=("train",), media=1)
    text = (Path(__file__).parents[2] / "docs/dataset.md").read_text()
    line = re.search(r'`(python -c ".+")`', text)
    assert line is not None
    looks.look_columns(place, shell(place, line[1]))


def tables(place: Path) -> None:
    shutil.copytree(place / "DS", place / "DS1")
    shell(place, "javisc build jav more --out DS2")
    assert follow(place, "docs/tables.md") == 13


@pytest.mark.slow
def test_a_reader_goes_through_readme_dataset_and_tables(place: Path) -> None:
    """One test, since each document goes on with what the one before has made."""
    readme(place)
    dataset(place)
    tables(place)


def test_compile(tmp_path: Path) -> None:
    films_there = films.write(tmp_path)
    assert follow(tmp_path, "docs/compile.md") == 2
    assert json.loads((films_there.dataset / "dataset.json").read_text())["counts"]["samples"] == 6


@pytest.mark.dist
def test_many_machines(tmp_path: Path) -> None:
    films.write(tmp_path)
    assert follow(tmp_path, "docs/cluster.md") == 6


def test_every_document_is_run_or_named() -> None:
    docs = {f"docs/{path.name}" for path in (Path(__file__).parents[2] / "docs").glob("*.md")}
    without = {
        name for name in docs if not any(block.language in ("", "sh", "bash", "python") for block in blocks(name))
    }
    unknown = docs - set(RUN) - set(PARSED) - without
    assert not unknown, f"run {unknown} in {__file__}, or say why it is only parsed"

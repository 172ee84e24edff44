"""Every option of every command arrives in the library: recorders stand in for its functions, and the value is there.

A new option fails here until its row stands in tests/support/options/. That each of them also does something is shown by
the tests that `test_every_option_is_shown.py` counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from support.options import Command, Row, Seen, leaves, names_of, run
from support.options.build import COMMANDS as BUILD
from support.options.tables import COMMANDS as TABLES
from support.options.training import COMMANDS as TRAINING
from support.tables import dataset, rows

HOME = {"build": BUILD, "tables": TABLES, "training": TRAINING}
COMMANDS: dict[str, Command] = {**BUILD, **TABLES, **TRAINING}
ALL = dict(leaves())


def cases() -> Iterator[Any]:
    for words, command in COMMANDS.items():
        for name in command.rows:
            yield pytest.param(words, name, id=f"{words} {name}")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the rows name: a folder, media, tables."""
    folder = tmp_path_factory.mktemp("options")
    (folder / "raw").mkdir()
    for name in ("clip", "other"):
        (folder / f"{name}.mp4").touch()
    (folder / "table.csv").write_text("path,text\n")
    (folder / "prompts.txt").write_text("first line\nsecond line\n")
    (folder / "javisc.yaml").write_text("seed: 12\n")
    return {
        "config": folder / "javisc.yaml",
        "raw": folder / "raw",
        "clip": folder / "clip.mp4",
        "other": folder / "other.mp4",
        "table": folder / "table.csv",
        "prompts": folder / "prompts.txt",
        "ds": dataset(folder / "one", rows(6)),
        "ds2": dataset(folder / "two", rows(6, seed=1)),
    }


def where(words: str) -> str:
    home = next((name for name, table in HOME.items() if words in table), "build, tables or training")
    return f"tests/support/options/{home}.py"


@pytest.mark.parametrize("words", ALL)
def test_the_table_has_every_option(words: str) -> None:
    wanted = dict(names_of(ALL[words]))
    assert words in COMMANDS, f"`javisc {words}` is new: add a Command for it to {where(words)}"
    missing = [name for name in wanted if name not in COMMANDS[words].rows]
    assert not missing, (
        f"`javisc {words}` has {', '.join(missing)}, which no test sees arrive: add a Row to {words!r} in {where(words)}"
    )
    gone = [name for name in COMMANDS[words].rows if name not in wanted]
    assert not gone, f"`javisc {words}` has no {', '.join(gone)} any more: remove the Row from {where(words)}"


def test_the_table_has_no_command_that_is_gone() -> None:
    assert set(COMMANDS) == set(ALL)


def filled(value: Any, places: dict[str, Path]) -> Any:
    if isinstance(value, str):
        return value.format(**places)
    if isinstance(value, Path):
        return Path(str(value).format(**places))
    if isinstance(value, (tuple, list)):
        return type(value)(filled(one, places) for one in value)
    return value


def without(words: str, rivals: tuple[str, ...]) -> str:
    """The line without an option and its value, or without an argument."""
    line: list[str] = []
    skip = False
    for word in words.split():
        if skip:
            skip = False
        elif word in rivals:
            skip = word.startswith("--")
        else:
            line.append(word)
    return " ".join(line)


def variants(row: Row, parameter: click.Parameter) -> list[tuple[str, Any]]:
    """The words to try and what they must become: a choice's every value but the default."""
    if not isinstance(parameter.type, click.Choice) or (row.value is not None and not callable(row.value)):
        return [(row.given, row.value)]
    made = row.value or (lambda choice: choice)
    return [(f"{row.given} {choice}", made(choice)) for choice in parameter.type.choices if choice != parameter.default]


@pytest.mark.parametrize(("words", "name"), list(cases()))
def test_an_option_arrives(
    words: str, name: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, row = COMMANDS[words], COMMANDS[words].rows[name]
    parameter = dict(names_of(ALL[words]))[name]
    # A known corpus of the command's kind: the first that --list-corpora shows.
    places = {**places, "corpus": Path({"build audio": "esc50"}.get(words, "tavgbench"))}
    fresh = iter(range(9))

    def go(line: str) -> Seen:
        places["folder"] = tmp_path / str(next(fresh))
        places["folder"].mkdir()
        return run(command, line, places, monkeypatch)

    # With `alone` the plain line keeps the option's usual value; `more` may bring a rival of its own.
    bare = command.words if not row.more else f"{without(command.words, row.alone)} {row.more}"
    plain = go(bare)
    for given, value in variants(row, parameter):
        seen = go(f"{without(command.words, row.alone)} {row.more} {given}")
        found, before = seen.at(row.where), plain.at(row.where)
        if row.where == "said":
            check = value if callable(value) else str(value).__contains__
            assert not check(before) and check(found), (given, before, found)
            continue
        value = filled(value, places)
        found = list(found) if isinstance(value, list) and found is not None else found
        assert found == value, f"{given}: {row.where} is {found!r}, {value!r} was given"
        assert before != value, f"{given} is what {row.where} is without it: give the row another value"

"""The compiler's rooms stand on floors: what a room may import is read from the code and held to this table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

COMPILER = Path(__file__).parents[2] / "compiler"
#: Lower floors never import higher ones, and rooms on one floor never each other.
FLOORS = (
    {"recipe", "reasons"},
    {"media", "store", "inputs"},
    {"plan"},
    {"run"},
    {"check", "report", "dedupe", "sparsesync", "fields"},
    {"build"},
    {"demo", "repair"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
#: Imports that break the rule, to be mended: what is listed here and no longer done fails too.
OWED: set[tuple[str, str]] = set()
#: What a room must never see, even from a lower floor.
BLIND = {"run": {"inputs", "media"}}


def imported(path: Path) -> Iterator[str]:
    """Every module of the compiler that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names if node.module == "javisc.compiler")


def room_of(path: Path) -> str:
    return path.relative_to(COMPILER).parts[0].removesuffix(".py")


FILES = sorted(path for path in COMPILER.rglob("*.py") if path != COMPILER / "__init__.py")


def test_every_room_has_a_floor_and_says_its_rule() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR)
    for room in FLOOR:
        if (folder := COMPILER / room).is_dir():
            rule = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
            assert rule and rule.endswith("."), f"{room}/__init__.py does not say the room's rule"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(COMPILER)))
def test_no_room_imports_a_higher_one_or_its_neighbour(path: Path) -> None:
    room, here = room_of(path), str(path.relative_to(COMPILER))
    owed = {other for file, other in OWED if file == here}
    paid = set(owed)
    for name in imported(path):
        other = name.split(".")[2] if name.startswith("javisc.compiler.") else room
        assert other == room or other in FLOOR, f"{name} is in no known room"
        if other in owed:
            paid.discard(other)
            continue
        assert other == room or FLOOR[other] < FLOOR[room], f"{here} imports {name}"
        assert other not in BLIND.get(room, ()), f"{room} must not know {name}"
        assert not name.startswith(("javisc.trainer", "javisc.kernels", "javisc.commands", "torch")), name
    assert not paid, f"{here} no longer imports {paid}: take the line out of OWED"

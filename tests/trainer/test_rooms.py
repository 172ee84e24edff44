"""The trainer's rooms: what may import what, read from every import statement."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import javisc.trainer

ROOT = Path(javisc.trainer.__file__).parent
PREFIX = "javisc.trainer."

#: room → what it may import of the trainer, beside itself: rooms, or single modules.
ALLOWED: dict[str, tuple[str, ...]] = {
    "task": ("data.index.draws",),
    "engine": ("task",),
    "forecast": ("engine", "task", "models"),
    "data": ("task", "engine.settings", "engine.moving", "engine.weights", "transforms", "models.text.captions"),
    "transforms": ("engine.settings", "data.index.draws", "data.index.lengths"),
    "models": (
        "engine.settings",
        "engine.moving",
        "engine.weights",
        "engine.checkpoint_io",
        "engine.distributed.PRECISIONS",
        "data",
        "transforms",
    ),
    "objectives": ("engine.settings", "models", "data.index.draws"),
    "tasks": ("engine", "task", "forecast.flops", "data", "transforms", "models", "objectives"),
    "use": ("engine", "task", "forecast.flops", "data", "transforms", "models", "objectives", "tasks"),
    "recipes": (),
}
#: The rooms inside `data`: what is decided, what is read, what a task draws from. Each may import the ones before it.
ORDER = ("index", "bytes", "sources")
#: Modules that a room may not import although it may import their room.
REFUSED = {"forecast": ("engine.loop",), "tasks": ("engine.loop",)}


def imported(path: Path) -> Iterator[str]:
    """Dotted names below the trainer that a file imports, wherever in it the statement stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix(PREFIX) for name in found if name.startswith(PREFIX))


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def trespasses(room: str, names: Iterator[str]) -> list[str]:
    """The imports that a room may not have."""
    allowed, refused = (room, *ALLOWED[room]), REFUSED.get(room, ())
    return [name for name in names if not within(name, allowed) or within(name, refused)]


def test_every_file_has_a_room_and_only_the_protocol_is_loose() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == {"__init__", "task"}
    assert {path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"} | {"task"} == set(
        ALLOWED
    )


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    files = [ROOT / f"{room}.py"] if room == "task" else sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = {str(file.relative_to(ROOT)): found for file in files if (found := trespasses(room, imported(file)))}
    assert not wrong


@pytest.mark.parametrize("number", range(len(ORDER)))
def test_what_decides_does_not_know_what_reads(number: int) -> None:
    """`data/index` imports no reader and `data/bytes` no source; no file stands loose beside the rooms."""
    data = ROOT / "data"
    assert {path.name for path in data.iterdir() if path.name != "__pycache__"} == {"__init__.py", *ORDER}
    later = tuple(f"data.{room}" for room in ORDER[number + 1 :])
    files = sorted((data / ORDER[number]).glob("*.py"))
    assert len(files) > 5
    assert not {file.name: found for file in files if (found := [n for n in imported(file) if within(n, later)])}


@pytest.mark.parametrize(
    ("room", "statement"),
    [
        ("engine", "from javisc.trainer.models.dit import VASTDiT3"),
        ("engine", "def f() -> None:\n    import javisc.trainer.data.bytes.loader"),
        ("forecast", "from javisc.trainer.engine import loop"),
        ("forecast", "from javisc.trainer.use.encode import encode"),
        ("tasks", "from javisc.trainer.engine.loop import train"),
    ],
)
def test_the_reading_sees_a_trespass(room: str, statement: str, tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text(statement)
    assert trespasses(room, imported(tmp_path / "file.py"))

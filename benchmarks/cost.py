"""What work costs: wall and CPU seconds of this process and its children, of contestants in turn."""

from __future__ import annotations

import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def spent(work: Callable[[], T]) -> tuple[float, float, T]:
    """Seconds of wall and of CPU that `work` takes, children that it waited for included, and what it gives."""

    def used() -> float:
        mine, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime

    cpu, wall = used(), time.monotonic()
    made = work()
    return time.monotonic() - wall, used() - cpu, made


def in_turn(
    contestants: Mapping[str, Callable[[Path], object]], scratch: Path, rounds: int, against: str
) -> list[list[str]]:
    """Rows of a table: each contestant's least seconds of the rounds, and those as shares of one contestant's.

    A contestant gets a name below `scratch` that is free, for what it makes.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            out = scratch / "out"
            wall, cpu, _ = spent(lambda run=run, out=out: run(out))  # type: ignore[misc]
            found[name].append((wall, cpu))
            print(f"round {number + 1} {name}: {wall:.2f} s of wall, {cpu:.2f} s of CPU", file=sys.stderr, flush=True)
            shutil.rmtree(out)
    least = {name: [min(each) for each in zip(*times, strict=True)] for name, times in found.items()}
    rows = [["", "wall s", "CPU s", f"wall / {against}'s", f"CPU / {against}'s"]]
    for name, (wall, cpu) in least.items():
        shares = [f"{mine / theirs:.3f}" for mine, theirs in zip((wall, cpu), least[against], strict=True)]
        rows.append([name, f"{wall:.2f}", f"{cpu:.2f}", *shares])
    return rows


def table(rows: list[list[str]]) -> str:
    """A markdown table; the first row is the head."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])

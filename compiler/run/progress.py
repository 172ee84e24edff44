"""Telling how a build goes: a live line on a terminal, plain lines otherwise, and a log for machines."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from javisc.compiler.run.engine import Event, UnitResult

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Seconds between plain lines.
_EVERY = 10.0
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(count: float) -> str:
    """Bytes for people: 512 MB."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.3g} {name}" if count < 1000 * unit else f"{count / unit:.0f} {name}"
    return f"{count:.0f} bytes"


def span(seconds: float) -> str:
    """Seconds for people: 2 h 05 min."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


class Reporter:
    """Counts events and shows them. Use as a context manager around a build.

    out: where lines go. log: JSON lines, one per event (`--log-json`).
    """

    def __init__(
        self, out: IO[str] | None = None, log: Path | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.out = out or sys.stderr
        self.clock = clock
        self.log = log.open("a", encoding="utf-8") if log is not None else None
        self.rejected: Counter[str] = Counter()
        self.clips = 0
        self.done = self.total = 0
        self.media = 0.0
        self.read = 0
        self.left_bytes = 0
        self.began = self.said = clock()
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        if self.log is not None:
            self.log.close()

    def say(self, line: str) -> None:
        """One line for the person, also in the log."""
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self.out, flush=True)
        self._write("note", text=line)

    def start(self, inputs: int, source_bytes: int, shards: int, published: int) -> None:
        """The plan is made: inputs that are left, their bytes, shards in all, and those published before."""
        self.total, self.left_bytes = inputs, source_bytes
        self.began = self.said = self.clock()
        self._write("start", inputs=inputs, source_bytes=source_bytes, shards=shards, published=published)
        if inputs and self.out.isatty():
            from rich.console import Console  # here, so that what writes to a log starts without it
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
            )
            self.bar = Progress(*columns, console=Console(file=self.out))
            self.task = self.bar.add_task("starting", total=inputs)
            self.bar.start()

    def event(self, event: Event) -> None:
        """One input is done."""
        self.done += 1
        self.read += event.source_bytes
        if event.reason is None:
            self.clips += 1
            self.media += event.media_seconds
        else:
            self.rejected[event.reason] += 1
        self._write("input", **vars(event))
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, completed=self.done, description=self.line())
        elif self.clock() - self.said >= _EVERY:
            self.said = self.clock()
            print(f"{self.done}/{self.total} {self.line()}", file=self.out, flush=True)

    def unit(self, result: UnitResult) -> None:
        """One shard is published."""
        self._write("shard", **vars(result))

    def line(self) -> str:
        """Clips, speed, rejects and time left."""
        passed = max(self.clock() - self.began, 1e-9)
        share = self.read / self.left_bytes if self.left_bytes else self.done / max(self.total, 1)
        left = span(passed / share * (1 - share)) if 0 < share < 1 else "…" if share == 0 else "0 s"
        return (
            f"{self.clips} clips, {self.media / passed:.1f} s of media per second, {self.read / passed / 1e6:.1f} MB/s, "
            f"{self.rejected.total()} rejected, {left} left"
        )

    def _write(self, what: str, **fields: Any) -> None:
        if self.log is not None:
            self.log.write(
                json.dumps({"event": what, "time": round(time.time(), 3), **fields}, ensure_ascii=False) + "\n"
            )
            self.log.flush()

"""What a call has spent and may spend: a worker's own CPU time, so that a loaded machine does not count against a file.

A worker that waits for the processor is charged nothing. One that neither computes nor could (it sleeps, or waits for a disk or
a lock) is charged the time for which it does so, against the same limit: that is how a hang is told.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

#: Seconds between two looks at a worker.
PERIOD = 0.25
#: However little it is charged, no call lasts longer than this many times its limit by the clock on the wall.
MAX_WALL = 50.0
#: A call that lasts longer than this says by itself what its file needs.
PATIENCE = 5.0
#: Seconds of CPU time per second of a million pixels: several times what the slowest decoder and encoder need.
SECONDS_PER_MEGAPIXEL_SECOND = 20.0
#: No file is worth more than a day.
MAX_SECONDS = 86_400.0
_TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def read_stat(pid: int) -> tuple[str, float] | None:
    """(state of the main thread, CPU seconds of all threads) of a process; None where the system does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 (read four times a second)
            fields = file.read().rpartition(b")")[2].split()
        return fields[0].decode(), (int(fields[11]) + int(fields[12])) / _TICK
    except (OSError, IndexError, ValueError):
        return None


def resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123 (as above)
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


@dataclass
class Meter:
    """Charges a process for what it does from now on. look: what `read_stat` says of it; clock: seconds."""

    pid: int
    look: Callable[[int], tuple[str, float] | None] = read_stat
    clock: Callable[[], float] = time.monotonic
    cpu: float = 0.0
    idle: float = 0.0
    began: float = field(init=False)
    _seen: float = field(init=False)
    _cpu_then: float | None = field(init=False)

    def __post_init__(self) -> None:
        self.began = self._seen = self.clock()
        said = self.look(self.pid)
        self._cpu_then = None if said is None else said[1]

    def update(self) -> None:
        """Look again, at most once a PERIOD."""
        now = self.clock()
        if now - self._seen < PERIOD:
            return
        span, self._seen = now - self._seen, now
        said = self.look(self.pid)
        if said is None or self._cpu_then is None:
            self.idle += span
            return
        state, total = said
        used, self._cpu_then = total - self._cpu_then, total
        self.cpu += used
        if used <= 0 and state != "R":
            self.idle += span

    def exceeded(self, limit: float, granted: float = 0.0) -> str | None:
        """Why the call has had its time, or None. limit: seconds; granted: of CPU time, where the file needs more."""
        if self.cpu > max(limit, granted):
            return f"took longer than {max(limit, granted):.0f} seconds"
        if self.idle > limit:
            return f"took longer than {limit:.0f} seconds, in which it did nothing"
        if self.clock() - self.began > MAX_WALL * max(limit, granted):
            return f"took longer than {MAX_WALL * max(limit, granted):.0f} seconds"
        return None


def needed(seconds: float | None, pixels: int) -> float:
    """Seconds of CPU time that a clip may take beyond the usual limit, by what its header declares."""
    return min((seconds or 0.0) * pixels / 1e6 * SECONDS_PER_MEGAPIXEL_SECOND, MAX_SECONDS)


class Line:
    """The worker's side: where a call that lasts says how much more it needs. Nobody listens outside a worker."""

    def __init__(self) -> None:
        self.send: Callable[[float], None] = lambda seconds: None
        self._lock = threading.Lock()

    @contextmanager
    def asking(self, need: Callable[[], float]) -> Iterator[None]:
        """Around a call: when it has lasted PATIENCE seconds, tell the parent what `need` finds; nothing after its end."""
        over = False

        def ask() -> None:
            seconds = need()
            with self._lock:
                if not over:
                    self.send(seconds)

        timer = threading.Timer(PATIENCE, ask)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                over = True


#: This process's line to its parent.
LINE = Line()

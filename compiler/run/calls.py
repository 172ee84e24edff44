"""What is asked of a supervised worker process, and how it ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from javisc.manifests.environment import Unavailable


@dataclass
class Call:
    """`module:function` with JSON arguments, and the seconds it may take (see effort). `tag` is handed back with the outcome.

    before: a call that the same worker makes first, as to fetch what this one reads. Its value is dropped; that it dies or takes
    too long is the storage's fault. tries: how often it may kill its worker or overrun its time. short: it takes milliseconds, so
    that a worker is told of a few ahead and never waits for the parent; each is still its own call, with its own limit.
    run: calls of one run are best made by one worker, one after the other; None: anybody may make it. Nobody waits for it.
    """

    tag: Any
    function: str
    arguments: dict[str, Any]
    limit: float
    before: Call | None = None
    tries: int = 2
    short: bool = False
    run: str | None = None
    attempts: int = 0
    prepared: bool = False
    refusals: int = 0
    until: float = 0.0

    @property
    def step(self) -> Call:
        """What a worker makes now: this call or the one before it."""
        return self if self.before is None or self.prepared else self.before


@dataclass
class Outcome:
    """How a call ended: with a value, or with an error and its message.

    error: None, "rejected" (with reason), "raised", "unwritable", "fatal", "unavailable" once patience is out, or after
    `Call.tries` attempts "crashed" or "timeout".
    """

    call: Call
    value: Any = None
    error: str | None = None
    message: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def stop_if_unavailable(self) -> None:
        """Raise Unavailable where storage did not answer: the work stops, and nothing is held against a file."""
        if self.error == "unavailable":
            raise Unavailable(self.message, waited=True)


def take(waiting: deque[Call], own: str | None, others: Collection[str | None]) -> Call:
    """Take out the call that a worker makes next: the first; where that is of a run, the next of the worker's `own` run.

    If there is none, the first that is of none of the runs of the `others`, or the later half of one of these becomes a run.
    """
    runs = [call.run for call in waiting] if waiting[0].run is not None else [None]
    mine = (place for place, run in enumerate(runs) if run is not None and run == own)
    free = (place for place, run in enumerate(runs) if run is None or run not in others)
    if (place := next(mine, next(free, None))) is None:
        of_first = [place for place, run in enumerate(runs) if run == runs[0]]
        half = of_first[len(of_first) // 2 :]
        place, apart = half[0], f"{runs[0]}/{len(half)}"
        for each in half:
            waiting[each].run = apart
    call = waiting[place]
    del waiting[place]
    return call

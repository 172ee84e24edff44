"""Parts that a job's processes make and publish themselves, each with a model that it loads once.

What kills a process is found among the part's items (see `spread`), and the part is made again without it: it costs its own row.
So what is published depends on the inputs alone, not on kills, on workers, nor on the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from javisc.compiler.run.engine import EngineOptions
from javisc.compiler.run.spread import Job, spread
from javisc.manifests.errors import UserError

#: The argument of a job that makes parts which holds the items.
ITEMS = "items"
#: CPU seconds that a process may take to load networks, and for an item: a diffusion of some hundred steps on a slow core.
_START, _ITEM = 1800.0, 1800.0


@dataclass
class Wanted:
    """A part that is to be made: the call's arguments beside its items, and the items, as JSON can say them.

    lost: the places of items that kill their process, with reason (crashed, timeout) and message.
    """

    number: int
    arguments: dict[str, Any]
    items: Sequence[Any]
    lost: dict[int, tuple[str, str]] = field(default_factory=dict)
    _found: bool = False
    _vain: int = 0

    @property
    def call(self) -> dict[str, Any]:
        """All arguments: `items` are pairs of place and item, `lost` triples of place, reason and message."""
        lost = [[place, *how] for place, how in sorted(self.lost.items())]
        return {**self.arguments, ITEMS: list(enumerate(self.items)), "whole": len(self.items), "lost": lost}


def publish(
    job: Job,
    wanted: Iterable[Wanted],
    *,
    workers: int | None,
    devices: Sequence[str],
    engine: str,
    address: str | None,
    smaller: str,
) -> Iterator[Wanted]:
    """Have the parts made, and yield each when it is published. wanted is read as processes become free.

    The job's function takes `Wanted.call`. It publishes the part, without its lost items but with a row for each of them, only
    where it is given the `whole` of it: fewer items are a search for what kills the process. It returns whether it published.
    workers, devices, engine: see `spread`. smaller: the option that makes parts smaller, for the message. Raises UserError.
    """
    pending, options = wanted, EngineOptions(address=address)
    while True:
        again: dict[int, Wanted] = {}
        calls = ((part, part.call, _START + _ITEM * len(part.items)) for part in pending)
        outcomes = spread(job, calls, workers=workers, engine=engine, options=options, devices=devices)
        with closing(outcomes):  # type: ignore[type-var]
            for outcome in outcomes:
                part: Wanted = outcome.call.tag
                if outcome.error in ("crashed", "timeout"):
                    ((place, _),) = outcome.call.arguments[ITEMS]
                    part.lost[place], part._found = (outcome.error, outcome.message), True
                elif outcome.error is not None:
                    raise UserError(
                        f"part {part.number}: {outcome.message}; what is published stays, the same command goes on from here",
                        exit_code=outcome.details.get("code", 1),
                    )
                if outcome.error is None and outcome.value:
                    yield part
                else:
                    again[part.number] = part
        if not again:
            return
        for part in again.values():
            # What killed it and is not to be found may have come from outside: it gets a second chance.
            part._vain = 0 if part._found else part._vain + 1
            part._found = False
            if part._vain > 1:
                raise UserError(
                    f"part {part.number} kills its process, none of its items alone does: give it a smaller {smaller}, or "
                    "more memory",
                    exit_code=1,
                )
        pending = list(again.values())


def split(
    items: Sequence[tuple[int, Any]], lost: Sequence[tuple[int, str, str]]
) -> tuple[dict[int, Any], dict[int, tuple[str, str]]]:
    """In a worker: the items that are to be made, and how those of them that kill a process did; both by place."""
    gone = {place: (reason, message) for place, reason, message in lost}
    given = dict(items)
    return (
        {place: item for place, item in given.items() if place not in gone},
        {place: how for place, how in gone.items() if place in given},
    )

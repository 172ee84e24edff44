"""What a plan has beside the one before it, counted as it is made: names are kept for a line, not for the table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import polars as pl

#: Names that a line shows.
SHOWN = 3
#: An input that cannot be found any more: its path, and the bytes of it where it is no text.
LOST_SCHEMA = pl.Schema({"path": pl.String(), "raw_path": pl.Binary()})


@dataclass
class Names:
    """How many names there were, and the first of them in their order."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, names: Iterable[str]) -> None:
        """Count some more."""
        every = list(names)
        self.count += len(every)
        self.first = sorted([*self.first, *every])[:SHOWN]

    def __len__(self) -> int:
        return self.count

    def __str__(self) -> str:
        return ", ".join(map(repr, self.first)) + (", …" if self.count > SHOWN else "")


@dataclass
class Changes:
    """What a plan has beside the one before it."""

    new: int = 0
    kept: int = 0
    twice: int = 0
    twins: int = 0
    nameless: int = 0
    changed: Names = field(default_factory=Names)
    deleted: Names = field(default_factory=Names)
    #: LOST_SCHEMA: inputs that were planned, are not published and cannot be found any more.
    lost: pl.LazyFrame = field(default_factory=lambda: pl.LazyFrame(schema=LOST_SCHEMA), compare=False)
    pruned: set[int] = field(default_factory=set)

    def lines(self, prune: bool) -> list[str]:
        """What to tell the user, a line each."""
        said = []
        if self.twice:
            said.append(f"{self.twice} inputs were named more than once and count once")
        if self.twins:
            said.append(f"{self.twins} inputs have the relative path of another one and were told apart by their root")
        remedy = "their shards are rewritten" if prune else "what is published stays; --prune rewrites it"
        if self.nameless:
            said.append(f"{self.nameless} samples have no digest of their source, an older javisc wrote none: {remedy}")
        for names, what in ((self.changed, "changed"), (self.deleted, "no longer given")):
            if names:
                said.append(f"{len(names)} inputs are {what} since the last build ({names}): {remedy}")
        return said

"""The plan before this one and what is published of it, read some shards at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol

import polars as pl

from javisc.compiler.inputs.table import INPUT_SCHEMA
from javisc.compiler.plan.keys import key_of
from javisc.compiler.store.commits import PUBLISHED_SCHEMA
from javisc.manifests.absent import without
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.io import complete

PLAN_SCHEMA = pl.Schema(
    {"shard": pl.Int32(), "key": pl.String(), "revision": pl.Int32(), "twin": pl.Int32(), **INPUT_SCHEMA}
)
#: A row of the plan before. plain: the key that it would have without a twin. done: it is published, as the others say.
BEFORE_SCHEMA = pl.Schema(
    {
        **PLAN_SCHEMA,
        "plain": pl.String(),
        "done": pl.Boolean(),
        "sha256": pl.String(),
        "audio_sha256": pl.String(),
        "reason": pl.String(),
    }
)


class DamagedPlan(Exception):
    """The plan before cannot be read, and why."""


class Published(Protocol):
    """What stands on disk."""

    @property
    def shards(self) -> Collection[int]:
        """Those that are committed."""

    def of(self, shards: Collection[int], plan: pl.DataFrame) -> pl.DataFrame:
        """PUBLISHED_SCHEMA of some of them. plan: their rows of the plan, for what is damaged."""


class Before:
    """An older plan (its columns may be fewer) and what is published of it.

    highest: the last shard of either, -1 without one; known when `chunks` is at its end. split_drawn: before groups, splits were
    drawn into the plan: what such a plan says stays.
    """

    def __init__(self, plan: pl.LazyFrame | None, published: Published | None) -> None:
        self.plan = pl.LazyFrame(schema=PLAN_SCHEMA) if plan is None else plan
        self.published = published
        self.highest = -1
        self.split_drawn = "group" not in self.plan.collect_schema()
        self._sizes = dict(_read(self.plan.group_by("shard").len()).iter_rows())
        self.height = sum(self._sizes.values())

    def chunks(self, rows: int) -> Iterator[pl.DataFrame]:
        """Frames of BEFORE_SCHEMA of about so many rows, whole shards in order."""
        committed = frozenset(() if self.published is None else self.published.shards)
        group: list[int] = []
        held = 0
        every = sorted(committed | set(self._sizes))
        for shard in every:
            group.append(shard)
            held += self._sizes.get(shard, 0)
            if held >= rows or len(group) >= rows or shard == every[-1]:
                yield self._chunk(group, committed)
                group, held = [], 0

    def _chunk(self, group: list[int], committed: frozenset[int]) -> pl.DataFrame:
        here = pl.col("shard").is_between(group[0], group[-1]) & pl.col("shard").is_in(group)
        plan = as_now(_read(self.plan.filter(here)))
        stands = [shard for shard in group if shard in committed]
        done = pl.DataFrame(schema=PUBLISHED_SCHEMA)
        if stands and self.published is not None:
            done = self.published.of(stands, plan)
        for frame in (plan, done):
            if frame.height:
                self.highest = max(self.highest, int(frame["shard"].max()))  # type: ignore[arg-type]
        state = done.with_columns(done=pl.lit(True))
        joined = plan.with_columns(plain=plain_keys(plan)).join(
            state, on=["key", "shard"], how="left", maintain_order="left"
        )
        return joined.with_columns(pl.col("done").fill_null(False)).select(BEFORE_SCHEMA.names())


def _read(plan: pl.LazyFrame) -> pl.DataFrame:
    try:
        return plan.collect(engine="streaming")
    except POLARS_FAULTS as error:
        raise DamagedPlan(str(error)) from error


class PublishedTable:
    """What is published as one table (PUBLISHED_SCHEMA)."""

    def __init__(self, table: pl.DataFrame) -> None:
        self.table = table

    @property
    def shards(self) -> Collection[int]:
        """Those that are in it."""
        return self.table["shard"].unique().to_list()

    def of(self, shards: Collection[int], plan: pl.DataFrame) -> pl.DataFrame:
        """The rows of some of them."""
        return self.table.filter(pl.col("shard").is_in(list(shards)))


def as_now(plan: pl.DataFrame) -> pl.DataFrame:
    """An older plan in PLAN_SCHEMA: columns that were not thought of yet are null, and words for absent values too."""
    return without(complete(plan.lazy(), PLAN_SCHEMA).select(PLAN_SCHEMA.names())).collect()


def plain_keys(frame: pl.DataFrame) -> pl.Series:
    """The keys that rows would have without a twin."""
    if (frame["twin"] == 0).all():
        return frame["key"].alias("plain")
    return pl.Series("plain", [_plain_key(row) for row in frame.iter_rows(named=True)], dtype=pl.String)


def _plain_key(row: Mapping[str, Any]) -> str:
    return row["key"] if row["twin"] == 0 else key_of(row["relpath"], (row["window_start"], row["window_end"]))

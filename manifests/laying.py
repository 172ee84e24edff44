"""A manifest and the fields that lie over it put together a stretch of rows at a time, so that no table is held whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import polars as pl
from polars.io.plugins import register_io_source

from javisc.manifests.io import ROW_GROUP

#: Rows of a stretch: whole groups of rows as manifests are written, so that none is read twice.
ROWS = ROW_GROUP


@dataclass(frozen=True)
class Stretch:
    """Rows of a manifest that follow each other: the first one, how many, and the shards in which they and nothing else lie."""

    start: int
    rows: int
    shards: tuple[int, int]

    def of(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """These rows of a table that has the manifest's rows."""
        return frame.slice(self.start, self.rows)

    @property
    def within(self) -> pl.Expr:
        """True for the rows of another table that may belong to these: those of the same shards."""
        return pl.col("shard").is_between(*self.shards)


def stretches(manifest: pl.LazyFrame, beside: Sequence[pl.LazyFrame] = ()) -> list[Stretch] | None:
    """A manifest in stretches of ROWS; None where its rows do not stand in the order of their shards.

    beside: tables with a column key that have to have the manifest's rows in its order: None where one has others.
    """
    shards = manifest.select("shard").collect(engine="streaming")["shard"]
    if len(shards) <= ROWS or shards.has_nulls() or not shards.is_sorted():
        return None
    for table in beside:
        both = pl.concat([manifest.select("key"), table.select(other="key")], how="horizontal")
        if not both.select((pl.col("key").eq_missing(pl.col("other"))).all()).collect(engine="streaming").item():
            return None
    starts = range(0, len(shards), ROWS)
    lengths = [min(ROWS, len(shards) - start) for start in starts]
    return [Stretch(at, rows, (shards[at], shards[at + rows - 1])) for at, rows in zip(starts, lengths, strict=True)]


def stretched(
    parts: Sequence[Stretch], make: Callable[[Stretch], pl.LazyFrame], schema: Mapping[str, pl.DataType]
) -> pl.LazyFrame:
    """What `make` gives of each stretch, one after the other; schema: its columns."""

    def source(
        columns: list[str] | None, predicate: pl.Expr | None, most: int | None, batch: int | None
    ) -> Iterator[pl.DataFrame]:
        for part in parts:
            frame = make(part)
            frame = frame if columns is None else frame.select(columns)
            made = (frame if predicate is None else frame.filter(predicate)).collect()
            if most is not None:
                made = made.head(most)
                most -= made.height
            yield made
            if most == 0:
                return

    return register_io_source(source, schema=dict(schema))

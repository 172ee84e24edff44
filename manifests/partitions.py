"""Tables longer than memory, dealt to files by a number, so that what belongs together is read together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from javisc.manifests.spool import in_slices

#: Rows that wait in memory before they are written, and rows of a part of a join.
HELD, ROWS = 200_000, 100_000
#: The number of a row in a table whose order is to be had again.
ORDER = "__order"


class Partitions:
    """Rows of `schema` in `count` parts of a folder, in the order they came: `add` them all, then iterate once over the parts.

    A part is read whole and its files are removed when the next one is asked for. held: rows kept before they are written.
    """

    def __init__(self, folder: Path, count: int, schema: pl.Schema, *, held: int = HELD) -> None:
        self.folder, self.count, self.schema, self._held = folder, max(1, count), schema, held
        self.height = 0
        self._waiting: list[pl.DataFrame] = []
        self._rows = self._written = 0

    def add(self, frame: pl.DataFrame, number: pl.Expr) -> None:
        """Deal the rows of a frame. number: of each row's part, taken modulo `count`."""
        if frame.is_empty():
            return
        part = (number % self.count).cast(pl.UInt32).alias("__part")
        self._waiting.append(frame.select(*self.schema.names(), part))
        self._rows += frame.height
        self.height += frame.height
        if self._rows >= self._held:
            self._write()

    def clear(self) -> None:
        """Forget every row."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._waiting.clear()
        self.height = self._rows = self._written = 0

    def _cut(self) -> dict[int, pl.DataFrame]:
        """What waits, by part. One concatenation, then one cut: small pieces of many frames would cost more than their rows."""
        if not self._waiting:
            return {}
        whole = pl.concat(self._waiting, rechunk=True)
        self._waiting.clear()
        self._rows = 0
        cut = whole.partition_by("__part", include_key=False, maintain_order=True, as_dict=True)
        return {int(part): rows for (part,), rows in cut.items()}

    def _write(self) -> None:
        for part, rows in self._cut().items():
            place = self.folder / f"{part:06d}"
            place.mkdir(parents=True, exist_ok=True)
            rows.write_parquet(place / f"{self._written:06d}.parquet", compression="lz4", statistics=False)
        self._written += 1

    def __iter__(self) -> Iterator[pl.DataFrame]:
        nothing = pl.DataFrame(schema=self.schema)
        if not self._written:  # it all fits
            held = self._cut()
            for part in range(self.count):
                yield held.pop(part, nothing)
            return
        for part in range(self.count):
            yield self.part(part)
            shutil.rmtree(self.folder / f"{part:06d}", ignore_errors=True)

    def part(self, number: int) -> pl.DataFrame:
        """The rows of one part, which stay where they are. Nothing may be added afterwards."""
        if self._waiting:
            self._write()
        place = self.folder / f"{number:06d}"
        files = sorted(place.iterdir()) if place.is_dir() else []
        return pl.read_parquet(files, glob=False) if files else pl.DataFrame(schema=self.schema)


def by(name: str) -> pl.Expr:
    """A number for each row that rows of equal `name` share."""
    return pl.col(name).hash()


def place(count: int, rows: int) -> pl.Expr:
    """Which of `count` neighbouring pieces of a table of `rows` a row belongs to, by its number ORDER."""
    return pl.col(ORDER).cast(pl.Int64) * count // rows


def in_order(pieces: Partitions) -> Iterator[pl.DataFrame]:
    """The rows that were dealt by `place`, in the order of their numbers, which are dropped."""
    return (frame.sort(ORDER).drop(ORDER) for frame in pieces)


def numbered(frame: pl.LazyFrame, rows: int = ROWS, *, pieces: bool = True) -> Iterator[pl.DataFrame]:
    """The rows of a table with their numbers ORDER, so many at a time. pieces: False for one that is one long file (`in_slices`).

    They are numbered here: a lazy row index lets polars read on ahead of who takes the batches, up to the whole table.
    """
    taken = 0
    batches = frame.collect_batches(chunk_size=rows, maintain_order=True) if pieces else in_slices(frame, rows)
    for batch in batches:
        yield batch.with_row_index(ORDER, offset=taken)
        taken += batch.height


def left_join(
    left: pl.LazyFrame, right: pl.LazyFrame, on: str, folder: Path, rows: int = ROWS, *, pieces: bool = False
) -> Iterator[pl.DataFrame]:
    """The rows of `left` in their order, with the other columns of `right`, which has every value of `on` once at most.

    Part by part of about so many rows. folder: scratch. pieces: `left` lies in many small files, of which `collect_batches`
    reads little ahead, where every slice would open them all.
    """
    sizes = [int(frame.select(pl.len()).collect(engine="streaming").item()) for frame in (left, right)]
    count = max(1, -(-max(sizes) // rows))
    mine = Partitions(folder / "left", count, pl.Schema({**left.collect_schema(), ORDER: pl.UInt32()}))
    for batch in numbered(left, rows, pieces=pieces):
        mine.add(batch, by(on))
    theirs = Partitions(folder / "right", count, right.collect_schema())
    for batch in in_slices(right, rows):
        theirs.add(batch, by(on))
    joined = left.join(right, on=on, how="left").collect_schema()
    ranges = Partitions(folder / "joined", count, pl.Schema({**joined, ORDER: pl.UInt32()}))
    for some, said in zip(mine, theirs, strict=True):
        ranges.add(some.join(said, on=on, how="left"), place(count, sizes[0]))
    yield from in_order(ranges)

"""Tables longer than memory, dealt to files by a number, so that what belongs together is read together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl

#: Rows that wait in memory before they are written.
HELD = 200_000


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
            rows.write_parquet(
                place / f"{self._written:06d}.parquet", compression="zstd", compression_level=1, statistics=False
            )
        self._written += 1

    def __iter__(self) -> Iterator[pl.DataFrame]:
        nothing = pl.DataFrame(schema=self.schema)
        if not self._written:  # it all fits
            held = self._cut()
            for part in range(self.count):
                yield held.pop(part, nothing)
            return
        self._write()
        for part in range(self.count):
            place = self.folder / f"{part:06d}"
            files = sorted(place.iterdir()) if place.is_dir() else []
            yield pl.read_parquet(files, glob=False) if files else nothing
            shutil.rmtree(place, ignore_errors=True)


def by(name: str) -> pl.Expr:
    """A number for each row that rows of equal `name` share."""
    return pl.col(name).hash()

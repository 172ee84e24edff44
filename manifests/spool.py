"""Tables longer than memory: written as they come, read lazily."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl


def spool(frames: Iterable[pl.DataFrame], folder: Path, schema: pl.Schema) -> pl.LazyFrame:
    """Write frames of a schema to parquet files and return a lazy view of them: tables longer than memory."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = []
    for number, frame in enumerate(frames):
        piece = folder / f"{number:06d}.parquet"
        frame.write_parquet(piece, compression="zstd", compression_level=1)
        pieces.append(piece)
    return pl.scan_parquet(pieces, glob=False) if pieces else pl.LazyFrame(schema=schema)


def regrouped(frames: Iterable[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """The same rows in frames of so many: the bytes of a parquet file depend on where its columns' pieces end."""
    waiting: list[pl.DataFrame] = []
    held = 0
    for frame in frames:
        waiting.append(frame)
        held += frame.height
        if held >= rows:
            whole = pl.concat(waiting, rechunk=True)
            end = held - held % rows
            yield from whole.head(end).iter_slices(rows)
            waiting, held = [whole.tail(held - end)], held - end
    if held:
        yield pl.concat(waiting, rechunk=True)


def in_slices(frame: pl.LazyFrame, rows: int) -> Iterator[pl.DataFrame]:
    """The rows of a scanned table, nothing filtered, so many at a time.

    Of one long file polars' `collect_batches` reads on ahead, up to the whole table; a slice reads its own rows.
    """
    for start in itertools.count(0, rows):
        some = frame.slice(start, rows).collect(engine="streaming")
        if some.height:
            yield some
        if some.height < rows:
            return

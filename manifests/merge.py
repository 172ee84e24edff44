"""Several manifests as one, with samples that are there twice found in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from javisc.manifests.errors import UserError
from javisc.manifests.io import scan_many, write_view
from javisc.manifests.schema import DATASET_COLUMN

#: Rows whose hashes are held at a time, and rows that are compared in full at a time: a GB each at most.
HASHED = 30_000_000
PARTITION = 3_000_000
ROW = "__row"


@dataclass(frozen=True)
class Merged:
    rows: int
    repeated: int  #: rows whose key another, earlier row has


def repeats(frame: pl.LazyFrame, by: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield tables (ROW, first, *by) of the rows that repeat an earlier row's values in the columns `by`.

    Rows are numbered in the frame's order; `first` is the earliest row of the group. Nulls equal nothing. One streamed
    pass hashes the rows (HASHED at a time, about 30 bytes each); only rows that share a hash are read again and
    compared, PARTITION at a time.
    """
    rows = int(frame.select(pl.len()).collect(engine="streaming").item())
    parts = max(1, -(-rows // HASHED))
    numbered = frame.select(by).with_row_index(ROW).drop_nulls(list(by))
    digest = pl.struct(list(by)).hash()
    for part in range(parts):
        rest = numbered.filter(digest % parts == part) if parts > 1 else numbered
        hashed = rest.select(ROW, digest.alias("hash")).collect(engine="streaming")
        values, counts = np.unique(hashed["hash"].to_numpy(), return_counts=True)
        shared, counts = values[counts > 1], counts[counts > 1]
        portions = np.cumsum(counts) // PARTITION
        for portion in np.unique(portions):
            suspects = hashed.filter(pl.col("hash").is_in(pl.Series(shared[portions == portion]).implode()))[ROW]
            same = numbered.filter(pl.col(ROW).is_in(suspects.implode())).collect(engine="streaming")
            same = same.filter(pl.struct(list(by)).is_duplicated())
            same = same.with_columns(pl.col(ROW).min().over(list(by)).alias("first"))
            yield same.filter(pl.col(ROW) != pl.col("first")).sort(ROW).select(ROW, "first", *by)


def without_rows(frame: pl.LazyFrame, rows: np.ndarray) -> pl.LazyFrame:
    """`frame` without the rows of the given numbers, order kept."""
    if not len(rows):
        return frame
    gone = pl.Series(np.sort(rows).astype(np.uint32))
    return frame.with_row_index(ROW).filter(~pl.col(ROW).is_in(gone.implode())).drop(ROW)


def merge(paths: Sequence[str], out: str, *, on_duplicate: str = "error", relative: bool = False) -> Merged:
    """Write one view over the rows of several datasets, views and tables, in the order given.

    A key is a function of the file's relative path: two datasets built from folders with equal names inside can share
    keys. `on_duplicate` says what happens then: `error`; `first` keeps the earliest row; `keep` keeps all (a sample is
    then named by dataset and key). Raises UserError for a dataset that cannot be opened and, with `error`, for keys
    that are there twice.
    """
    datasets, frame = scan_many(paths)
    gone: list[np.ndarray] = []
    repeated = 0
    if on_duplicate != "keep":
        for table in repeats(frame, ["key"]):
            repeated += table.height
            if table.height and on_duplicate == "error":
                key = table["key"][0]
                holders = (
                    frame.filter(pl.col("key") == key)
                    .select(DATASET_COLUMN)
                    .collect(engine="streaming")
                    .to_series()
                    .to_list()
                )
                raise UserError(
                    f"key {key} is there {len(holders)} times ({', '.join(dict.fromkeys(holders))}) and may not be the only one: "
                    "--on-duplicate first keeps the first, keep keeps all"
                )
            gone.append(table[ROW].to_numpy())
    kept = without_rows(frame, np.concatenate(gone)) if gone else frame
    made_by = {"command": "merge", "inputs": [dataset.path for dataset in datasets], "on_duplicate": on_duplicate}
    return Merged(write_view(kept, out, made_by=made_by, relative=relative), repeated)

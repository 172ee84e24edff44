"""Several manifests as one, with samples that are there twice found in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from javisc.manifests.errors import UserError
from javisc.manifests.io import scan_many, write_view
from javisc.manifests.schema import DATASET_COLUMN

#: Rows whose identities are compared at a time: a few hundred MB.
PARTITION = 3_000_000
ROW = "__row"


@dataclass(frozen=True)
class Merged:
    rows: int
    repeated: int  #: rows whose key another, earlier row has


def repeats(frame: pl.LazyFrame, by: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield tables (ROW, FIRST, *by) of the rows that repeat an earlier row's values in the columns `by`.

    Rows are numbered in the frame's order; FIRST is the earliest row of the group. Nulls equal nothing. Rows are
    compared in partitions by hash, each in one streamed pass over `by`: memory is bounded by PARTITION rows (and by the
    largest group of equals).
    """
    rows = int(frame.select(pl.len()).collect(engine="streaming").item())
    parts = max(1, -(-rows // PARTITION))
    numbered = frame.select(by).with_row_index(ROW).drop_nulls(list(by))
    for part in range(parts):
        rest = numbered.filter(pl.struct(list(by)).hash() % parts == part) if parts > 1 else numbered
        same = rest.collect(engine="streaming").filter(pl.struct(list(by)).is_duplicated())
        same = same.with_columns(pl.col(ROW).min().over(list(by)).alias("first"))
        yield same.filter(pl.col(ROW) != pl.col("first")).sort(ROW)


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

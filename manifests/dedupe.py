"""Samples that are there more than once: groups of equals, and which of a group stay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from javisc.manifests.kinds import MEDIA
from javisc.manifests.merge import ROW, repeats, without_rows
from javisc.manifests.schema import DATASET_COLUMN

#: Evaluation data stay, training data that repeat them go: the first of these that a group has decides.
EVALUATION = ("test", "eval", "evaluation", "valid", "val", "validation", "dev")
RULES = ("one", "leaks")
GROUP = "group"


@dataclass(frozen=True)
class Groups:
    """Rows that belong together: `members` has row, group (the least row of the group), dataset, key, split, kept."""

    members: pl.DataFrame

    @property
    def groups(self) -> int:
        return self.members[GROUP].n_unique()

    @property
    def across(self) -> int:
        """Groups with rows in several splits."""
        return int(self.members.group_by(GROUP).agg(pl.col("split").n_unique() > 1)["split"].sum())

    @property
    def dropped(self) -> np.ndarray:
        return self.members.filter(~pl.col("kept"))["row"].to_numpy()


#: What tells windows of one source apart, and windows of a clip in a dataset of latents.
_WINDOW = ("clip_start", "clip_end")
_LATENT = ("clip_key", "clip_first", "encoded_pass")


def exact_pairs(frame: pl.LazyFrame) -> np.ndarray:
    """Pairs [n, 2] of rows made of the same bytes: the same part of the same source, with picture or sound or both alike.

    Each pair is (least row of the group, row). Rows without a digest equal nothing. Rows of an older javisc, which have no group,
    do not say which part of their source they are: of these the compiled sizes must be equal too.
    """
    have = frame.collect_schema().names()
    old = pl.col("group").is_null() if "group" in have else pl.lit(True)
    more = [
        *(pl.col(name).fill_null("") for name in ("audio_sha256", "clip_key") if name in have),
        *(pl.col(name).fill_null(-1) for name in (*_WINDOW, *_LATENT[1:]) if name in have),
        *(pl.col(f"{kind}_size").is_not_null().alias(f"has_{kind}") for kind in MEDIA),
        *(pl.when(old).then(pl.col(f"{kind}_size").fill_null(-1)).otherwise(-2).alias(kind) for kind in MEDIA),
    ]
    return _pairs(frame.select("source_sha256", *more))


def member_pairs(frame: pl.LazyFrame) -> np.ndarray:
    """Pairs [n, 2] of rows whose sound and picture have the same sizes and CRC-32: most probably the same bytes.

    (least row of the group, row); rows without members, or without their checksums, equal nothing.
    """
    kinds = [kind for kind in MEDIA if f"{kind}_crc32" in frame.collect_schema()]
    parts = [(pl.col(f"{kind}_size"), pl.col(f"{kind}_crc32")) for kind in kinds]
    if not parts:
        return np.zeros((0, 2), np.int64)
    told = pl.any_horizontal(size.is_not_null() for size, _ in parts) & pl.all_horizontal(
        size.is_null() | crc.is_not_null() for size, crc in parts
    )
    columns = [pl.when(told).then(value.fill_null(-1)) for part in parts for value in part]
    return _pairs(frame.select(columns))


def _pairs(frame: pl.LazyFrame) -> np.ndarray:
    by = frame.collect_schema().names()
    tables = [table.select("first", ROW) for table in repeats(frame, by)]
    return pl.concat(tables).to_numpy().astype(np.int64) if tables else np.zeros((0, 2), np.int64)


def group(pairs: np.ndarray) -> dict[int, int]:
    """row → least row of its group, for rows [n, 2] joined in pairs (union-find; memory follows the pairs, not the table)."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while (up := parent.setdefault(row, row)) != row:
            parent[row] = parent[up]
            row = up
        return row

    for a, b in pairs.tolist():
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return {row: root(row) for row in parent}


def choose(frame: pl.LazyFrame, grouped: Mapping[int, int], rule: str) -> Groups:
    """Decide which rows of each group stay.

    `one`: a single row, of an evaluation split if the group has any (in the order of EVALUATION), the earliest of
    these. `leaks`: all rows of that split, or all rows where no evaluation split is touched; so no training row repeats
    an evaluation row, and nothing else is removed.
    """
    rows = np.array(sorted(grouped), np.uint32)
    place = {name: rank for rank, name in enumerate(EVALUATION)}
    wanted = (
        frame.select(DATASET_COLUMN, "key", "split")
        .with_row_index(ROW)
        .filter(pl.col(ROW).is_in(pl.Series(rows).implode()))
    )
    members = wanted.collect(engine="streaming").sort(ROW)
    members = members.with_columns(
        pl.Series(GROUP, [grouped[row] for row in members[ROW].to_list()], pl.Int64),
        pl.col("split")
        .replace_strict(place, default=len(place), return_dtype=pl.Int32)
        .fill_null(len(place))
        .alias("rank"),
    )
    best = pl.col("rank").min().over(GROUP)
    if rule == "one":
        first = pl.col(ROW) == pl.col(ROW).filter(pl.col("rank") == pl.col("rank").min()).min().over(GROUP)
        members = members.with_columns(first.alias("kept"))
    else:
        members = members.with_columns(((pl.col("rank") == best) | (best == len(place))).alias("kept"))
    return Groups(members.select(pl.col(ROW).alias("row"), GROUP, DATASET_COLUMN, "key", "split", "kept"))


def drop(frame: pl.LazyFrame, groups: Groups) -> pl.LazyFrame:
    """`frame` without the rows that do not stay."""
    return without_rows(frame, groups.dropped)


#: Bucket entries compared at a time, and how far apart in a bucket two rows may stand to be compared.
ENTRIES = 20_000_000
REACH = 8


def candidates(entries: Iterable[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Pairs [n, 2] of rows that share a bucket, from (bucket uint64 [m], row [m]) tables; each pair once, smaller row first.

    A bucket's rows are compared with the REACH that follow them, so that a crowded bucket costs as little as a sparse one.
    """
    found: list[np.ndarray] = []
    for buckets, rows in entries:
        order = np.lexsort((rows, buckets))
        buckets, rows = buckets[order], rows[order]
        for reach in range(1, REACH + 1):
            same = (buckets[reach:] == buckets[:-reach]) & (rows[reach:] != rows[:-reach])
            found.append(np.stack([rows[:-reach][same], rows[reach:][same]], axis=1).astype(np.int64))
        found = [np.unique(np.concatenate(found), axis=0)]
    return found[0] if found else np.zeros((0, 2), np.int64)

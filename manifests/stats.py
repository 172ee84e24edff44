"""Counts, hours and quantiles of a table, in streamed passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from javisc.manifests.errors import UserError

QUANTILES = (0.05, 0.5, 0.95)
#: Columns whose distribution is told where the table has them.
MEASURED = (
    "duration",
    "num_frames",
    "height",
    "width",
    "source_fps",
    "loudness",
    "silence_ratio",
    "clipping_ratio",
    "bandwidth",
    "still_ratio",
    "black_ratio",
    "scene_cuts",
    "motion",
    "sync_offset",
    "sync_confidence",
)


def totals(frame: pl.LazyFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """Samples, hours, bytes, and how many have a caption, sound, a picture, silence, a still picture: in one streamed pass.

    Groups are sorted by samples, most first. Raises UserError if the table lacks a column of `by`.
    """
    found = frame.collect_schema()
    for name in by:
        if name not in found:
            raise UserError(f"--by {name}: there is no such column; columns are {', '.join(found)}")
    zero = pl.lit(0, pl.Int64)

    def column(name: str) -> pl.Expr:
        return pl.col(name) if name in found else pl.lit(None)

    measures = [
        pl.len().cast(pl.Int64).alias("samples"),
        (column("duration").cast(pl.Float64).sum() / 3600).alias("hours"),
        (column("mp4_size").cast(pl.Int64).fill_null(zero) + column("flac_size").cast(pl.Int64).fill_null(zero))
        .sum()
        .alias("bytes"),
        column("text").is_not_null().sum().cast(pl.Int64).alias("captioned"),
        column("flac_size").is_not_null().sum().cast(pl.Int64).alias("with_sound"),
        column("mp4_size").is_not_null().sum().cast(pl.Int64).alias("with_picture"),
        column("silent").cast(pl.Boolean).fill_null(False).sum().cast(pl.Int64).alias("silent"),
        column("still").cast(pl.Boolean).fill_null(False).sum().cast(pl.Int64).alias("still"),
    ]
    if not by:
        return frame.select(measures).collect(engine="streaming")
    return (
        frame.group_by(list(by))
        .agg(measures)
        .sort(["samples", *by], descending=[True, *[False] * len(by)])
        .collect(engine="streaming")
    )


def distributions(frame: pl.LazyFrame) -> pl.DataFrame:
    """Per measured column: known values, least, quantiles, greatest, mean. One column is in memory at a time."""
    rows: list[dict[str, Any]] = []
    found = frame.collect_schema()
    for name in MEASURED:
        if name not in found or not found[name].is_numeric():
            continue
        value = pl.col(name).cast(pl.Float64)
        one = frame.select(
            value.count().alias("known"),
            value.min().alias("least"),
            *(value.quantile(q, "nearest").alias(f"p{round(100 * q)}") for q in QUANTILES),
            value.max().alias("greatest"),
            value.mean().alias("mean"),
        )
        row = one.collect(engine="streaming").row(0, named=True)
        if row["known"]:
            rows.append({"column": name, **row})
    return pl.DataFrame(rows)


def histogram(frame: pl.LazyFrame, column: str, edges: Sequence[float]) -> tuple[list[int], int]:
    """Rows per bin [edges[i], edges[i+1]); values outside count in the nearest bin. Second: rows without a value.

    One streamed pass; memory does not depend on the number of rows.
    """
    value = pl.col(column).cast(pl.Float64)
    bins = len(edges) - 1
    index = pl.sum_horizontal([pl.lit(0, pl.Int32), *((value >= edge).cast(pl.Int32) for edge in edges[1:-1])])
    known = pl.when(value.is_not_nan()).then(index).alias("bin")  # a null is not "not NaN"
    table = frame.select(known).group_by("bin").agg(pl.len())
    counts = dict(table.collect(engine="streaming").iter_rows())
    return [int(counts.get(index, 0)) for index in range(bins)], int(counts.get(None, 0))

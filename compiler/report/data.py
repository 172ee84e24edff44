"""What the report says, gathered from the tables in streamed passes: its size does not depend on the number of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import polars as pl

from javisc.compiler.report.charts import Bars, compact, nice_edges
from javisc.manifests.io import Dataset
from javisc.manifests.stats import histogram, totals

MAX_GROUPS = 40
MAX_REASONS = 40


@dataclass(frozen=True)
class Reason:
    code: str
    count: int
    path: str  #: one of the files, for example
    message: str


@dataclass(frozen=True)
class Summary:
    name: str
    header: Mapping[str, Any]
    total: Mapping[str, Any]  #: manifests.stats.totals over everything
    shards: int
    groups: Sequence[Mapping[str, Any]]  #: per corpus and split
    groups_left_out: int
    rejected: int
    reasons: Sequence[Reason]
    charts: Sequence[Bars]
    samples: Sequence[Mapping[str, Any]]  #: rows of the manifest, evenly spread


def gather(dataset: Dataset, samples: int) -> Summary:
    """Read everything the page shows. Raises UserError if a table cannot be read."""
    frame = dataset.located()
    groups = totals(frame, ["corpus", "split"])
    rejected = dataset.rejected()
    reasons = (
        rejected.group_by("reason")
        .agg(pl.len().alias("count"), pl.col("path").min(), pl.col("message").sort_by("path").first())
        .sort(["count", "reason"], descending=[True, False])
        .collect(engine="streaming")
    )
    total = totals(frame).row(0, named=True)
    return Summary(
        name=dataset.folder.rstrip("/").rpartition("/")[2] or dataset.folder,
        header=dataset.header,
        total=total,
        shards=int(frame.select(pl.struct("dataset", "shard").n_unique()).collect(engine="streaming").item()),
        groups=groups.head(MAX_GROUPS).to_dicts(),
        groups_left_out=max(0, groups.height - MAX_GROUPS),
        rejected=int(reasons["count"].sum()),
        reasons=[
            Reason(row["reason"] or "?", row["count"], row["path"] or "", row["message"] or "")
            for row in reasons.head(MAX_REASONS).to_dicts()
        ],
        charts=_charts(frame) if total["samples"] else [],
        samples=_spread(frame, total["samples"], samples),
    )


def _spread(frame: pl.LazyFrame, rows: int, wanted: int) -> list[dict[str, Any]]:
    """Rows at even distances: shards are filled in seeded-hash order, so this is a fair draw, and the same one each time."""
    wanted = min(wanted, rows)
    numbers = pl.Series([int((k + 0.5) * rows / wanted) for k in range(wanted)], dtype=pl.UInt32)
    return (
        frame.with_row_index("__row")
        .filter(pl.col("__row").is_in(numbers.implode()))
        .collect(engine="streaming")
        .to_dicts()
    )


def _numeric(frame: pl.LazyFrame, title: str, unit: str, column: str, edges: list[float], note: str = "") -> Bars:
    counts, unknown = histogram(frame, column, edges)
    names = [f"{compact(a)}–{compact(b)}" for a, b in pairwise(edges)]
    return Bars(title, unit, names, counts, edges, unknown, note)


def _ranged(
    frame: pl.LazyFrame, title: str, unit: str, column: str, floor: float | None = None, whole: bool = False
) -> Bars:
    """A histogram between round numbers around the middle 98 %; what lies outside counts at its ends."""
    value = pl.col(column).cast(pl.Float64)
    limits = frame.select(
        value.quantile(0.01, "nearest").alias("low"),
        value.quantile(0.99, "nearest").alias("high"),
        value.max().alias("most"),
    )
    row = limits.collect(engine="streaming").row(0, named=True)
    low, high = row["low"], row["high"]
    if low is None:
        return Bars(title, unit, [], [])
    low = floor if floor is not None else low
    parts = max(1, min(20, round(high - low))) if whole else 20
    edges = nice_edges(low, high if high > low else low + 1, parts)
    note = f"The last bar holds everything up to {compact(row['most'])}." if row["most"] > edges[-1] else ""
    return _numeric(frame, title, unit, column, edges, note)


def _classes(
    frame: pl.LazyFrame, title: str, unit: str, column: str, limits: Sequence[float], names: Sequence[str]
) -> Bars:
    """A bar per class between `limits`; empty classes are left out."""
    counts, unknown = histogram(frame, column, [-float("inf"), *limits, float("inf")])
    kept = [(name, count) for name, count in zip(names, counts, strict=True) if count]
    return Bars(title, unit, [name for name, _ in kept], [count for _, count in kept], None, unknown)


#: Limits between classes of frame rates, and the classes' names: the common rates stand alone.
RATES = (
    (12, 20, 23.9, 24.1, 24.9, 25.1, 29.9, 30.1, 49.9, 50.1, 59.9, 60.1),
    ("<12", "12–20", "20–24", "24", "24–25", "25", "25–30", "30", "30–50", "50", "50–60", "60", ">60"),
)
SIDES = ((144, 240, 360, 480, 720, 1080, 2160), ("<144", "144+", "240+", "360+", "480+", "720+", "1080+", "2160+"))


def _charts(frame: pl.LazyFrame) -> list[Bars]:
    frame = frame.with_columns(
        pl.when(pl.col("mp4_size").is_not_null()).then(pl.min_horizontal("height", "width")).alias("side"),
        pl.coalesce("text", "audio_text").str.count_matches(r"\S+").alias("words"),
    )
    charts = [
        _ranged(frame, "Duration", "seconds", "duration", 0.0),
        _classes(frame, "Source frame rate", "fps", "source_fps", *RATES),
        _classes(frame, "Picture size", "pixels, shorter side", "side", *SIDES),
        _numeric(frame, "Loudness", "LUFS", "loudness", [float(edge) for edge in range(-60, 1, 3)]),
        _ranged(frame, "Caption length", "words", "words", 0.0, whole=True),
    ]
    for title, column in (
        ("Silence", "silence_ratio"),
        ("Still picture", "still_ratio"),
        ("Black picture", "black_ratio"),
    ):
        charts.append(_numeric(frame, title, "share of the clip", column, [k / 20 for k in range(21)]))
    for title, column in (
        ("Damaged pictures", "damaged_pictures"),
        ("Damaged sound", "damaged_sound"),
        ("Missing tail", "missing_tail"),
    ):
        charts.append(_numeric(frame, title, "share of what should be there", column, [k / 20 for k in range(21)]))
    for title, column in (
        ("Wobble of the sound's time stamps", "audio_wobble_ms"),
        ("Sound stretched to follow its time stamps", "audio_stretched_ms"),
        ("Sound filled in or cut at leaps", "audio_repaired_ms"),
    ):
        charts.append(_ranged(frame, title, "ms", column, 0.0))
    charts.append(_ranged(frame, "Sound bandwidth", "Hz", "bandwidth", 0.0))
    charts.append(_ranged(frame, "Motion", "mean difference of frames", "motion", 0.0))
    return [bars for bars in charts if sum(bars.counts)]

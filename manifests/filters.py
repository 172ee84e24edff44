"""Keeping rows that meet conditions, and saying how many rows each condition removed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from javisc.manifests.errors import UserError
from javisc.manifests.expressions import nearest, parse
from javisc.manifests.io import Dataset, write_table, write_view


@dataclass(frozen=True)
class Condition:
    """What a row must meet to stay. A missing value meets nothing."""

    words: str
    keep: pl.Expr


@dataclass(frozen=True)
class Removed:
    """How many of the rows that met all earlier conditions one condition removed; `unknown`: because the value is missing."""

    words: str
    rows: int
    unknown: int


#: option → (column, comparison). The option's words are the condition's.
BOUNDS: dict[str, tuple[str, str]] = {
    "min-frames": ("num_frames", ">="),
    "max-frames": ("num_frames", "<="),
    "min-seconds": ("duration", ">="),
    "max-seconds": ("duration", "<="),
    "min-fps": ("fps", ">="),
    "max-fps": ("fps", "<="),
    "min-resolution": ("resolution", ">="),
    "max-resolution": ("resolution", "<="),
    "min-height": ("height", ">="),
    "min-width": ("width", ">="),
    "min-aspect": ("aspect_ratio", ">="),
    "max-aspect": ("aspect_ratio", "<="),
    "min-loudness": ("loudness", ">="),
    "max-loudness": ("loudness", "<="),
    "min-bandwidth": ("bandwidth", ">="),
    "max-silence": ("silence_ratio", "<="),
    "max-clipping": ("clipping_ratio", "<="),
    "max-still": ("still_ratio", "<="),
    "max-black": ("black_ratio", "<="),
    "max-cuts": ("scene_cuts", "<="),
    "min-motion": ("motion", ">="),
}
#: option → column that must be false
FLAGS = {"no-silent": "silent", "no-still": "still"}
#: option → column that must have one of the values
CHOICES = {"lang": "lang", "corpus": "corpus", "split": "split"}


def conditions(
    schema: Mapping[str, pl.DataType],
    expressions: Iterable[str] = (),
    bounds: Mapping[str, float] | None = None,
    flags: Iterable[str] = (),
    choices: Mapping[str, Sequence[str]] | None = None,
) -> list[Condition]:
    """Conditions from expressions (manifests/expressions.py) and from the classic options, in this order.

    Raises UserError if an expression is not understood or the table lacks a column.
    """
    found = [Condition(words, keep) for text in expressions for words, keep in parse(text, schema)]
    for option, bound in (bounds or {}).items():
        column, sign = BOUNDS[option]
        value = _column(option, column, schema)
        found.append(Condition(f"--{option} {bound:g}", value >= bound if sign == ">=" else value <= bound))
    for option in flags:
        found.append(Condition(f"--{option}", ~_column(option, FLAGS[option], schema)))
    for option, allowed in (choices or {}).items():
        found.append(
            Condition(f"--{option} {','.join(allowed)}", _column(option, CHOICES[option], schema).is_in(list(allowed)))
        )
    return found


def _column(option: str, column: str, schema: Mapping[str, pl.DataType]) -> pl.Expr:
    if column not in schema:
        raise UserError(
            f"--{option} needs the column {column}, which the table does not have{nearest(column, list(schema))}"
        )
    return pl.col(column)


def keep(frame: pl.LazyFrame, wanted: Sequence[Condition]) -> pl.LazyFrame:
    """The rows that meet every condition, in their order."""
    return frame.filter(*(condition.keep for condition in wanted)) if wanted else frame


def removed(frame: pl.LazyFrame, wanted: Sequence[Condition]) -> tuple[int, list[Removed]]:
    """Count in one streamed pass: all rows, and what each condition removed of the rows that met the ones before it."""
    counts = [pl.len().alias("all")]
    alive = pl.lit(True)
    for index, condition in enumerate(wanted):
        met = condition.keep.fill_null(False)
        counts.append((alive & ~met).sum().alias(f"rows{index}"))
        counts.append((alive & condition.keep.is_null()).sum().alias(f"unknown{index}"))
        alive = alive & met
    row = frame.select(counts).collect(engine="streaming").row(0, named=True)
    told = [Removed(condition.words, row[f"rows{i}"], row[f"unknown{i}"]) for i, condition in enumerate(wanted)]
    return row["all"], told


@dataclass(frozen=True)
class Filtered:
    rows: int
    kept: int
    removed: list[Removed]


def filter_table(
    source: str,
    out: str | None,
    expressions: Sequence[str] = (),
    bounds: Mapping[str, float] | None = None,
    flags: Sequence[str] = (),
    choices: Mapping[str, Sequence[str]] | None = None,
    *,
    relative: bool = False,
) -> Filtered:
    """Filter a dataset, view or table into the view `out` (or only count). A parquet table that is no manifest is filtered
    as it is.

    Raises UserError for what cannot be opened, understood or written.
    """
    opened = Dataset.open(source)
    frame = opened.manifest()
    found = frame.collect_schema()
    is_manifest = "key" in found and "shard" in found
    frame = opened.located() if is_manifest else frame
    wanted = conditions(frame.collect_schema() if is_manifest else found, expressions, bounds, flags, choices)
    rows, told = removed(frame, wanted)
    if out is not None:
        if is_manifest:
            made_by = {"command": "filter", "inputs": [source], "conditions": [condition.words for condition in wanted]}
            write_view(keep(frame, wanted), out, made_by=made_by, relative=relative)
        elif out.endswith(".parquet"):
            write_table(keep(frame, wanted), out)
        else:
            raise UserError(
                f"--out {out}: {source} is a table without key and shard, give a name that ends in .parquet"
            )
    return Filtered(rows, rows - sum(condition.rows for condition in told), told)

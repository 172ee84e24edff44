"""Absent values that were written as words: finding them in a table, refusing them, and putting nulls in their place.

Python, pandas and numpy spell a missing value "None", "nan", "NaT" or "<NA>" when somebody turns it into text. A cell that holds
one of these words alone says nothing. File names may be any word, so the columns that name files are never looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from javisc.manifests.errors import UserError
from javisc.manifests.splits import split_of

#: What an absent value looks like once it was made text.
WORDS = ("None", "nan", "NaN", "NaT", "<NA>")
#: Columns that name files, keys and datasets.
NAMES = frozenset({"path", "id", "relpath", "key", "identity", "dataset", "boxes", "refused_message", "message"})


@dataclass(frozen=True)
class Absent:
    """So many rows hold `word` in `column`, where a null was meant."""

    column: str
    word: str
    rows: int

    def __str__(self) -> str:
        return f"{self.rows} rows hold the text {self.word!r} as {self.column}, where nothing is known"


def found(frame: pl.LazyFrame | pl.DataFrame) -> list[Absent]:
    """What cells of `frame` hold an absent value's name, by column and word. One streamed pass."""
    lazy = frame.lazy()
    places = [(name, dtype, word) for name, dtype in _texts(lazy).items() for word in WORDS]
    counts = [_holds(name, dtype, word).sum().alias(str(number)) for number, (name, dtype, word) in enumerate(places)]
    if not counts:
        return []
    row = lazy.select(counts).collect(engine="streaming").row(0)
    return [Absent(name, word, rows) for (name, _, word), rows in zip(places, row, strict=True) if rows]


def refuse(frame: pl.LazyFrame | pl.DataFrame, where: str, remedy: str) -> None:
    """Raise UserError, naming column and word, if `frame` holds an absent value's name."""
    if cells := found(frame):
        raise UserError(f"{where}: {'; '.join(map(str, cells))}: {remedy}")


def without(frame: pl.LazyFrame) -> pl.LazyFrame:
    """`frame` with nulls where a cell holds an absent value's name; an entry of a list goes, and a list without entries too."""
    texts = _texts(frame)
    cleared = frame.with_columns(_cleared(name, dtype) for name, dtype in texts.items())
    if not {"text", "texts"} <= set(texts):
        return cleared
    return cleared.with_columns(text=pl.coalesce("text", pl.col("texts").list.first()))


def mend(frame: pl.LazyFrame, split: Mapping[str, float], seed: int) -> pl.LazyFrame:
    """The rows of a manifest or plan as a build without the fault would have made them.

    Absent values become nulls, and the rows whose split was such a word get the one that `split` (names and shares, from the
    build's settings; empty: none) and `seed` give their group.
    """
    lost = pl.col("split").is_in(WORDS).fill_null(False)
    known = frame.collect_schema().names()
    group = pl.coalesce(*(name for name in ("group", "source_sha256") if name in known), "key")

    def place(groups: pl.Series) -> pl.Series:
        return pl.Series([split_of(name, split, seed) for name in groups.to_list()], dtype=pl.String)

    drawn = group.map_batches(place, return_dtype=pl.String, is_elementwise=True) if split else pl.lit(None, pl.String)
    marked = frame.with_columns(__lost=lost)
    cleared = without(marked).with_columns(split=pl.when("__lost").then(drawn).otherwise("split"))
    return cleared.drop("__lost")


def word(value: Any) -> str | None:
    """A cell of any type as text, None where it says nothing: null, no number, blank, bytes that are no UTF-8, a list.

    Whole numbers that a table keeps as floats (pandas does, beside missing ones) are written without a point.
    """
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return None
    if isinstance(value, float):
        if value != value:
            return None
        value = int(value) if value.is_integer() else value
    if value is None or isinstance(value, list | tuple | dict | set):
        return None
    text = str(value)
    return text if text.strip() else None


def _texts(frame: pl.LazyFrame) -> dict[str, pl.DataType]:
    schema = frame.collect_schema()
    return {
        name: dtype
        for name, dtype in schema.items()
        if name not in NAMES and dtype in (pl.String(), pl.List(pl.String()))
    }


def _holds(name: str, dtype: pl.DataType, absent: str) -> pl.Expr:
    column = pl.col(name)
    return (column.list.contains(absent) if dtype == pl.List(pl.String) else column == absent).fill_null(False)


def _cleared(name: str, dtype: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if dtype != pl.List(pl.String):
        return pl.when(~column.is_in(WORDS)).then(column).alias(name)
    kept = column.list.eval(pl.element().filter(~pl.element().is_in(WORDS)))
    return pl.when(kept.list.len() > 0).then(kept).alias(name)

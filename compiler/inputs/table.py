"""The input table: one row per file (or per window of a file) that a build has to account for.

Everything that finds inputs (folders, lists, corpora) makes this table, captions are joined onto it, and `build` takes
it. Each of its rows ends in exactly one of manifest.parquet or rejected.parquet.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable
from typing import Any

import polars as pl

from javisc.manifests.absent import without
from javisc.manifests.errors import UserError
from javisc.manifests.schema import CARRIED, MANIFEST, Column

#: Labels that travel from the input table into KEY.json and the manifest as they are.
LABELS = tuple(column for name in CARRIED for column in MANIFEST if column.name == name)

INPUTS = (
    Column("path", pl.String(), "absolute path or URL of the source; undecodable bytes shown as \\xNN"),
    Column("raw_path", pl.Binary(), "the path's bytes where they are no UTF-8, else null"),
    Column("relpath", pl.String(), "relative to the input root, '/' between the parts; decides the key and the shard"),
    Column("id", pl.String(), "the file's name without its extension"),
    Column("source_bytes", pl.Int64(), "size of the source; null where it could not be asked"),
    Column("mtime_ns", pl.Int64(), "modification time; only tells whether a source changed between builds"),
    Column(
        "audio_path", pl.String(), "absolute path or URL of a file of its own for the sound; null: the source's sound"
    ),
    Column("audio_bytes", pl.Int64(), "size of that file; null where it could not be asked"),
    Column("audio_mtime_ns", pl.Int64(), "modification time of that file"),
    *LABELS,
    Column("window_start", pl.Float64(), "compile only from here, seconds on the sample's clock; null: from the start"),
    Column("window_end", pl.Float64(), "compile only up to here, seconds; null: to the end"),
    Column("boxes", pl.String(), "an LRS3 meta text: crop every picture to the square around its face; null: no crop"),
    Column("refused", pl.String(), "a code of compiler.reasons: goes straight to rejected.parquet, is never opened"),
    Column("refused_message", pl.String(), "why, in words"),
)
INPUT_SCHEMA = pl.Schema({column.name: column.dtype for column in INPUTS})
REQUIRED = ("path", "relpath")
#: A function that makes the table may leave tables for the dataset in this subfolder of the one it gets: they are published as
#: they are, beside the manifest.
BESIDE = "beside"
#: Tables that it leaves in LEFT are kept with the dataset's plan and lie in KEPT when the next plan is made.
LEFT, KEPT = "left", "kept"


def conform(rows: pl.LazyFrame | pl.DataFrame) -> pl.LazyFrame:
    """Bring a table to INPUT_SCHEMA: absent columns are null, `id` comes from relpath, `text` from `texts`.

    A label that is a word for an absent value ("None", "nan") is null.

    Raises UserError if `path` or `relpath` is absent, or a column is not part of the schema.
    """
    frame = rows.lazy()
    have = frame.collect_schema().names()
    if missing := [name for name in REQUIRED if name not in have]:
        raise UserError(f"the input table lacks the column {missing[0]!r}; it needs {', '.join(REQUIRED)}")
    if extra := [name for name in have if name not in INPUT_SCHEMA]:
        raise UserError(f"the input table has the unknown column {extra[0]!r}; known are {', '.join(INPUT_SCHEMA)}")
    frame = frame.select(
        [
            (pl.col(name) if name in have else pl.lit(None)).cast(dtype).alias(name)
            for name, dtype in INPUT_SCHEMA.items()
        ]
    )
    frame = without(frame)
    stem = pl.col("relpath").str.replace(r"(?s)^.*/", "").str.replace(r"(?s)(.)\.[^.]*$", "${1}")
    text = pl.coalesce(pl.col("text"), pl.col("texts").list.first())
    return frame.with_columns(
        id=pl.col("id").fill_null(stem),
        text=text,
        texts=pl.when(pl.col("texts").is_null() & text.is_not_null())
        .then(pl.concat_list(text))
        .otherwise(pl.col("texts")),
    )


def table(rows: Iterable[dict[str, Any]]) -> pl.DataFrame:
    """A frame of INPUT_SCHEMA from dictionaries; absent entries are null."""
    return pl.DataFrame(list(rows), schema=INPUT_SCHEMA)


def shown(path: bytes | str) -> str:
    """A path as text: undecodable bytes (also as surrogates) become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def undecodable(path: bytes | str) -> bytes | None:
    """The path's bytes if they are no UTF-8, else None."""
    raw = os.fsencode(path)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw
    return None


def normal_relpath(path: str) -> str:
    """A relpath in one form: '/' between the parts, no '.', '..' or leading '/'. It names a sample, opens no file."""
    return posixpath.normpath("/" + path).lstrip("/")

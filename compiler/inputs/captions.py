"""Captions: found beside the files or in a table, and joined onto the inputs before anything is planned."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.inputs.lists import MAX_FIELD, captions_of, open_bytes, plain, read_rows, typed
from javisc.compiler.inputs.local import SIDECAR
from javisc.compiler.inputs.table import INPUT_SCHEMA, LABELS, normal_relpath
from javisc.manifests.absent import word
from javisc.manifests.errors import UserError

#: What a table of captions may be joined by: the most exact first.
JOIN_BY = ("path", "relpath", "id")
#: Names under which captions are found in tables and JSON, besides `text`.
CAPTION_NAMES = ("text", "caption", "texts", "captions")
_SCHEMA = pl.Schema({"on": pl.String(), **{column.name: column.dtype for column in LABELS if column.name != "text"}})
_CHUNK = 50_000


@dataclass
class CaptionReport:
    """What matched and what did not, on either side."""

    source: str
    joined_by: str = ""
    captioned: int = 0
    without: int = 0
    unused: int = 0
    unreadable: int = 0

    def lines(self) -> list[str]:
        by = f" joined by {self.joined_by}" if self.joined_by else ""
        said = [f"captions from {self.source}{by}: {self.captioned} inputs have one, {self.without} have none"]
        if self.unused:
            said.append(f"{self.unused} captions belong to no input")
        if self.unreadable:
            said.append(f"{self.unreadable} caption files hold no caption that can be read")
        return said


def attach(
    inputs: pl.LazyFrame, spec: str | None, scratch: Path, *, require: bool = False
) -> tuple[pl.LazyFrame, CaptionReport]:
    """Join captions onto a scan (SCAN_SCHEMA) and return a table of INPUT_SCHEMA and what matched.

    spec: None for the files beside the inputs (.json, then .txt), a CSV, TSV, parquet or JSONL file with `path`, `relpath`
    or `id` and `text` or `caption`, or `tavgbench:FILE`. Where it says nothing of an input, the labels it came with stay.
    require: refuse inputs without a caption (`no_caption`). Raises UserError for a table that cannot be used.
    """
    report = CaptionReport(spec or "files beside the inputs")
    if spec is None:
        joined = _sidecars(inputs, scratch / "captions.parquet", report)
    elif spec.startswith("tavgbench:"):
        joined = _joined(inputs, _spool(tavgbench(spec.partition(":")[2]), scratch), ("id",), report)
    else:
        joined = _joined(inputs, _spool(_tabled(spec), scratch), None, report)
    joined = joined.select(INPUT_SCHEMA.names())
    if require:
        lacks = pl.col("text").is_null() & pl.col("refused").is_null()
        joined = joined.with_columns(
            refused=pl.when(lacks).then(pl.lit("no_caption")).otherwise("refused"),
            refused_message=pl.when(lacks).then(pl.lit(f"no caption in {report.source}")).otherwise("refused_message"),
        )
    counts = joined.select(has=pl.col("text").is_not_null().sum(), all=pl.len()).collect(engine="streaming")
    report.captioned = int(counts["has"][0])
    report.without = int(counts["all"][0]) - report.captioned
    return joined, report


def read_sidecar(path: str) -> list[str] | None:
    """The captions in a .txt (one a line) or .json file (`caption` or `text`, one or a list, or a list of them).

    None if the file is too long, no UTF-8, or holds none.
    """
    try:
        with open_bytes(path) as stream:
            raw = stream.read(MAX_FIELD + 1)
        if len(raw) > MAX_FIELD:
            return None
        text = raw.decode("utf-8-sig")
        if not path.lower().endswith(".json"):
            return captions_of(text.splitlines())
        return _captions_in(json.loads(text))
    except (OSError, ValueError, ImportError, RecursionError):
        return None


def _captions_in(value: Any) -> list[str] | None:
    if isinstance(value, dict):
        return next((found for name in CAPTION_NAMES if (found := captions_of(value.get(name)))), None)
    if isinstance(value, list):
        lists = [_captions_in(item) if isinstance(item, dict) else captions_of(item) for item in value]
        return [text for texts in lists if texts for text in texts] or None
    return captions_of(value)


def _sidecars(inputs: pl.LazyFrame, spool: Path, report: CaptionReport) -> pl.LazyFrame:
    """Read the file beside each input. Results go through the disk: the scan may be longer than memory."""
    pieces = []
    for number, batch in enumerate(
        inputs.select("path", *_WINDOW, SIDECAR).drop_nulls(SIDECAR).collect_batches(chunk_size=_CHUNK)
    ):
        texts = [read_sidecar(path) for path in batch[SIDECAR]]
        report.unreadable += sum(found is None for found in texts)
        piece = spool.with_name(f"sidecar-{number:06d}.parquet")
        frame = batch.select("path").with_columns(pl.Series("beside", texts, dtype=pl.List(pl.String)))
        frame.unique("path").write_parquet(piece)
        pieces.append(piece)
    if not pieces:
        return inputs
    beside = pl.scan_parquet(pieces).unique("path")
    both = pl.coalesce("beside", "texts")
    return (
        inputs.join(beside, on="path", how="left", maintain_order="left")
        .with_columns(text=pl.coalesce(pl.col("beside").list.first(), "text"), texts=both)
        .drop("beside")
    )


_WINDOW = ("window_start", "window_end")


def tavgbench(path: str) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Rows of TAVGBench's release_captions.txt: `{video}.mp4 caption words…` a line. Raises UserError."""
    try:
        stream = open_bytes(path)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"--captions tavgbench:{path}: cannot be read: {error}") from error
    with stream:
        while raw := stream.readline(MAX_FIELD):
            name, _, caption = raw.decode("utf-8", "replace").strip().partition(" ")
            if name.lower().endswith(".mp4") and caption.strip():
                yield {"id": name[:-4]}, {"texts": [caption.strip()]}


def _tabled(path: str) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
    """Rows of a caption table: what they can be joined by, and their labels."""
    named = False
    for row in read_rows(path):
        if not named:
            if not any(name in row for name in JOIN_BY):
                raise UserError(f"--captions {path} has no column to join by: it needs one of {', '.join(JOIN_BY)}")
            if not any(name in row for name in (*CAPTION_NAMES, "audio_text")):
                raise UserError(f"--captions {path} has no captions: it needs a column {' or '.join(CAPTION_NAMES)}")
            named = True
        ids = {name: plain(text) for name in JOIN_BY if (text := word(row.get(name))) is not None}
        labels = {name: typed(name, row.get(name)) for name in _SCHEMA if name not in ("on", "texts")}
        labels["texts"] = _captions_in({name: row.get(name) for name in CAPTION_NAMES})
        yield ids, labels


def _spool(rows: Iterator[tuple[dict[str, str], dict[str, Any]]], scratch: Path) -> Callable[[str], pl.LazyFrame]:
    """Write caption rows to disk; return a function that gives them by the column they are joined by."""
    schema = pl.Schema({**{name: pl.String() for name in JOIN_BY}, **_SCHEMA})
    pieces: list[Path] = []
    batch: list[dict[str, Any]] = []

    def write() -> None:
        piece = scratch / f"caption-table-{len(pieces):06d}.parquet"
        pl.DataFrame(batch, schema=schema).write_parquet(piece)
        pieces.append(piece)
        batch.clear()

    for ids, labels in rows:
        batch.append({**ids, **labels})
        if len(batch) >= _CHUNK:
            write()
    write()
    return lambda name: pl.scan_parquet(pieces).drop("on").with_columns(on=_joinable(name)).drop_nulls("on")


def _joinable(name: str) -> pl.Expr:
    """A column in the form it is compared in: ids without a media file's extension, relpaths normalised."""
    column = pl.col(name)
    if name == "id":
        return column.str.replace(
            r"(?i)(.)\.(mp4|avi|mov|mkv|m2ts|ts|webm|m4v|mpe?g|wav|flac|mp3|ogg|opus|m4a)$", "${1}"
        )
    if name == "relpath":
        plain = column.str.contains(r"(^|/)\.{0,2}(/|$)")
        return pl.when(plain).then(column.map_elements(normal_relpath, return_dtype=pl.String)).otherwise(column)
    return (
        pl.when(column.str.contains("://"))
        .then(column)
        .otherwise(column.map_elements(os.path.abspath, return_dtype=pl.String))
    )


def _joined(
    inputs: pl.LazyFrame, table: Callable[[str], pl.LazyFrame], by: tuple[str, ...] | None, report: CaptionReport
) -> pl.LazyFrame:
    """Left-join the labels by the column that matches most inputs; several captions of one input become a list."""
    best: tuple[int, str] = (-1, "id")
    for name in by or JOIN_BY:
        matches = inputs.with_columns(on=_input_key(name)).join(table(name), on="on", how="semi")
        count = int(matches.select(pl.len()).collect(engine="streaming").item())
        if count > best[0]:
            best = (count, name)
    count, name = best
    report.joined_by = name
    labels = (
        table(name)
        .with_row_index("order")
        .sort("order")
        .group_by("on", maintain_order=True)
        .agg(
            pl.col("texts").explode().drop_nulls(),
            *(pl.col(label).drop_nulls().first() for label in _SCHEMA if label not in ("on", "texts")),
        )
        .with_columns(texts=pl.when(pl.col("texts").list.len() > 0).then("texts"))
    )
    keyed = inputs.with_columns(on=_input_key(name))
    report.unused = int(labels.join(keyed, on="on", how="anti").select(pl.len()).collect(engine="streaming").item())
    joined = keyed.join(labels, on="on", how="left", suffix="_table", maintain_order="left")
    given = [pl.coalesce(f"{label}_table", label).alias(label) for label in _SCHEMA if label != "on"]
    texts = pl.coalesce("texts_table", "texts")
    return joined.with_columns(
        *given, text=pl.when(pl.col("texts_table").is_not_null()).then(texts.list.first()).otherwise("text")
    )


def _input_key(name: str) -> pl.Expr:
    return pl.col(name) if name == "relpath" else _joinable(name) if name == "id" else pl.col(name)

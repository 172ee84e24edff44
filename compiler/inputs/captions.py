"""Captions: found beside the files or in a table, and joined onto the inputs before anything is planned."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.inputs.beside import CaptionReport, beside_them
from javisc.compiler.inputs.joining import joinable
from javisc.compiler.inputs.lists import folder_of, resolved
from javisc.compiler.inputs.table import INPUT_SCHEMA, LABELS
from javisc.manifests.errors import UserError
from javisc.manifests.partitions import ORDER, Partitions, by, numbered
from javisc.manifests.rows import (
    CAPTION_NAMES,
    MAX_FIELD,
    Faults,
    captions_of_row,
    cells,
    open_bytes,
    raw_lines,
    read_rows,
)
from javisc.manifests.spool import spool
from javisc.manifests.urls import is_url

#: What a table of captions may be joined by: the most exact first.
JOIN_BY = ("path", "relpath", "id")
_SCHEMA = pl.Schema({"on": pl.String(), **{column.name: column.dtype for column in LABELS if column.name != "text"}})
_CELLS = {name: name for name in (*JOIN_BY, *_SCHEMA) if name not in ("on", "texts")}
_CHUNK = 50_000
#: Rows of a part of a join, of the inputs and of the table.
ROWS = 100_000
#: How a spec begins that names TAVGBench's release.
TAVGBENCH = "tavgbench:"


def attach(
    inputs: pl.LazyFrame, spec: str | None, scratch: Path, *, require: bool = False, table: CaptionTable | None = None
) -> tuple[pl.LazyFrame, CaptionReport]:
    """Join captions onto a scan (SCAN_SCHEMA) and return a table of INPUT_SCHEMA and what matched.

    spec: None for the files beside the inputs (.json, then .txt) that came without words of their own; a CSV, TSV, parquet or
    JSONL file with `path`, `relpath` or `id` and `text` or `caption`; or `tavgbench:FILE`. Where it says nothing of an input,
    the labels it came with stay. require: refuse inputs without a caption (`no_caption`). table: the spec's, if it has been
    read. Raises UserError for a table that cannot be used, matches nothing, or names several inputs by one name.
    """
    report = CaptionReport(spec or "files beside the inputs")
    if spec is None:
        if inputs.select(pl.col("text").is_not_null().any()).collect(engine="streaming").item():
            report.source = "the list of inputs and files beside them"
        joined = beside_them(inputs, scratch, report)
    else:
        table = table or CaptionTable.read(spec, scratch)
        joined = _joined(inputs, table, ("id",) if spec.startswith(TAVGBENCH) else JOIN_BY, report, scratch)
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


def tavgbench(path: str) -> Iterator[dict[str, Any]]:
    """Rows of TAVGBench's release_captions.txt: `{video}.mp4 caption words…` a line. Raises UserError."""
    try:
        stream = open_bytes(path)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"--captions tavgbench:{path}: cannot be read: {error}") from error
    with stream:
        for raw in raw_lines(stream, MAX_FIELD):
            name, _, caption = raw.decode("utf-8", "replace").strip().partition(" ")
            if name.lower().endswith(".mp4") and caption.strip():
                yield {"id": name[:-4], "texts": [caption.strip()]}


def _tabled(path: str) -> Iterator[dict[str, Any]]:
    """Rows of a caption table: what they can be joined by, and their labels."""
    faults, folder = Faults(f"--captions {path}"), folder_of(path)
    captioned = lines = False
    for line, row in read_rows(path, faults):
        lines = True
        captioned = captioned or any(name in row for name in (*CAPTION_NAMES, "audio_text"))
        if not any(name in row for name in JOIN_BY):
            raise UserError(
                f"--captions {path} has no column to join by (line {line}): it needs one of {', '.join(JOIN_BY)}, and has "
                f"{', '.join(map(repr, list(row)[:8]))}"
            )
        found = cells(row, _CELLS, line, faults)
        if "path" in found:
            found["path"] = resolved(found["path"], folder)
            found["path"] = found["path"] if is_url(found["path"]) else os.path.normpath(found["path"])
        yield {**found, "texts": captions_of_row(row, line, faults)}
    faults.check()
    if lines and not captioned:
        raise UserError(f"--captions {path} has no captions: it needs a column {' or '.join(CAPTION_NAMES)}")


class CaptionTable:
    """Caption rows on disk, by the column that they are joined by."""

    def __init__(self, rows: Iterator[dict[str, Any]], scratch: Path, spec: str) -> None:
        self.spec = spec
        schema = pl.Schema({**{name: pl.String() for name in JOIN_BY}, **_SCHEMA})
        self.pieces: list[Path] = []
        self.height = 0
        batch: list[dict[str, Any]] = []

        def write() -> None:
            piece = scratch / f"caption-table-{len(self.pieces):06d}.parquet"
            pl.DataFrame(batch, schema=schema).write_parquet(piece)
            self.pieces.append(piece)
            self.height += len(batch)
            batch.clear()

        for row in rows:
            batch.append(row)
            if len(batch) >= _CHUNK:
                write()
        write()

    @classmethod
    def read(cls, spec: str, scratch: Path) -> CaptionTable:
        """The table that `--captions` names (see attach). Raises UserError for one that cannot be used."""
        found = tavgbench(spec.removeprefix(TAVGBENCH)) if spec.startswith(TAVGBENCH) else _tabled(spec)
        return cls(found, scratch, spec)

    def by(self, name: str) -> pl.LazyFrame:
        """The rows that have the column, which is called `on`."""
        return pl.scan_parquet(self.pieces, glob=False).drop("on").with_columns(on=joinable(name)).drop_nulls("on")

    def example(self) -> tuple[str, str] | None:
        """The first column that a row can be joined by, and its value."""
        for name in JOIN_BY:
            found = self.by(name).select("on").head(1).collect()
            if found.height:
                return name, str(found["on"][0])
        return None


@dataclass
class _Unclear:
    """What its parts say of a table: the first name that stands for several inputs, and the first in several splits."""

    several: tuple[str, list[str]] | None = None
    torn: tuple[int, str, list[str]] | None = None


def _joined(
    inputs: pl.LazyFrame, table: CaptionTable, by_names: tuple[str, ...], report: CaptionReport, scratch: Path
) -> pl.LazyFrame:
    """Left-join the labels by the column that matches most inputs; several captions of one input become a list.

    Part by part: what has one name lies in one part, of the inputs and of the table.
    """
    height = int(inputs.select(pl.len()).collect(engine="streaming").item())
    count = max(1, -(-max(height, table.height) // ROWS))
    best: tuple[int, str] = (-1, by_names[-1])
    for name in by_names:
        if (matches := _matches(inputs, table, name, scratch / f"matches-{name}", count)) > best[0]:
            best = (matches, name)
    matches, name = best
    report.joined_by = name
    if matches == 0:
        _refuse_stranger(inputs, table)
    schema = pl.Schema({**inputs.collect_schema(), "on": pl.String()})
    keyed = _parts(inputs.with_columns(on=joinable(name)), scratch / "uncaptioned", count, schema)
    labels = Partitions(scratch / "labels", count, pl.Schema({**_SCHEMA, "order": pl.UInt32()}))
    for batch in numbered(table.by(name), _CHUNK):
        labels.add(batch.rename({ORDER: "order"}), by("on"))
    report.unused = table.height - labels.height  # rows without the name
    unclear = _Unclear()

    def joined() -> Iterator[pl.DataFrame]:
        for some, said in zip(keyed, labels, strict=True):
            grouped = _grouped(said)
            _look(some, grouped, name, unclear)
            report.unused += int(grouped.join(some, on="on", how="anti")["rows"].sum())
            both = some.join(
                grouped.drop("splits", "rows", "order"), on="on", how="left", suffix="_table", maintain_order="left"
            )
            given = [pl.coalesce(f"{label}_table", label).alias(label) for label in _SCHEMA if label != "on"]
            texts = pl.coalesce("texts_table", "texts")
            text = pl.when(pl.col("texts_table").is_not_null()).then(texts.list.first()).otherwise("text")
            yield both.with_columns(*given, text=text).select(schema.names())

    captioned = spool(joined(), scratch / "captioned", schema)
    _refuse_unclear(unclear, table, name)
    return captioned


def _parts(frame: pl.LazyFrame, folder: Path, count: int, schema: pl.Schema) -> Partitions:
    """The rows of a frame by their `on`."""
    parts = Partitions(folder, count, schema)
    for batch in frame.select(schema.names()).collect_batches(chunk_size=_CHUNK, maintain_order=True):
        parts.add(batch, by("on"))
    return parts


def _matches(inputs: pl.LazyFrame, table: CaptionTable, name: str, folder: Path, count: int) -> int:
    """How many inputs the table knows by that name."""
    schema = pl.Schema({"on": pl.String()})
    known = _parts(table.by(name), folder / "table", count, schema)
    if not known.height:
        return 0
    asked = _parts(inputs.select(on=joinable(name)), folder / "inputs", count, schema)
    return sum(some.join(said, on="on", how="semi").height for some, said in zip(asked, known, strict=True))


def _grouped(rows: pl.DataFrame) -> pl.DataFrame:
    """The labels of each name, in the order of the table."""
    return (
        rows.sort("order")
        .group_by("on", maintain_order=True)
        .agg(
            pl.col("texts").explode().drop_nulls(),
            *(pl.col(label).drop_nulls().first() for label in _SCHEMA if label not in ("on", "texts")),
            pl.col("order").first(),
            splits=pl.col("split").drop_nulls().unique(maintain_order=True),
            rows=pl.len(),
        )
        .with_columns(texts=pl.when(pl.col("texts").list.len() > 0).then("texts"))
    )


def _look(keyed: pl.DataFrame, labels: pl.DataFrame, name: str, unclear: _Unclear) -> None:
    """Note the names of a part that stand for several inputs or in several splits."""
    if name != "path":
        usable = keyed.filter(pl.col("refused").is_null()).join(labels.select("on"), on="on", how="semi")
        paths = usable.group_by("on").agg(pl.col("path").unique().sort().head(3))
        found = paths.filter(pl.col("path").list.len() > 1).sort("on").head(1)
        if found.height and (unclear.several is None or found["on"][0] < unclear.several[0]):
            unclear.several = (found["on"][0], found["path"][0].to_list())
    torn = labels.filter(pl.col("splits").list.len() > 1).select("order", "on", "splits").head(1).rows()
    if torn and (unclear.torn is None or torn[0][0] < unclear.torn[0]):
        unclear.torn = torn[0]


def _refuse_stranger(inputs: pl.LazyFrame, table: CaptionTable) -> None:
    """Raise UserError: the table matches nothing."""
    if not (any_input := inputs.select("path", "relpath", "id").head(1).collect()).height:
        return
    example = table.example()
    if example is None:
        raise UserError(f"--captions {table.spec} has no rows: nothing can be joined")
    column, value = example
    raise UserError(
        f"--captions {table.spec}: none of its {table.height} rows belongs to an input: by {column} it names "
        f"{value[:200]!r}, an input is {any_input[column][0][:200]!r}; mend the column, or give another of "
        f"{', '.join(JOIN_BY)}"
    )


def _refuse_unclear(unclear: _Unclear, table: CaptionTable, name: str) -> None:
    """Raise UserError where a name stands for several inputs or in several splits."""
    if unclear.several is not None:
        on, paths = unclear.several
        raise UserError(
            f"--captions {table.spec}: the {name} {on!r} stands for several inputs ({' and '.join(paths[:2])}): give the column "
            f"{'relpath or path' if name == 'id' else 'path'}, which tells them apart"
        )
    if unclear.torn is not None:
        _, on, splits = unclear.torn
        raise UserError(
            f"--captions {table.spec}: {name} {on!r} stands in several splits ({', '.join(splits[:4])}): give it one"
        )

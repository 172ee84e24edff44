"""Captions: found beside the files or in a table, and joined onto the inputs before anything is planned."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.inputs.lists import folder_of, resolved
from javisc.compiler.inputs.local import SIDECAR
from javisc.compiler.inputs.sidecars import NoCaption, read_sidecar
from javisc.compiler.inputs.table import INPUT_SCHEMA, LABELS, normal_relpath
from javisc.manifests.errors import UserError
from javisc.manifests.rows import CAPTION_NAMES, MAX_FIELD, Faults, captions_in, cells, open_bytes, read_rows
from javisc.manifests.urls import is_url

#: What a table of captions may be joined by: the most exact first.
JOIN_BY = ("path", "relpath", "id")
_SCHEMA = pl.Schema({"on": pl.String(), **{column.name: column.dtype for column in LABELS if column.name != "text"}})
_CELLS = {name: name for name in (*JOIN_BY, *_SCHEMA) if name not in ("on", "texts")}
_CHUNK = 50_000
#: Sidecars in an object store are asked for so many at a time; each takes a round trip.
_AT_ONCE = 16
#: Names that a line shows.
_SHOWN = 3
#: How a spec begins that names TAVGBench's release.
TAVGBENCH = "tavgbench:"


@dataclass
class CaptionReport:
    """What matched and what did not, on either side. `unreadable`: caption files that hold no caption; `why`: some of them."""

    source: str
    joined_by: str = ""
    captioned: int = 0
    without: int = 0
    unused: int = 0
    unreadable: int = 0
    why: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        by = f" joined by {self.joined_by}" if self.joined_by else ""
        said = [f"captions from {self.source}{by}: {self.captioned} inputs have one, {self.without} have none"]
        if self.unused:
            said.append(f"{self.unused} captions belong to no input")
        if self.unreadable:
            more = ", …" if self.unreadable > len(self.why) else ""
            said.append(
                f"{self.unreadable} caption files hold no caption that can be read ({'; '.join(self.why)}{more})"
            )
        return said


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
        joined = _sidecars(inputs, scratch / "captions.parquet", report)
    else:
        table = table or CaptionTable.read(spec, scratch)
        joined = _joined(inputs, table, ("id",) if spec.startswith(TAVGBENCH) else JOIN_BY, report)
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


def _sidecars(inputs: pl.LazyFrame, spool: Path, report: CaptionReport) -> pl.LazyFrame:
    """Read the file beside each input without words. Results go through the disk: the scan may be longer than memory."""
    pieces = []
    wordless = inputs.filter(pl.col("text").is_null(), pl.col(SIDECAR).is_not_null()).select("path", SIDECAR)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, batch in enumerate(wordless.collect_batches(chunk_size=_CHUNK)):
            files = batch.unique("path", maintain_order=True)
            names = [os.fsdecode(name) for name in files[SIDECAR]]
            run = pool.map if names and is_url(names[0]) else map
            texts = list(run(_read, names))
            for name, found in zip(names, texts, strict=True):
                if isinstance(found, NoCaption):
                    report.unreadable += 1
                    if len(report.why) < _SHOWN:
                        shown = os.fsencode(os.path.basename(name)).decode("utf-8", "backslashreplace")  # noqa: PTH119
                        report.why.append(f"{shown} {found}")
            beside = [None if isinstance(found, NoCaption) else found for found in texts]
            piece = spool.with_name(f"sidecar-{number:06d}.parquet")
            files.select("path").with_columns(pl.Series("beside", beside, dtype=pl.List(pl.String))).write_parquet(
                piece
            )
            pieces.append(piece)
    if not pieces:
        return inputs
    beside_them = pl.scan_parquet(pieces).unique("path")
    own = pl.col("text").is_not_null()
    return (
        inputs.join(beside_them, on="path", how="left", maintain_order="left")
        .with_columns(
            text=pl.when(own).then("text").otherwise(pl.col("beside").list.first()),
            texts=pl.when(own).then("texts").otherwise("beside"),
        )
        .drop("beside")
    )


def _read(path: str) -> list[str] | NoCaption:
    try:
        return read_sidecar(path)
    except NoCaption as reason:
        return reason


def tavgbench(path: str) -> Iterator[dict[str, Any]]:
    """Rows of TAVGBench's release_captions.txt: `{video}.mp4 caption words…` a line. Raises UserError."""
    try:
        stream = open_bytes(path)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"--captions tavgbench:{path}: cannot be read: {error}") from error
    with stream:
        while raw := stream.readline(MAX_FIELD):
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
                f"--captions {path} has no column to join by (line {line}): it needs one of {', '.join(JOIN_BY)}"
            )
        found = cells(row, _CELLS, line, faults)
        if "path" in found:
            found["path"] = resolved(found["path"], folder)
            found["path"] = found["path"] if is_url(found["path"]) else os.path.normpath(found["path"])
        yield {**found, "texts": captions_in({name: row.get(name) for name in CAPTION_NAMES})}
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
        return pl.scan_parquet(self.pieces).drop("on").with_columns(on=_joinable(name)).drop_nulls("on")

    def example(self) -> tuple[str, str] | None:
        """The first column that a row can be joined by, and its value."""
        for name in JOIN_BY:
            found = self.by(name).select("on").head(1).collect()
            if found.height:
                return name, str(found["on"][0])
        return None


def _joinable(name: str) -> pl.Expr:
    """A column in the form it is compared in: ids without a media file's extension, relpaths and paths in one form."""
    column = pl.col(name)
    if name == "id":
        return column.str.replace(
            r"(?i)(.)\.(mp4|avi|mov|mkv|m2ts|ts|webm|m4v|mpe?g|wav|flac|mp3|ogg|opus|m4a|aac|wma|aiff?)$", "${1}"
        )
    odd = column.str.contains(r"(^|/)\.{0,2}(/|$)") if name == "relpath" else column.str.contains(r"/\.{0,2}(/|$)")
    one: Callable[[str], str] = normal_relpath if name == "relpath" else os.path.normpath
    odd = odd & ~column.str.contains("://", literal=True)
    return pl.when(odd).then(column.map_elements(one, return_dtype=pl.String)).otherwise(column)


def _joined(inputs: pl.LazyFrame, table: CaptionTable, by: tuple[str, ...], report: CaptionReport) -> pl.LazyFrame:
    """Left-join the labels by the column that matches most inputs; several captions of one input become a list."""
    best: tuple[int, str] = (-1, by[-1])
    for name in by:
        matches = inputs.with_columns(on=_joinable(name)).join(table.by(name), on="on", how="semi")
        count = int(matches.select(pl.len()).collect(engine="streaming").item())
        if count > best[0]:
            best = (count, name)
    count, name = best
    report.joined_by = name
    labels = (
        table.by(name)
        .with_row_index("order")
        .sort("order")
        .group_by("on", maintain_order=True)
        .agg(
            pl.col("texts").explode().drop_nulls(),
            *(pl.col(label).drop_nulls().first() for label in _SCHEMA if label not in ("on", "texts")),
            splits=pl.col("split").drop_nulls().unique(maintain_order=True),
            rows=pl.len(),
        )
        .with_columns(texts=pl.when(pl.col("texts").list.len() > 0).then("texts"))
        .collect(engine="streaming")
        .lazy()
    )
    keyed = inputs.with_columns(on=_joinable(name))
    _check(keyed, labels, table, name, count)
    left = labels.join(keyed, on="on", how="anti").select(pl.col("rows").sum()).collect(engine="streaming").item()
    nameless = table.height - int(table.by(name).select(pl.len()).collect(engine="streaming").item())
    report.unused = int(left or 0) + nameless
    joined = keyed.join(labels.drop("splits", "rows"), on="on", how="left", suffix="_table", maintain_order="left")
    given = [pl.coalesce(f"{label}_table", label).alias(label) for label in _SCHEMA if label != "on"]
    texts = pl.coalesce("texts_table", "texts")
    return joined.with_columns(
        *given, text=pl.when(pl.col("texts_table").is_not_null()).then(texts.list.first()).otherwise("text")
    )


def _check(keyed: pl.LazyFrame, labels: pl.LazyFrame, table: CaptionTable, name: str, count: int) -> None:
    """Raise UserError where the table matches nothing, or one of its names stands for several inputs or in several splits."""
    if count == 0 and (any_input := keyed.select("path", "relpath", "id").head(1).collect()).height:
        example = table.example()
        if example is None:
            raise UserError(f"--captions {table.spec} has no rows: nothing can be joined")
        column, value = example
        raise UserError(
            f"--captions {table.spec}: none of its {table.height} rows belongs to an input: by {column} it names "
            f"{value[:200]!r}, an input is {any_input[column][0][:200]!r}; mend the column, or give another of "
            f"{', '.join(JOIN_BY)}"
        )
    if name != "path":
        usable = keyed.filter(pl.col("refused").is_null()).join(labels.select("on"), on="on", how="semi")
        several = (
            usable.group_by("on").agg(pl.col("path").unique().sort().head(3)).filter(pl.col("path").list.len() > 1)
        )
        found = several.sort("on").head(1).collect(engine="streaming")
        if found.height:
            paths = " and ".join(found["path"][0].to_list()[:2])
            raise UserError(
                f"--captions {table.spec}: the {name} {found['on'][0]!r} stands for several inputs ({paths}): give the column "
                f"{'relpath or path' if name == 'id' else 'path'}, which tells them apart"
            )
    torn = labels.filter(pl.col("splits").list.len() > 1).head(1).collect(engine="streaming")
    if torn.height:
        raise UserError(
            f"--captions {table.spec}: {name} {torn['on'][0]!r} stands in several splits "
            f"({', '.join(torn['splits'][0].to_list()[:4])}): give it one"
        )

"""`javisc annotate`: captions, scores, labels of a table become a field of a dataset; no base byte changes."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import polars as pl

from javisc.compiler.fields.long import LongTable
from javisc.compiler.fields.sources import long_source
from javisc.compiler.fields.table import held, joined, name_of, read
from javisc.compiler.store.fields import OF, FieldWriter, undo
from javisc.manifests.errors import UserError
from javisc.manifests.fields import NAME, open_field
from javisc.manifests.io import Dataset
from javisc.manifests.rows import open_bytes
from javisc.manifests.urls import is_url

OPTION = "annotate"


@dataclass(frozen=True)
class Annotated:
    """What became of a table: samples annotated of all, by which column, rows that belong to none, columns."""

    name: str
    samples: int
    of: int
    by: str
    unused: int
    columns: tuple[str, ...]


def annotate(
    dataset: str, table: str, *, by: str | None = None, name: str | None = None, keep_text: bool = False
) -> Annotated:
    """Join a CSV, TSV, parquet or JSONL table onto the samples of a dataset, as the field `name` and columns of the manifest.

    by: key, path, relpath or id; None: what matches most samples. name: None takes the table's own. A caption becomes `text` and
    the first of `texts`; with keep_text it becomes the column NAME_text alone. Run again after a kill, it goes on; a table that
    was changed since needs another name. Raises UserError.
    """
    chosen = name or name_of(table)
    if name is not None and not NAME.fullmatch(name):
        raise UserError(f"--as {name!r}: a field's name is a-z, 0-9 and _, 64 of them at most, a letter first")
    opened = Dataset.open(dataset)
    if opened.bare or "datasets" in opened.header:
        raise UserError(f"{dataset} is a view or a table: annotate the dataset that holds its samples")
    with tempfile.TemporaryDirectory(prefix="javisc-annotate-") as folder:
        rows = _rows(table, opened, by, Path(folder))
        make = _Making(rows, opened, table, chosen, keep_text)
        columns = make.columns()
        settings = {"table_sha256": _digest(table), "by": rows.by, "keep_text": keep_text}
        made_by = {"command": "annotate", "table": table}
        writing = FieldWriter(dataset, chosen, columns=columns, settings=settings, made_by=made_by)
        with writing as writer, ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(make.part, 0)
            for number in range(len(rows)):
                part = ahead.result()
                if number + 1 < len(rows):  # it is made ready while this one is written
                    ahead = pool.submit(make.part, number + 1)
                writer.commit_rows(part)
    field = open_field(opened.folder, chosen)
    total = int(field.header["of"])
    return Annotated(chosen, field.header["counts"]["samples"], total, rows.by, rows.unused, tuple(columns))


class _Rows(Protocol):
    """A table's rows joined to samples, in parts: what joined them, how many belong to none, whether names were repeated."""

    by: str
    unused: int
    repeated: bool

    def __len__(self) -> int: ...

    def part(self, number: int) -> pl.DataFrame: ...


@dataclass
class _Whole:
    """A table that is short: one part."""

    rows: pl.DataFrame
    by: str
    unused: int
    repeated: bool = False  # what names had to say is known

    def __len__(self) -> int:
        return 1

    def part(self, number: int) -> pl.DataFrame:
        return self.rows


def _rows(table: str, dataset: Dataset, by: str | None, folder: Path) -> _Rows:
    manifest = dataset.manifest()
    if (source := long_source(table, OPTION, folder / "rows")) is not None:
        return LongTable(source, manifest, by, folder)
    return _Whole(*joined(read(table, OPTION), manifest, by, table, OPTION))


class _Making:
    """What a field says of the samples, part by part, with types that the manifest's columns of those names have."""

    def __init__(self, rows: _Rows, dataset: Dataset, table: str, name: str, keep_text: bool) -> None:
        self.rows, self.table, self.name, self.keep_text = rows, table, name, keep_text
        self.have = dataset.manifest().collect_schema()
        self.places = {
            column
            for field in dataset.fields()
            if field.member != "json"
            for column in field.overlay(field.table().collect_schema()).values()
        }
        #: Columns that say nothing of any sample, which fit any type.
        self.empty: frozenset[str] = frozenset()
        #: The first part, from `columns` until it is asked for.
        self._first: pl.DataFrame | None = None

    def columns(self) -> dict[str, pl.DataType]:
        """The field's columns, once it is certain that all parts can be made. Raises UserError where one cannot."""
        first = self._captioned(self.rows.part(0))
        for column in first.columns:
            if column in self.places:
                raise UserError(f"{OPTION} {self.table}: column {column} is where a field's members lie: rename it")
        other = self._other(first)
        if other:
            said = {column for part in self._parts() for column in other if part[column].count()}
            self.empty = frozenset(other) - said
        if other or self.rows.repeated:
            for part in self._parts():
                self._fitted(part)
        self._first = self._fitted(first)
        return {name: dtype for name, dtype in self._first.schema.items() if name not in ("key", "shard", OF)}

    def part(self, number: int) -> pl.DataFrame:
        """The rows of a part, after `columns`. Raises UserError."""
        if number == 0 and self._first is not None:
            made, self._first = self._first, None
            return made
        return self._fitted(self._captioned(self.rows.part(number)))

    def _parts(self) -> Iterator[pl.DataFrame]:
        return (self._captioned(self.rows.part(number)) for number in range(len(self.rows)))

    def _captioned(self, rows: pl.DataFrame) -> pl.DataFrame:
        if "texts" in rows.columns:
            rows = rows.with_columns(text=pl.col("texts").list.first())
            return rows.rename({"text": f"{self.name}_text"}).drop("texts") if self.keep_text else rows
        if self.keep_text:
            raise UserError(
                f"--keep-text: {self.table} has no captions, and leaves text alone anyway: leave the option out"
            )
        return rows

    def _other(self, rows: pl.DataFrame) -> list[str]:
        """Columns of another type than the manifest's."""
        own = ("key", "shard", OF)
        return [n for n, dtype in rows.schema.items() if n not in own and n in self.have and self.have[n] != dtype]

    def _fitted(self, rows: pl.DataFrame) -> pl.DataFrame:
        for column in self._other(rows):
            dtype, wanted = rows.schema[column], self.have[column]
            made, bad = held(rows[column], wanted)
            if bad.any() or not (column in self.empty or (made.dtype.is_numeric() and dtype.is_numeric())):
                raise UserError(
                    f"{OPTION} {self.table}: column {column} is {dtype}, the manifest's is {wanted}: rename or mend it"
                )
            rows = rows.with_columns(made)
        return rows


def _digest(table: str) -> str:
    with open_bytes(table) as stream:
        digest = hashlib.sha256()
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def take_back(dataset: str, name: str) -> None:
    """Remove a field: the manifest is what it was without it. Raises UserError."""
    if is_url(dataset) is False and not Path(dataset).is_dir():
        raise UserError(f"{dataset} is not a folder: give a dataset's folder")
    with tempfile.TemporaryDirectory(prefix="javisc-undo-") as folder:
        undo(dataset, name, Path(folder))

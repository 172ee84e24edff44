"""`javisc annotate`: captions, scores, labels of a table become a field of a dataset; no base byte changes."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import polars as pl

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
    rows, joined_by, unused = joined(read(table, OPTION), opened.manifest(), by, table, OPTION)
    if "texts" in rows.columns:
        rows = rows.with_columns(text=pl.col("texts").list.first())
        if keep_text:
            rows = rows.rename({"text": f"{chosen}_text"}).drop("texts")
    elif keep_text:
        raise UserError(f"--keep-text: {table} has no captions, and leaves text alone anyway: leave the option out")
    rows = _fitted(rows, opened, table)
    columns = {column: dtype for column, dtype in rows.schema.items() if column not in ("key", "shard", OF)}
    settings = {"table_sha256": _digest(table), "by": joined_by, "keep_text": keep_text}
    made_by = {"command": "annotate", "table": table}
    with FieldWriter(dataset, chosen, columns=columns, settings=settings, made_by=made_by) as writer:
        writer.commit_rows(rows)
    field = open_field(opened.folder, chosen)
    total = int(field.header["of"])
    return Annotated(chosen, field.header["counts"]["samples"], total, joined_by, unused, tuple(columns))


def _fitted(rows: pl.DataFrame, dataset: Dataset, table: str) -> pl.DataFrame:
    """The rows with the types that the manifest's columns of those names have. Raises UserError where they cannot have them."""
    have = dataset.manifest().collect_schema()
    places = {
        column
        for field in dataset.fields()
        if field.member != "json"
        for column in field.overlay(field.table().collect_schema()).values()
    }
    for column, dtype in rows.schema.items():
        if column in places:
            raise UserError(f"{OPTION} {table}: column {column} is where a field's members lie: rename it")
        if column in ("key", "shard", OF) or column not in have or have[column] == dtype:
            continue
        empty = rows[column].null_count() == rows.height
        made, bad = held(rows[column], have[column])
        if bad.any() or not (empty or (made.dtype.is_numeric() and dtype.is_numeric())):
            raise UserError(
                f"{OPTION} {table}: column {column} is {dtype}, the manifest's is {have[column]}: rename or mend it"
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

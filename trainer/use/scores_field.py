"""What `javisc score` says of a dataset, as a field of it: columns that a later build keeps and `annotate --undo` takes back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.store.fields import OF, FieldWriter, drop
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.manifests.errors import UserError
from javisc.manifests.fields import check_name
from javisc.manifests.io import Dataset
from javisc.manifests.schema import SCORES_SCHEMA

#: The field's name where nothing is said.
NAME = "scores"
#: The field's setting that says what made the scores.
MADE_BY = "scored"


def check_field(dataset: Dataset, name: str) -> None:
    """Raise UserError, before anything is computed, if the scores cannot become that field."""
    check_name(name, "--as")
    for field in dataset.fields():
        if field.name == name and MADE_BY not in field.header.get("settings", {}):
            raise UserError(
                f"--as {name}: the dataset has a field of that name that something else made: give another name"
            )


def write_field(
    dataset: Dataset,
    name: str,
    scores: pl.LazyFrame,
    given: Sequence[str],
    identity: Mapping[str, Any],
    made_by: Mapping[str, Any],
    scratch: Path,
    same: Callable[[], bool],
) -> None:
    """Write the scores as the field `name`, in place of what it held; columns that this model does not give stay as they were.

    scores: rows of the `given` columns in the manifest's order. same: asked under the dataset's lock, false where the dataset has
    changed since it was read. Killed in between, the same command writes it again. Raises UserError.
    """
    base = Store(dataset.path, scratch)
    with locked(base):
        if not same():
            raise UserError(f"{dataset.path} has changed meanwhile: run the same command again, it scores what is new")
        keys = dataset.manifest().select("key", "shard", pl.col("source_sha256").alias(OF))
        rows = pl.concat([keys, scores.select(given)], how="horizontal").collect(engine="streaming")
        before = next((field for field in dataset.fields() if field.name == name), None)
        other = [column for column in SCORES_SCHEMA if column not in given]
        was = pl.DataFrame(schema={"key": pl.String, OF: pl.String, **SCORES_SCHEMA})
        if before is not None:
            was = before.table().collect(engine="streaming")
        rows = rows.join(was.select("key", OF, *other), on=["key", OF], how="left", maintain_order="left")
        rows = rows.filter(~pl.all_horizontal(pl.col(SCORES_SCHEMA.names()).is_null()))
        rows = rows.select("key", "shard", OF, *SCORES_SCHEMA).sort("shard", "key")
        if not rows.height:
            return
        settings = {MADE_BY: json.loads(json.dumps(dict(identity)))}
        if before is not None:
            if before.header["settings"].get(MADE_BY) == settings[MADE_BY] and was.select(rows.columns).equals(rows):
                return
            drop(base, name)
        with FieldWriter(
            dataset.path, name, columns=dict(SCORES_SCHEMA), settings=settings, made_by=made_by, held=True
        ) as writer:
            writer.commit_rows(rows)

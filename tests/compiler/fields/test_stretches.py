"""A long manifest is laid over in stretches, unless a field's rows may lie elsewhere than the base's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.fields.annotate import annotate
from javisc.compiler.store.fields import _stretches
from javisc.compiler.store.files import Store
from javisc.manifests import laying
from javisc.manifests.fields import fields_of
from support.tables import dataset, rows


def test_stretches_are_taken_where_every_field_belongs_to_the_shards_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = dataset(tmp_path / "ds", table := rows(5))
    pl.DataFrame({"key": table["key"], "mood": ["calm"] * 5}).write_csv(tmp_path / "mood.csv")
    annotate(str(ds), str(tmp_path / "mood.csv"))
    monkeypatch.setattr(laying, "ROWS", 2)
    base, manifest = Store(str(ds), tmp_path / "scratch"), pl.scan_parquet(ds / "manifest.parquet")
    (field,) = fields_of(str(ds))
    assert [part.rows for part in _stretches(base, manifest, "", [field]) or ()] == [2, 2, 1]
    moved = replace(field, header={**field.header, "parents": {"000000": "of another shard"}})
    assert _stretches(base, manifest, "", [moved]) is None

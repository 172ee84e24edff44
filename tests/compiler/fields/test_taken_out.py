"""Shards of a field that cannot be made again as they were: they are taken out, and one line says what makes them."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.recipe import PRESETS
from javisc.compiler.repair.fields import mend_fields
from javisc.compiler.store.fields import FieldWriter
from javisc.compiler.store.files import Store
from javisc.compiler.store.renditions import COLUMNS, made_as_now, recipe_of, settings_of
from javisc.manifests.io import Dataset
from support.films import Films
from support.sane import sane


@pytest.mark.parametrize("whole", [False, True])
def test_a_rendition_of_an_older_javisc_loses_what_is_lost_and_says_what_makes_it_anew(
    films: Films, tmp_path: Path, whole: bool
) -> None:
    ds = films.copy(tmp_path / "films").dataset
    plain = pl.read_parquet(ds / "manifest.parquet")
    now = settings_of(recipe_of(PRESETS["jav"], 32), "clips")
    older = {name: value for name, value in now.items() if name != "sizes"}
    assert made_as_now(now) and not made_as_now(older)
    with FieldWriter(ds, "r32", member="mp4", columns=COLUMNS, settings=older) as writer:
        for key in plain["key"]:
            writer.add(key, {"mp4": key.encode()}, {"height": 32, "width": 50})
    (ds / "fields/r32/000001.tar").unlink()
    if whole:
        (ds / "fields/r32/000000.tar").write_bytes(b"")
    (line,) = mend_fields(Store(str(ds), tmp_path / "scratch"))
    assert f"javisc annotate {ds} --undo r32 && javisc render {ds} --short-side 32 --as r32" in line
    shown = sane(ds, media=0, fields=False)
    assert [field.name for field in Dataset.open(ds).fields()] == ([] if whole else ["r32"])
    assert shown.equals(plain) if whole else shown["r32_mp4_size"].null_count() == 2

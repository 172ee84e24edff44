"""The rules for cells: each one is broken in a sound dataset, and `verify` must name it."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.check import cells
from javisc.compiler.check.dataset import verify
from javisc.compiler.recipe import PRESETS, Recipe
from javisc.manifests.schema import MANIFEST_SCHEMA
from support.films import Films

KNOWN = (*cells.ALWAYS, *cells.OF_PICTURE, *cells.OF_SOUND, *cells.MAY_BE_NULL)


@pytest.fixture(scope="module")
def manifest(films: Films) -> pl.DataFrame:
    return pl.read_parquet(films.dataset / "manifest.parquet")


@pytest.fixture(scope="module")
def recipe(films: Films) -> Recipe:
    return Recipe.from_json(json.loads((films.dataset / "dataset.json").read_text())["recipe"])


def told(manifest: pl.DataFrame, recipe: Recipe) -> list[str]:
    return list(cells.defects(manifest.lazy(), recipe))


def test_every_column_of_the_manifest_has_its_rule() -> None:
    assert len(set(KNOWN)) == len(KNOWN)
    missing, gone = set(MANIFEST_SCHEMA) - set(KNOWN), set(KNOWN) - set(MANIFEST_SCHEMA)
    assert not missing and not gone, (
        f"add {missing} to a list in compiler/check/cells.py: when may it be null? gone: {gone}"
    )


def test_a_sound_dataset_breaks_no_rule(manifest: pl.DataFrame, recipe: Recipe) -> None:
    assert told(manifest, recipe) == []


@pytest.mark.parametrize("column", [*cells.ALWAYS, *cells.OF_PICTURE, *cells.OF_SOUND])
def test_one_null_where_none_may_be_is_found(manifest: pl.DataFrame, recipe: Recipe, column: str) -> None:
    key = manifest["key"][3]
    lost = manifest.with_columns(pl.when(pl.col("key") != key).then(pl.col(column)).alias(column))
    assert any(column in line or column in ("mp4_offset", "flac_offset") for line in told(lost, recipe)), column


@pytest.mark.parametrize("column", cells.MAY_BE_NULL)
def test_columns_that_nobody_filled_may_be_null(manifest: pl.DataFrame, recipe: Recipe, column: str) -> None:
    empty = manifest.with_columns(pl.lit(None, MANIFEST_SCHEMA[name]).alias(name) for name in {column, "text", "texts"})
    assert told(empty, recipe) == []


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("resolution", 7, "height * width"),
        ("aspect_ratio", 1.5, "height / width"),
        ("fps", 25.0, "another fps than the recipe"),
        ("duration", 9.0, "num_frames / fps"),
        ("num_frames", 3, "num_frames / fps"),
        ("audio_fps", 44100, "another audio_fps"),
        ("channels", 2, "number of channels"),
        ("silence_ratio", 1.5, "silence_ratio outside 0 to 1"),
        ("motion", -0.1, "motion outside 0 to 1"),
        ("silent", True, "are silent where silence_ratio is not 1"),
        ("still", True, "are still where still_ratio is not 1"),
        ("text", "another", "not the first of texts"),
        ("texts", ["a", " "], "an empty caption"),
        ("source_sha256", "0" * 63, "no digest"),
    ],
)
def test_cells_that_contradict_each_other_are_found(
    manifest: pl.DataFrame, recipe: Recipe, column: str, value: object, rule: str
) -> None:
    key = manifest["key"][2]
    here = pl.col("key") == key
    new = pl.when(here).then(pl.lit(value, MANIFEST_SCHEMA[column])).otherwise(pl.col(column)).alias(column)
    lines = told(manifest.with_columns(new), recipe)
    assert any(rule in line and key in line for line in lines), lines


def test_a_kind_has_its_members(manifest: pl.DataFrame, recipe: Recipe) -> None:
    mute = manifest.with_columns(
        pl.lit(None, MANIFEST_SCHEMA[name]).alias(name) for name in MANIFEST_SCHEMA if name in cells.OF_SOUND
    ).with_columns(pl.lit(0, pl.Int16).alias("channels"))
    assert any("have no sound" in line for line in told(mute, recipe))
    assert told(mute, recipe.replace(allow_silent=True)) == []
    assert any("have no sound" in line for line in told(mute, PRESETS["audio"]))
    blind = manifest.with_columns(
        pl.lit(None, MANIFEST_SCHEMA[name]).alias(name) for name in MANIFEST_SCHEMA if name in cells.OF_PICTURE
    ).with_columns(duration=pl.col("num_samples") / 16000)
    assert told(blind, PRESETS["audio"]) == []
    assert any("have no picture" in line for line in told(blind, recipe))


def test_verify_tells_of_cells(films: Films, tmp_path: Path) -> None:
    copy = films.copy(tmp_path / "copy").dataset
    table = pl.read_parquet(copy / "manifest.parquet")
    table.with_columns(pl.lit(None, pl.String).alias("source_sha256")).write_parquet(copy / "manifest.parquet")
    line = f"manifest.parquet: 6 rows have no source_sha256: {table['key'][0]}, …"
    assert any(defect.startswith(line) for defect in verify(copy, workers=1).defects)


@pytest.mark.parametrize("count", [1, 2])
def test_a_rule_names_its_first_row_and_how_many_there_are(manifest: pl.DataFrame, recipe: Recipe, count: int) -> None:
    lost = manifest.with_columns(relpath=pl.when(pl.int_range(pl.len()) >= count).then("relpath"))
    more = ", …" if count > 1 else ""
    assert told(lost, recipe) == [f"{count} rows have no relpath: {manifest['key'][0]}{more}"]

"""Scores as a field: what another model gave stays, a run that says the same writes nothing, and no other field is taken."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.manifests.schema import SCORES_SCHEMA
from javisc.trainer.use.scores_field import NAME, check_field, write_field
from support.films import Films
from support.sane import sane


def test_two_models_share_the_field_and_a_build_of_another_time_is_refused(films: Films, tmp_path: Path) -> None:
    ds = films.copy(tmp_path / "films").dataset
    rows = pl.read_parquet(ds / "manifest.parquet").height

    def score(weights: str, *, same: bool = True, **values: float) -> None:
        numbers = {name: [value, *([value + 0.25] * (rows - 2)), None] for name, value in values.items()}
        made = pl.LazyFrame(numbers, schema={name: SCORES_SCHEMA[name] for name in values})
        at = (Dataset.open(ds), NAME, made, list(values), {"weights": weights}, {"command": "score"})
        write_field(*at, tmp_path / "scratch", lambda: same)

    score("first", sync_offset=0.2, sync_confidence=0.5)
    score("third", synchronizable=0.75)
    found = sane(ds, media=0)
    assert found["sync_offset"].to_list() == [0.2, *([0.45] * (rows - 2)), None]
    assert (
        found["synchronizable"].to_list() == [0.75, *([1.0] * (rows - 2)), None]
        and found["desync"].null_count() == rows
    )
    assert found.select(SCORES_SCHEMA.names()).schema == SCORES_SCHEMA
    (field,) = Dataset.open(ds).fields()
    assert field.header["settings"]["scored"] == {"weights": "third"} and field.missing == 1
    before = {path: path.stat().st_mtime_ns for path in ds.rglob("*") if path.is_file() and "lock" not in path.name}
    score("third", synchronizable=0.75)
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what it says is there already"
    with pytest.raises(UserError, match="has changed meanwhile"):
        score("third", same=False, synchronizable=0.5)
    score("third", synchronizable=0.5)
    assert sane(ds, media=0)["synchronizable"][0] == 0.5 and sane(ds, media=0)["sync_offset"][0] == 0.2


def test_a_field_of_something_else_is_left_alone(films: Films, tmp_path: Path) -> None:
    from javisc.compiler.fields.annotate import annotate

    ds = films.copy(tmp_path / "films").dataset
    key = pl.read_parquet(ds / "manifest.parquet")["key"][0]
    pl.DataFrame({"key": [key], "desync": [0.5]}).write_csv(tmp_path / "scores.csv")
    annotate(str(ds), str(tmp_path / "scores.csv"))
    with pytest.raises(UserError, match="--as scores: the dataset has a field of that name that something else made"):
        check_field(Dataset.open(ds), NAME)

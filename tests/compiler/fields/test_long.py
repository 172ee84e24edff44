"""A table longer than memory is joined in parts: to the same bytes and the same words as a short one, whatever its form."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from javisc.compiler.fields import long, sources
from javisc.compiler.fields.annotate import Annotated, annotate, take_back
from javisc.compiler.fields.table import read
from javisc.manifests import laying
from javisc.manifests.errors import UserError
from support.tables import dataset
from support.tables import rows as synthetic

SAMPLES = 60


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty samples in shards of 7; the last two are windows of one film, in two shards."""
    place = pl.int_range(pl.len())
    windows = place >= SAMPLES - 2
    table = synthetic(SAMPLES, mp4_size=100, flac_size=100).with_columns(
        shard=(place * 7 // 50).cast(pl.Int32),
        path=pl.when(windows).then(pl.lit("/raw/film.mp4")).otherwise("path"),
        relpath=pl.when(windows).then(pl.lit("film.mp4")).otherwise("relpath"),
        id=pl.when(windows).then(pl.lit("film")).otherwise("id"),
    )
    return dataset(tmp_path_factory.mktemp("long") / "DS", table)


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets tables and manifests be long from now on."""

    def call() -> None:
        monkeypatch.setattr(sources, "LONG", -1)
        monkeypatch.setattr(sources, "LONG_BYTES", -1)
        monkeypatch.setattr(sources, "ROWS", 11)
        monkeypatch.setattr(long, "PART", 9)
        monkeypatch.setattr(laying, "ROWS", 8)

    return call


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith("lock")
    }


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    elif path.suffix == ".csv":
        pl.DataFrame(rows, infer_schema_length=None).write_csv(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def captions(ds: Path, by: str) -> list[dict[str, Any]]:
    """Two captions for many samples, one for others, none for some, a number, a truth, and names that nobody has."""
    names = pl.read_parquet(ds / "manifest.parquet")[by].to_list()
    made = [{by: name, "caption": f"caption {at}, é", "score": at / 7, "good": at % 2 == 0, "note": f"0{at}"}
            for at, name in enumerate(names) if at % 6]  # fmt: skip
    made += [{**row, "caption": f"again {row['caption']}"} for row in made[::3]]
    made += [{by: f"nobody_{at}", "caption": "of nobody", "score": None, "good": None, "note": ""} for at in range(5)]
    made += [{by: name, "caption": None, "score": None, "good": None, "note": None} for name in names[:2]]
    if by == "path":  # of a film, whatever window: what is said of it must agree
        made = [row for row in made if row["path"] != "/raw/film.mp4"] + [{**made[0], "path": "/raw/./film.mp4"}]
    random.Random(3).shuffle(made)
    return made


@pytest.mark.parametrize(("suffix", "by"), [(".parquet", "key"), (".csv", "path"), (".jsonl", "key")])
def test_a_long_table_gives_the_bytes_of_a_short_one(
    base: Path, tmp_path: Path, in_parts: Any, suffix: str, by: str
) -> None:
    table = write(tmp_path / f"new{suffix}", captions(base, by))
    other = write(
        tmp_path / "over.parquet",
        [{"id": f"clip_0_{at:07d}", "text": f"newest {at}", "score": at, "motion": 2} for at in range(50)],
    )

    def steps(ds: Path) -> list[tuple[Annotated | None, dict[str, str]]]:
        shutil.copytree(base, ds)
        told = []
        for act in (
            lambda: annotate(str(ds), table),
            lambda: annotate(str(ds), other),
            lambda: take_back(str(ds), "new"),
            lambda: annotate(str(ds), table, name="words", keep_text=True),
            lambda: take_back(str(ds), "over"),
        ):
            told.append((act(), digests(ds)))
        return told

    short = steps(tmp_path / "short")
    in_parts()
    for at, (one, another) in enumerate(zip(short, steps(tmp_path / "parts"), strict=True)):
        assert one == another, at
    assert short[0][0] is not None and (short[0][0].unused, short[0][0].by) == (5, by)


WRONG: dict[str, list[dict[str, Any]]] = {
    "nothing matches": [{"key": f"z{at}", "score": 1} for at in range(30)],
    "two values": [{"key": f"clip_0_{at % 20:07d}", "score": at} for at in range(21)],
    "one name of several": [{"relpath": name, "score": 1} for name in ("clip_0_0000003.mp4", "film.mp4")] * 9,
    "a fraction": [{"key": f"clip_0_{at:07d}", "scene_cuts": at / 2} for at in range(30)],
    "another type": [{"key": f"clip_0_{at:07d}", "loudness": f"loud {at}"} for at in range(30)],
    "a mixture": [{"key": f"clip_0_{at:07d}", "x": "a" if at < 25 else at} for at in range(30)],
    "no column to join by": [{"name": "x", "score": 1}] * 20,
    "nothing said": [{"key": f"clip_0_{at:07d}"} for at in range(30)],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_meant_is_refused_in_the_same_words_and_changes_nothing(
    base: Path, tmp_path: Path, in_parts: Any, wrong: str
) -> None:
    table = write(tmp_path / "t.jsonl", WRONG[wrong])
    before = digests(base)
    with pytest.raises(UserError) as short:
        annotate(str(base), table)
    in_parts()
    with pytest.raises(UserError) as parts:
        annotate(str(base), table)
    assert str(parts.value) == str(short.value) and digests(base) == before


@pytest.mark.parametrize(
    "cells",
    [
        [1, 2, 3.5],
        [1, None, 2**63],
        [True, None, False],
        ["1", "2", "3"],
        ["1", "2.5", ""],
        ["true", "TRUE", "false"],
        ["07", "8", "9"],
        [None, None, None],
        [["a"], [], None],
        [None, "x", " None "],
        [float("nan"), 1, 2],
    ],
)
def test_a_columns_type_is_decided_by_all_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: list[Any]
) -> None:
    path = write(tmp_path / "t.jsonl", [{"key": f"k{at}", "s": 1, "x": cell} for at, cell in enumerate(cells)])
    wanted = read(path, "annotate")
    monkeypatch.setattr(sources, "LONG_BYTES", -1)
    monkeypatch.setattr(sources, "ROWS", 1)
    source = sources.long_source(path, "annotate", tmp_path / "rows")
    assert source is not None
    found = pl.concat(list(source.batches()))
    assert found.equals(wanted) and found.schema == wanted.schema


def test_it_is_joined_by_what_matches_most(base: Path, tmp_path: Path, in_parts: Any) -> None:
    ds = shutil.copytree(base, tmp_path / "DS")
    rows = [{"key": f"gone_{at}", "id": f"clip_0_{at:07d}", "relpath": None, "s": at} for at in range(20)]
    in_parts()
    done = annotate(str(ds), write(tmp_path / "t.parquet", rows))
    assert (done.by, done.samples, done.unused) == ("id", 20, 0)


def test_a_long_table_that_was_stopped_goes_on(base: Path, tmp_path: Path, in_parts: Any) -> None:
    from javisc.compiler.store.fields import FieldWriter

    table = write(tmp_path / "t.parquet", captions(base, "key"))
    calm = shutil.copytree(base, tmp_path / "calm")
    annotate(str(calm), table)
    in_parts()
    ds = shutil.copytree(base, tmp_path / "DS")
    real, calls = FieldWriter.commit_rows, []

    def stops(self: FieldWriter, rows: pl.DataFrame) -> None:
        calls.append(rows.height)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real(self, rows)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FieldWriter, "commit_rows", stops)
        annotate(str(ds), table)
    assert len(list((ds / "fields/t").glob("*.tar"))) == 3 and not (ds / "fields/t/field.json").exists()
    annotate(str(ds), table)
    assert digests(ds) == digests(calm)

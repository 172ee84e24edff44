"""Exports are opened by whom they are for: `datasets` by a card, JSON lines with their files, JavisDiT's table by its names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.compiler.fields.render import render
from javisc.compiler.store.fields import FieldWriter
from javisc.manifests.energon import export_energon
from javisc.manifests.errors import UserError
from javisc.manifests.exports import export_jsonl, write_card
from javisc.manifests.io import Dataset
from javisc.manifests.javisdit import COLUMNS, export_csv
from javisc.manifests.partitions import left_join
from support.films import Films
from support.tables import rows


def test_datasets_opens_a_dataset_by_its_card(films: Films, tmp_path: Path) -> None:
    ds = films.copy(tmp_path / "films").dataset
    CliRunner().invoke(cli, ["export", str(ds), "--card"], catch_exceptions=False)
    found = list(datasets.load_dataset(str(ds), split="train", streaming=True))
    assert [row["__key__"] for row in found] == pl.read_parquet(ds / "manifest.parquet")["key"].to_list()
    assert all(
        row["flac"][:4] == b"fLaC" and row["mp4"][4:8] == b"ftyp" and row["json"]["num_frames"] == 55 for row in found
    )
    write_card(str(ds))
    (ds / "README.md").write_text("mine")
    with pytest.raises(UserError, match="is there and is not javisc's"):
        write_card(str(ds))


def test_datasets_opens_a_field_by_the_card_and_finds_its_columns(films: Films, tmp_path: Path) -> None:
    ds = films.copy(tmp_path / "films").dataset
    keys = pl.read_parquet(ds / "manifest.parquet")["key"].to_list()
    with FieldWriter(ds, "faces", columns={"faces": pl.Int64, "who": pl.List(pl.String)}) as writer:
        for number, key in enumerate(keys[:5]):
            writer.add(key, {}, {"faces": number, "who": ["a", "b"][:number]})
    render(str(ds), 16, made_from="clips", workers=1)
    write_card(str(ds))
    found = {
        row["__key__"]: row["json"] for row in datasets.load_dataset(str(ds), "faces", split="train", streaming=True)
    }
    assert found == {key: {"faces": n, "who": ["a", "b"][:n]} for n, key in enumerate(keys[:5])}
    assert len(list(datasets.load_dataset(str(ds), "default", split="train", streaming=True))) == 6
    smaller = Dataset.open(ds).field("r16")
    pictures = {
        row["__key__"]: row["mp4"] for row in datasets.load_dataset(str(ds), "r16", split="train", streaming=True)
    }
    assert pictures == {key: smaller.read(key) for key in keys} and pictures[keys[0]][4:8] == b"ftyp"


def test_a_card_holds_fields_of_any_name(films: Films, tmp_path: Path) -> None:
    """YAML has words of its own, as null and on; `default` is the dataset itself."""
    ds = films.copy(tmp_path / "films").dataset
    key = pl.read_parquet(ds / "manifest.parquet")["key"][0]
    for name in ("null", "on", "default"):
        with FieldWriter(ds, name, columns={f"{name}_of": pl.String}) as writer:
            writer.add(key, {}, {f"{name}_of": name})
    write_card(str(ds))
    for config, name in (("null", "null"), ("on", "on"), ("default_", "default")):
        (row,) = datasets.load_dataset(str(ds), config, split="train", streaming=True)
        assert row["json"] == {f"{name}_of": name}
    assert all("mp4" in row for row in datasets.load_dataset(str(ds), split="train", streaming=True))


def test_json_lines_name_the_files_and_their_captions(films: Films, tmp_path: Path) -> None:
    done = export_jsonl(Dataset.open(films.dataset).located(), str(tmp_path / "a.jsonl"), media=str(tmp_path / "M"))
    found = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert sorted(row["caption"] for row in found) == sorted(filter(None, films.given.values()))
    assert (done.rows, done.without_caption, done.files) == (4, 2, 8)
    for row in found:
        assert Path(row["path"]).read_bytes()[4:8] == b"ftyp" and Path(row["audio_path"]).read_bytes()[:4] == b"fLaC"
    plain = export_jsonl(Dataset.open(films.dataset).located(), str(tmp_path / "b.jsonl"), allow_no_caption=True)
    found = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert (
        plain.rows == 6
        and sum("caption" in row for row in found) == 4
        and "None" not in (tmp_path / "b.jsonl").read_text()
    )


def test_windows_that_a_table_names_by_their_whole_film_are_counted(tmp_path: Path) -> None:
    table = rows(4).with_columns(dataset=pl.lit("/ds"), clip_start=pl.Series([None, 0.5, None, 3.0]))
    assert export_csv(table.lazy(), str(tmp_path / "a.csv"), "jav").windows == 2
    assert export_jsonl(table.lazy(), str(tmp_path / "a.jsonl")).windows == 2
    (tmp_path / "a.csv").replace(tmp_path / "b.csv")
    assert export_csv(table.lazy(), str(tmp_path / "b.csv"), "jav").windows == 2  # an export is written again
    export_jsonl(table.lazy(), str(tmp_path / "a.jsonl"))


def test_one_long_table_is_read_slice_by_slice(films: Films, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """polars' `collect_batches` reads on ahead of who takes the batches, up to the whole of one long file."""

    def ahead(*_: Any, **__: Any) -> None:
        raise AssertionError("collect_batches of a table that may be one long file")

    monkeypatch.setattr(pl.LazyFrame, "collect_batches", ahead)
    located = Dataset.open(films.dataset).located()
    assert export_jsonl(located, str(tmp_path / "a.jsonl"), media=str(tmp_path / "M")).files == 8
    assert export_csv(located, str(tmp_path / "a.csv"), "jav", media=str(tmp_path / "M")).files == 8
    assert sum(export_energon(located, str(tmp_path / "energon")).values()) == 6
    moods = pl.LazyFrame({"key": located.select("key").collect()["key"][3:], "mood": ["a", "b", "c"]})
    joined = pl.concat(left_join(located, moods, "key", tmp_path / "join", rows=2))
    assert joined["mood"].to_list() == [None, None, None, "a", "b", "c"]


def test_v1_has_speech_and_wants_16_frames_a_second(tmp_path: Path) -> None:
    table = rows(4).with_columns(dataset=pl.lit("/ds"))
    with pytest.raises(UserError, match="--javisdit v1.0: its trainer reads 16 .* build with --recipe jav16"):
        export_csv(table.lazy(), str(tmp_path / "a.csv"), "jav", version="v1.0")
    table = table.with_columns(fps=pl.lit(16.0), speech=pl.Series([0.5, None, 1.0, 0.0]))
    export_csv(table.lazy(), str(tmp_path / "a.csv"), "jav", version="v1.0")
    found = pl.read_csv(tmp_path / "a.csv")
    assert found.columns == [*COLUMNS["jav"][:-1], "speech", "text"]
    assert found["speech"].to_list() == [0.5, -1.0, 1.0, 0.0] and found["fps"].to_list() == [16] * 4
    export_csv(table.lazy(), str(tmp_path / "b.csv"), "jav")
    assert pl.read_csv(tmp_path / "b.csv").columns == list(COLUMNS["jav"])

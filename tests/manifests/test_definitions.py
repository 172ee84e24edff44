"""Small tables against what their numbers mean, written out."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.manifests import energon, stats
from javisc.manifests.io import Dataset
from javisc.manifests.splits import split_of
from support.films import Films
from support.tables import dataset, rows


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output + repr(done.exception)
    return done.output


def test_every_distribution_is_the_plain_one() -> None:
    table = rows(41, seed=3).with_columns(
        loudness=pl.when(pl.int_range(pl.len()) % 3 > 0).then("loudness"), bandwidth=pl.lit(None, pl.Float64)
    )
    told = {row["column"]: row for row in stats.distributions(table.lazy()).iter_rows(named=True)}
    assert "bandwidth" not in told and {"duration", "num_frames", "height", "width", "loudness", "motion"} <= set(told)
    for name, row in told.items():
        values = sorted(value for value in table[name].to_list() if value is not None)
        assert (row["known"], row["least"], row["greatest"]) == (len(values), values[0], values[-1]), name
        assert row["mean"] == pytest.approx(statistics.fmean(values)), name
        for q in (5, 50, 95):
            assert row[f"p{q}"] == values[round(q / 100 * (len(values) - 1))], (name, q)


def test_rows_of_before_there_were_groups_go_by_their_source_and_the_split_is_told_in_hours(tmp_path: Path) -> None:
    """Three windows of each of twelve films: none of them is torn apart."""
    films = (pl.int_range(pl.len()) // 3).cast(pl.String)
    table = rows(36, duration=1800.0).with_columns(source_sha256=pl.lit("film ") + films)
    assert table["group"].null_count() == 36
    shares = {"train": 0.6, "val": 0.4}
    said = run("split", dataset(tmp_path / "ds", table), "--ratios", "train=0.6,val=0.4", "--out", tmp_path / "view")
    made = Dataset.open(tmp_path / "view").manifest().collect()
    assert made["split"].to_list() == [split_of(source, shares) for source in table["source_sha256"]]
    count = made["split"].value_counts().sort("count", descending=True)
    assert said.splitlines() == [f"{number:>12} {name} ({number / 2:.1f} h)" for name, number in count.iter_rows()]
    assert count.height == 2


@pytest.mark.parametrize(("limit", "value", "closed"), [("SAMPLES", 2, [2, 2, 2]), ("BYTES", 1, [1] * 6)])
def test_energons_shards_are_closed_at_their_limits(
    limit: str, value: int, closed: list[int], films: Films, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energon, limit, value)
    said = run("export", films.dataset, "--energon", tmp_path / "out")
    counts = json.loads((tmp_path / "out/.nv-meta/.info.json").read_text())["shard_counts"]
    assert list(counts.values()) == closed and f"{sum(closed)} train → " in said, (
        "rows without a split are for training"
    )
    assert sorted(counts) == sorted(path.name for path in (tmp_path / "out").glob("*.tar"))
    for name, count in counts.items():
        assert (tmp_path / "out" / f"{name}.idx").stat().st_size == 8 * (count + 1)


def test_json_lines_hold_the_rows_that_have_a_picture_and_words_and_the_rest_is_counted(tmp_path: Path) -> None:
    table = rows(6).with_columns(
        text=pl.Series(["a", "b", None, "d", "e", "f"]),
        num_frames=pl.Series([9, 0, 9, None, 9, 9], dtype=pl.Int32),
        path=pl.Series([*(f"/raw/{n}.mp4" for n in range(5)), None]),
        audio_path=pl.Series(["/raw/0.wav", *["/raw/x.wav"] * 3, None, None]),
    )
    table.write_parquet(tmp_path / "t.parquet")
    said = {}
    for words in ((), ("--allow-no-caption",)):
        lines = run("export", tmp_path / "t.parquet", "--jsonl", tmp_path / "t.jsonl", *words).splitlines()
        said[words] = [line.split(" (")[0] for line in lines if "rows" in line]
        found = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
        wanted = [
            {"path": "/raw/0.mp4", "caption": "a", "audio_path": "/raw/0.wav"},
            {"path": "/raw/4.mp4", "caption": "e"},
        ]
        wanted[1:1] = [{"path": "/raw/2.mp4", "audio_path": "/raw/x.wav"}] * bool(words)
        assert found == wanted
    out, none = tmp_path / "t.jsonl", "3 rows left out: without sound or picture"
    assert list(said.values()) == [
        [f"2 rows → {out}", none, "1 rows left out: without a caption"],
        [f"3 rows → {out}", none],
    ]


def test_a_card_says_how_much_there_is(tmp_path: Path) -> None:
    assert "datasets.load_dataset" in run("export", dataset(tmp_path / "ds", rows(250)), "--card")
    assert "\n250 samples in 3 shards; `dataset.json` says how" in (tmp_path / "ds/README.md").read_text()

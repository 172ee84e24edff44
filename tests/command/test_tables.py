"""The table commands from end to end: merge → filter → split → stats → export → import, and their one-line mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
from click.testing import CliRunner, Result

from javisc.cli import cli
from javisc.manifests.errors import UserError
from support.tables import dataset, rows


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def done(*arguments: str | Path) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_a_table_goes_through_every_command(tmp_path: Path) -> None:
    a, b = dataset(tmp_path / "a", rows(60)), dataset(tmp_path / "b", rows(40, seed=1))
    assert "100 samples of 2 inputs" in done("merge", a, b, "--out", tmp_path / "all")
    out = done(
        "filter",
        tmp_path / "all",
        "num_frames >= 100",
        "--no-silent",
        "--lang",
        "en",
        "--out",
        tmp_path / "good.parquet",
    )
    kept = pl.read_parquet(tmp_path / "good.parquet").height
    assert (
        f"{kept} of 100 kept" in out
        and "removed by num_frames >= 100" in out
        and "--no-silent" in out
        and "--lang en" in out
    )
    done("split", tmp_path / "good.parquet", "--ratios", "train=0.5,val=0.5", "--out", tmp_path / "halves")
    told = json.loads(done("stats", tmp_path / "halves", "--json", "--by", "split"))
    assert told["total"]["samples"] == kept and {row["split"] for row in told["groups"]} == {"train", "val"}
    assert "Samples" in done("stats", tmp_path / "halves")
    assert f"{kept} rows" in done("export", tmp_path / "halves", "--csv", tmp_path / "train_jav.csv")
    assert f"{kept} inputs" in done("import", "--csv", tmp_path / "train_jav.csv", "--out", tmp_path / "list.parquet")


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    a = dataset(tmp_path / "a", rows(3))
    for arguments, told in [
        (["filter", a, "num_frame > 3"], "did you mean num_frames"),
        (["filter", a, "num_frames > 3", "--out", a], "compiled dataset"),
        (["merge", a, tmp_path / "b", "--out", tmp_path / "m"], "is not a folder"),
        (["merge", a, a, "--out", tmp_path / "m"], "--on-duplicate first"),
        (["split", a, "--ratios", "train=2", "--out", tmp_path / "s"], "--ratios"),
        (["stats", a, "--by", "nothing"], "no such column"),
        (["import", "--csv", tmp_path / "no.csv", "--out", tmp_path / "l.parquet"], "is not there"),
        (["import", "--csv", tmp_path / "no.csv", "--out", tmp_path / "l.csv"], "ends in .parquet"),
    ]:
        result = run(*arguments)
        assert isinstance(result.exception, UserError), (arguments, result.output, result.exception)
        assert told in str(result.exception)

"""`javisc build --split` and `javisc split` give one answer, and no film lies in two splits."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from command.test_build import SMALL, run

from javisc.cli import cli
from javisc.manifests.errors import UserError
from support.raw import write_clip
from support.sane import split_by_hash


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty windows of five films, as a list; one of the films twice, under two names."""
    root = tmp_path_factory.mktemp("films")
    lines = ["path,relpath,window_start,window_end,text"]
    for film in range(5):
        path = write_clip(root / f"film{film}.mp4", seconds=1.1, seed=film)
        lines += [f"{path},film{film}/{n}.mp4,{n / 10},{n / 10 + 0.2},window {n} of {film}" for n in range(10)]
    (root / "copy.mp4").write_bytes((root / "film0.mp4").read_bytes())
    lines += [f"{root / 'copy.mp4'},copy.mp4,,,a copy"]
    (root / "list.csv").write_text("\n".join(lines) + "\n")
    shares = ("--split", "train=0.9,val=0.1", "--seed", "3")
    done = run("build", "jav", root / "list.csv", "--out", root / "ds", "--min-frames", 1, *shares, *SMALL)
    assert done.returncode == 0, done.stderr
    return root


def test_windows_of_a_film_and_its_copies_lie_in_one_split(films: Path) -> None:
    rows = pl.read_parquet(films / "ds" / "manifest.parquet")
    assert rows.height == 51 and rows["source_sha256"].n_unique() == 5
    assert rows.group_by("source_sha256").agg(pl.col("split").n_unique())["split"].to_list() == [1] * 5
    assert rows["split"].to_list() == split_by_hash(rows["source_sha256"], {"train": 0.9, "val": 0.1}, seed=3)
    assert sorted(rows.filter(pl.col("relpath").str.starts_with("film1/"))["clip_start"]) == [n / 10 for n in range(10)]


def test_the_command_split_gives_the_builds_answer(films: Path, tmp_path: Path) -> None:
    before = dict(pl.read_parquet(films / "ds" / "manifest.parquet").select("key", "split").iter_rows())
    arguments = ("split", films / "ds", "--ratios", "train=0.9,val=0.1")
    done = run(*arguments, "--seed", 3, "--out", tmp_path / "same.parquet")
    assert done.returncode == 0, done.stderr
    assert dict(pl.read_parquet(tmp_path / "same.parquet").select("key", "split").iter_rows()) == before
    done = run("split", films / "ds", "--ratios", "train=0.999,val=0.001", "--out", tmp_path / "few.parquet")
    assert "no sample fell into val: splits are drawn by group (a film), and these are few" in done.stdout


def test_told_otherwise_it_goes_by_key(films: Path, tmp_path: Path) -> None:
    arguments = ("--ratios", "train=0.5,val=0.5", "--out", tmp_path / "v.parquet")
    assert run("split", films / "ds", *arguments, "--by", "key").returncode == 0
    rows = pl.read_parquet(tmp_path / "v.parquet")
    assert rows.filter(pl.col("relpath").str.starts_with("film1/"))["split"].n_unique() == 2


@pytest.mark.parametrize(
    "text", ["train=0.5", "train=1,train=0", "a b=1", "train=nan", "train=0.5,train=0.5", "x=2,y=-1"]
)
def test_both_refuse_the_same_shares(films: Path, text: str, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert isinstance(result.exception, UserError), result.output
        return str(result.exception)

    build = said("build", "jav", films / "list.csv", "--out", tmp_path / "ds", "--split", text)
    assert build.replace("--split", "--ratios") == said(
        "split", films / "ds", "--out", tmp_path / "v.parquet", "--ratios", text
    )

"""`javisc score --keep-features`: what is kept, read again, refused, and what a kill leaves of it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from click.testing import CliRunner, Result

from javisc.cli import cli
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.data.bytes.reader import CorruptSample
from javisc.trainer.models.synchformer.config import AudioConfig, JoinConfig, SynchformerConfig, VisualConfig
from javisc.trainer.models.synchformer.export import write_published
from javisc.trainer.models.synchformer.model import Synchformer
from javisc.trainer.transforms.segment_chain import SegmentTransforms
from javisc.trainer.use.kept_features import Segments, packed, unpacked
from javisc.trainer.use.score import ScoreOptions
from javisc.trainer.use.score_forecast import forecast
from support import compiled

FRAMES = [150, 119, 125, 275]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two heads on the same extractors, and a model with others."""
    made: dict[str, Path] = {}
    folder, first = tmp_path_factory.mktemp("published"), None
    torch.manual_seed(0)
    for name in ("first", "second", "other"):
        join = JoinConfig(1, 2, width=16)
        model = Synchformer(
            SynchformerConfig(
                VisualConfig(24, 1, 2, image=32, patch=16), AudioConfig(24, 1, 2, intermediate=48), join, initial="wide"
            )
        )
        first = first or model
        if name == "second":
            for part in ("vfeat_extractor", "afeat_extractor"):
                model.get_submodule(part).load_state_dict(first.get_submodule(part).state_dict())
        made[name] = folder / f"{name}.pt"
        write_published(model, SegmentTransforms(input_size=32), made[name], "training")
    return made


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = compiled.write(tmp_path / "ds", FRAMES, fps=25, size=(32, 40), hiss=True)
    assert (folder / "dataset.json").exists()
    return folder


def scored(dataset: Path, checkpoint: Path, *more: object) -> Result:
    words = ["score", dataset, "--checkpoint", checkpoint, "--workers", 1, "--short-side", 32, *more]
    return CliRunner().invoke(cli, [*map(str, words)])


def test_a_later_score_reads_what_an_earlier_one_kept(
    dataset: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """With another head and other windows; nothing of the clips themselves is read then. Another network's is not taken."""
    plain = scored(dataset, checkpoints["second"], "--crops", 2, "--out", tmp_path / "plain.parquet")
    assert plain.exit_code == 0, plain.output
    dry = scored(dataset, checkpoints["first"], "--keep-features", "segments", "--dry-run")
    segments = 17 + 14 + 33
    assert f"{segments} crops or segments" in dry.output
    assert f"{segments * 14 * 24 * 4 / 1e6:.4g} MB of features would be kept" in dry.output
    done = scored(dataset, checkpoints["first"], "--keep-features", "segments")
    assert done.exit_code == 0 and "3 clips' features kept as the field segments" in done.output, done.output
    opened = Dataset.open(dataset)
    assert opened.field("segments").missing == 1
    assert not list((dataset / ".score").glob("*.features.parquet"))
    verified = CliRunner().invoke(cli, ["verify", str(dataset)])
    assert verified.exit_code == 0, verified.output
    told = forecast(str(dataset), str(checkpoints["second"]), ScoreOptions(short_side=32))
    assert (told.pieces, told.windows, told.known) == (0, 7, 3)
    other = forecast(str(dataset), str(checkpoints["other"]), ScoreOptions(short_side=32))
    assert (other.pieces, other.known) == (segments, 0)
    for shard in (dataset / "shards").glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    again = scored(dataset, checkpoints["second"], "--crops", 2, "--out", tmp_path / "again.parquet")
    assert again.exit_code == 0 and "3 of 4 scored, 4 of them now" in again.output, again.output
    columns = ["key", "sync_offset", "sync_confidence", "sync_margin", "desync"]
    before, after = (pl.read_parquet(tmp_path / f"{name}.parquet").select(columns) for name in ("plain", "again"))
    assert before.drop("key").null_count().row(0) == (1, 1, 1, 1)
    for column in columns[1:]:
        assert after[column].to_list() == pytest.approx(before[column].to_list(), abs=1e-4), column


@pytest.mark.dist
def test_killed_and_resumed_keeps_the_same(dataset: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(dataset, whole)
    options = ("--part-size", 1, "--keep-features", "segments")
    assert scored(whole, checkpoints["first"], *options).exit_code == 0
    command = [sys.executable, "-P", "-m", "javisc", "score", str(dataset), "--checkpoint", str(checkpoints["first"])]
    command += ["--workers", "1", "--short-side", "32", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 240
        while not list(dataset.glob(".score/*.features.parquet")):
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
    process.wait()
    done = scored(dataset, checkpoints["first"], *options)
    assert done.exit_code == 0 and "of 4 scored, 4 of them now" not in done.output, done.output
    for name in ("000000.tar", "manifest.parquet"):
        assert (dataset / "fields/segments" / name).read_bytes() == (whole / "fields/segments" / name).read_bytes()
    # Once more: nothing is left to do, and nothing is lost.
    more = scored(dataset, checkpoints["first"], *options)
    assert more.exit_code == 0 and "0 of them now" in more.output, more.output
    assert Dataset.open(dataset).field("segments").missing == 1


def test_what_cannot_be_kept_is_told_first(dataset: Path, checkpoints: dict[str, Path]) -> None:
    wrong = scored(dataset, checkpoints["first"], "--keep-features", "Segments!")
    assert isinstance(wrong.exception, UserError)
    assert "--keep-features 'Segments!': a field's name is a-z" in str(wrong.exception)
    (dataset / "fields").mkdir(exist_ok=True)
    noted = dataset.parent / "note.csv"
    keys = pl.read_parquet(dataset / "manifest.parquet")["key"].to_list()
    noted.write_text("key,mark\n" + "".join(f"{key},1\n" for key in keys))
    assert CliRunner().invoke(cli, ["annotate", str(dataset), str(noted), "--as", "mine"]).exit_code == 0
    taken = scored(dataset, checkpoints["first"], "--keep-features", "mine")
    assert isinstance(taken.exception, UserError)
    assert "has a field of that name that something else made" in str(taken.exception)


def test_damaged_features_are_no_features() -> None:
    said = [(torch.randn(2, 3), torch.randn(1, 3)) for _ in range(2)]
    content = packed(Segments((0, 4), (True, False), (5,)), said)
    found, again = unpacked(content, ((2, 3), (1, 3)))
    assert found == Segments((0, 4), (True, False), (5,)) and torch.equal(again[1][0], said[1][0])
    for damaged in (content[:-8], b"", content.replace(b"picture", b"pictures"), packed(found, said[:1])):
        with pytest.raises(CorruptSample):
            unpacked(damaged, ((2, 3), (1, 3)))
    with pytest.raises(CorruptSample):
        unpacked(content, ((2, 4), (1, 3)))

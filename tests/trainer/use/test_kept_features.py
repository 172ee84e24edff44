"""`javisc score --keep-features`: what is kept, read again, refused, and what a kill leaves of it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner, Result

from javisc.cli import cli
from javisc.compiler.check.latents import latent_defects
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.manifests.schema import SCORES_SCHEMA
from javisc.trainer.data.bytes.reader import CorruptSample
from javisc.trainer.models.synchformer.config import AudioConfig, JoinConfig, SynchformerConfig, VisualConfig
from javisc.trainer.models.synchformer.export import write_published
from javisc.trainer.models.synchformer.model import Synchformer
from javisc.trainer.transforms.segment_chain import SegmentTransforms
from javisc.trainer.use.kept_features import FIELD, PLACES, Segments, packed, unpacked, with_features
from javisc.trainer.use.score import ScoreOptions, precision_of, rater_for
from javisc.trainer.use.score_clip import NEEDED
from javisc.trainer.use.score_forecast import forecast
from javisc.trainer.use.score_worker import WorkerOptions, score_rows
from support import compiled

FRAMES = [150, 119, 125, 275]
#: Of those that have room for a window: all of them are looked at.
SEGMENTS = 17 + 14 + 33
pytestmark = pytest.mark.usefixtures("all_here")


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


def written(folder: Path) -> Path:
    return compiled.write(folder, FRAMES, fps=25, size=(32, 40), hiss=True)


@pytest.fixture(scope="module")
def kept(checkpoints: dict[str, Path], all_here: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that a score with the first checkpoint left features in."""
    folder = written(tmp_path_factory.mktemp("kept") / "ds")
    done = scored(folder, checkpoints["first"], "--part-size", 1, "--keep-features", "segments")
    assert done.exit_code == 0 and "3 clips' features kept as the field segments" in done.output, done.output
    return folder


def scored(dataset: Path, checkpoint: Path, *more: object) -> Result:
    words = ["score", dataset, "--checkpoint", checkpoint, "--workers", 1, "--short-side", 32, *more]
    return CliRunner().invoke(cli, [*map(str, words)])


def told(folder: Path, checkpoint: Path) -> list[dict[str, Any]]:
    """What a worker says of the dataset, with two windows a clip, from features where they are kept."""
    settings = WorkerOptions(str(checkpoint), "cpu", 3, 1, "fp32", 2, 25, 32, 0.0, "")
    rater, _, _ = rater_for(str(checkpoint), ScoreOptions(crops=2, short_side=32))
    rows = with_features(Dataset.open(folder), precision_of(rater.features()[0], "fp32"))
    return score_rows(rows.select(*NEEDED, FIELD, *PLACES).collect().to_dicts(), asdict(settings))


def test_the_cost_of_keeping_is_told_before(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    dry = scored(written(tmp_path / "ds"), checkpoints["first"], "--keep-features", "segments", "--dry-run")
    assert f"{SEGMENTS} crops or segments" in dry.output
    assert f"{SEGMENTS * 14 * 24 * 4 / 1e6:.4g} MB of features would be kept" in dry.output


def test_a_later_score_reads_what_an_earlier_one_kept(kept: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """With another head and other windows; nothing of the clips themselves is read then. Another network's is not taken."""
    assert Dataset.open(kept).field("segments").missing == 1
    assert not list((kept / ".score").glob("*.features.parquet"))
    assert not list(safetensor_defects(kept))
    for name, pieces, known in (("second", 0, 3), ("other", SEGMENTS, 0)):
        cost = forecast(str(kept), str(checkpoints[name]), ScoreOptions(short_side=32))
        assert (cost.pieces, cost.windows, cost.known) == (pieces, 7, known), name
    plain = told(written(tmp_path / "plain"), checkpoints["second"])
    bare = tmp_path / "bare"
    shutil.copytree(kept, bare)
    for shard in (bare / "shards").glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    again = told(bare, checkpoints["second"])
    assert [row["reason"] for row in again] == [None, "too short", None, None] == [row["reason"] for row in plain]
    for one, other in zip(plain, again, strict=True):
        for column in ("sync_offset", "sync_confidence", "sync_margin", "desync", "crops"):
            assert other[column] == pytest.approx(one[column], abs=1e-4), column
    assert [row["reason"] for row in told(bare, checkpoints["other"])] == [
        "corrupt",
        "too short",
        "corrupt",
        "corrupt",
    ]


def test_windows_beyond_what_is_kept_are_told_before_and_leave_the_field_alone(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """One window of each clip is kept; three ask for more of the longer clips, whose features stay as they are."""
    dataset, keep = written(tmp_path / "ds"), ("--keep-features", "segments")
    assert scored(dataset, checkpoints["first"], "--crops", 1, *keep).exit_code == 0
    before = (dataset / "fields/segments/field.json").read_bytes()
    for crops, pieces, known in ((1, 0, 3), (3, 17 + 33, 1)):
        options = ScoreOptions(crops=crops, short_side=32, keep_features="segments")
        cost = forecast(str(dataset), str(checkpoints["second"]), options)
        assert (cost.pieces, cost.known, cost.keeps) == (pieces, known, 0), crops
    more = scored(dataset, checkpoints["second"], *keep)
    assert "0 clips' features kept as the field segments: nothing new to keep" in more.output, more.output
    assert (dataset / "fields/segments/field.json").read_bytes() == before
    assert not list((dataset / ".score").glob("*.features.parquet"))
    assert CliRunner().invoke(cli, ["annotate", str(dataset), "--undo", "segments"]).exit_code == 0
    again = scored(dataset, checkpoints["second"], *keep)
    assert "3 clips' features kept as the field segments" in again.output, again.output
    assert forecast(str(dataset), str(checkpoints["first"]), ScoreOptions(short_side=32)).known == 3


def safetensor_defects(folder: Path) -> Iterator[str]:
    field = Dataset.open(folder).field("segments")
    for key in field.table().select("key").collect()["key"]:
        yield from latent_defects(field.read(key))


@pytest.mark.dist
def test_killed_and_resumed_keeps_the_same(kept: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The scores too: Synchformer's, as `kept` has them of a run that nobody stopped."""
    dataset = written(tmp_path / "ds")
    before = (dataset / "manifest.parquet").read_bytes()
    options = ("--part-size", 1, "--keep-features", "segments")
    command = [sys.executable, "-P", "-m", "javisc", "score", str(dataset), "--checkpoint", str(checkpoints["first"])]
    command += ["--workers", "1", "--short-side", "32", *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 900
        # The second part's features: the first part is whole then.
        while len(list(dataset.glob(".score/*.features.parquet"))) < 2:
            assert time.monotonic() < end and process.poll() is None
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert (dataset / "manifest.parquet").read_bytes() == before
    done = scored(dataset, checkpoints["first"], *options)
    assert done.exit_code == 0 and "3 of 4 scored, 4 looked" not in done.output, done.output
    columns, whole = (pl.read_parquet(folder / "manifest.parquet") for folder in (dataset, kept))
    assert columns.select(SCORES_SCHEMA.names()).equals(whole.select(SCORES_SCHEMA.names()))
    assert columns["desync"].null_count() == 1, "the clip that is too short"
    for name in ("000000.tar", "manifest.parquet"):
        assert (dataset / "fields/segments" / name).read_bytes() == (kept / "fields/segments" / name).read_bytes()
    # Once more: nothing is left to do, and nothing is lost.
    more = scored(dataset, checkpoints["first"], *options)
    assert more.exit_code == 0 and "3 of 4 scored, 0 looked at now" in more.output, more.output
    assert Dataset.open(dataset).field("segments").missing == 1


def test_what_cannot_be_kept_is_told_first(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    dataset = written(tmp_path / "ds")
    wrong = scored(dataset, checkpoints["first"], "--keep-features", "Segments!")
    assert isinstance(wrong.exception, UserError)
    assert "--keep-features 'Segments!': a field's name is a-z" in str(wrong.exception)
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
    told = safetensors.torch.load(content)
    squared = safetensors.torch.save({**told, "segment": told["segment"][:, None]})
    whole = safetensors.torch.save({**told, "sound": told["sound"].long()})
    for damaged in (
        content[:-8],
        b"",
        content.replace(b"picture", b"pictures"),
        packed(found, said[:1]),
        squared,
        whole,
    ):
        with pytest.raises(CorruptSample):
            unpacked(damaged, ((2, 3), (1, 3)))
    with pytest.raises(CorruptSample):
        unpacked(content, ((2, 4), (1, 3)))

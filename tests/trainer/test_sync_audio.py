"""`javisc train sync-audio`: labelled sounds to a classifier, killed and resumed, and its trunk in a sync model."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
import torch
from click.testing import CliRunner

from javisc.cli import cli
from javisc.manifests.errors import UserError
from javisc.trainer.data.sources.sync import SyncDataOptions
from javisc.trainer.data.sources.sync_audio import SoundBatches, labels_of
from javisc.trainer.engine.config import load_recipe
from javisc.trainer.engine.loop import train
from javisc.trainer.engine.weights import read_weights
from javisc.trainer.forecast.dry_run import dry_run
from javisc.trainer.models.sync.model import AVSync
from javisc.trainer.tasks.registry import load
from javisc.trainer.tasks.sync_audio import SyncAudioRecipe
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.transforms.sync_chain import AudioClipTransforms, audio_clip
from support import compiled
from support.recipe_training import PROGRAM
from support.toy_training import Ranks, digest

#: Hz of the classes: sounds of a class are near each other, of different loudness, and in noise.
CLASSES = {"bell": 1760, "buzz": 110, "hum": 440, "whistle": 3520}
SETTINGS = [
    "model.classes=4",
    "data.train_split=fold1",
    "data.valid_split=fold2",
    "data.threads=1",
    "transforms.crop_len_sec=0.5",
    "run.tensorboard=false",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ESC-50's layout with tones: eight of a class to train on, three held out, compiled by `javisc build audio`."""
    root = tmp_path_factory.mktemp("tones")
    (root / "ESC-50/audio").mkdir(parents=True)
    (root / "ESC-50/meta").mkdir()
    random = np.random.default_rng(0)
    rows = []
    for number in range(44):
        category, fold = list(CLASSES)[number % 4], 1 if number < 32 else 2
        time_ = np.arange(int(16000 * random.uniform(0.7, 1.4))) / 16000
        # Beeps: of a tone that never stops the standardised spectrogram shows nothing.
        wave = random.uniform(0.1, 0.8) * np.sin(2 * np.pi * CLASSES[category] * random.uniform(0.9, 1.1) * time_)
        wave *= (8 * time_ + random.uniform()) % 1 < 0.5
        name = f"{fold}-{number:03d}-A-{number % 4}.wav"
        soundfile.write(root / "ESC-50/audio" / name, wave + random.normal(0, 0.02, len(wave)), 16000)
        rows.append({"filename": name, "fold": fold, "target": number % 4, "category": category})
    with (root / "ESC-50/meta/esc50.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    arguments = ["build", "audio", str(root), "--corpus", "esc50", "--workers", "1", "--out", str(root / "ds")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return root / "ds"


def run(dataset: Path, folder: Path, *overrides: str, resume: bool = False) -> str:
    """Train in this process; the digest of the final weights."""
    recipe, task = load("sync-audio-tiny", [f"data.paths=[{dataset}]", *SETTINGS, *overrides])
    digests: list[str] = []
    train(recipe, task, folder, resume=resume, last=lambda model: digests.append(digest(model)))
    return digests[0]


def test_it_learns_and_its_trunk_starts_a_sync_model(dataset: Path, tmp_path: Path) -> None:
    run(dataset, tmp_path, "run.steps=48", "run.validate_every=16", "run.checkpoint_every=0", "schedule.warmup_steps=5")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if row["kind"] == "validate"]
    assert measured[-1]["clips"] == 12 and not any("tol1" in name for name in measured[-1])
    assert max(row["accuracy_1"] for row in measured) > 0.6  # chance is a quarter
    assert {"loss", "accuracy_4", "mAP", "mROCAUC", "dprime"} <= set(measured[-1])
    best = read_weights(tmp_path / "best")
    assert best["fc.weight"].shape == (4, 256)
    demo = [f"data.paths=[{dataset}]", "model.audio_trunk.size=small", f"start.audio_trunk={tmp_path / 'best'}"]
    model = load("sync-demo", demo)[1].build()
    assert isinstance(model, AVSync)
    trunk = model.afeat_extractor.state_dict()
    assert trunk.keys() == {key for key in best if not key.startswith("fc.")}
    assert all(torch.equal(value, best[key]) for key, value in trunk.items())


@pytest.mark.dist
def test_killed_and_resumed_is_the_run_that_was_not(dataset: Path, tmp_path: Path) -> None:
    common = ["run.validate_every=0", "run.patience=0", "transforms.p_audio_aug=0.5", "run.checkpoint_every=0"]
    overrides = [f"data.paths=[{dataset}]", *SETTINGS, *common, "run.steps=7", "run.checkpoint_every=2"]
    # In its sixth step: the second checkpoint was begun then, and the first is whole.
    killed = Ranks(tmp_path / "killed", overrides, program=PROGRAM, recipe="sync-audio-tiny", die_at=6)
    assert killed.wait() == [-signal.SIGKILL], killed.told()
    assert len(list((tmp_path / "killed").glob("checkpoints/step-*/complete.json"))) in (1, 2)
    resumed = run(dataset, tmp_path / "killed", *common, "run.steps=7", resume=True)
    assert resumed == run(dataset, tmp_path / "whole", *common, "run.steps=7")


def test_batches_are_the_chain_on_the_beginning_of_each_sound(tmp_path: Path) -> None:
    """From shards with pictures, which are not read: their checksums are wrong here."""
    folder = compiled.write(tmp_path / "ds", [40, 20, 60, 90, 5], fps=24, hiss=True)
    path = folder / "manifest.parquet"
    labels = pl.Series(["dog", "cat", "dog", None, "cat"])
    pl.read_parquet(path).with_columns(label=labels, mp4_crc32=pl.lit(1, pl.Int64)).write_parquet(path)
    assert labels_of([folder]) == ["cat", "dog"]
    transforms = AudioClipTransforms(duration_sec=2, crop_len_sec=0.5)
    source = SoundBatches([folder], ["cat", "dog"], transforms, SyncDataOptions(2, split=None, train=True))
    try:
        wholes = {0: 40, 1: 20, 2: 60}
        seen = {}
        for clip_batch, batch in zip(list(source.loader.sampler.upcoming()), source, strict=True):
            assert batch.aud.shape == (2, 1, 257, 63) and not batch.replaced
            for clip, key, aud, target in zip(clip_batch.clips, batch.keys, batch.aud, batch.target, strict=True):
                number = int(key)
                assert int(target) == (labels[number] == "dog")
                wave = np.random.default_rng(number).normal(0, 0.1, round(wholes[number] * 16000 / 24))
                rounded = torch.from_numpy(np.round(wave.astype(np.float32) * 2**23) / 2**23).float()
                wanted = audio_clip(transforms, rounded, 16000, SeededDraws(clip.seed), train=True)
                assert (aud - wanted).abs().max() < 1e-3
                seen[number] = True
        # Of three sounds that are labelled and long enough, two make a full batch; the rest is dropped.
        assert len(seen) == 2
    finally:
        source.close()
    every = SoundBatches([folder], ["cat", "dog"], transforms, SyncDataOptions(2, split=None, train=False))
    try:
        assert sorted(key for batch in every for key in batch.keys) == ["00000000", "00000001", "00000002"]
    finally:
        every.close()


def test_the_dry_run_counts_what_a_step_costs(dataset: Path) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    recipe, task = load("sync-audio-tiny", [f"data.paths=[{dataset}]", *SETTINGS])
    told = dry_run(recipe, task)
    assert (told["batches_per_epoch"], told["samples_per_step"]) == (4, 8) and told["batch"]["aud"] == [8, 1, 257, 63]
    model, aud = task.model(), torch.zeros(8, 1, 257, 63)
    with FlopCounterMode(display=False) as counter:
        model(aud, torch.zeros(8, dtype=torch.long))[0].backward()
    assert told["step_tflop"] == pytest.approx(counter.get_total_flops() / 1e12, rel=1e-6)
    assert told["tokens_per_step"] == 8 * model.features(aud)[0, 0].numel()


def test_the_published_recipe_says_what_was_published() -> None:
    recipe = load_recipe("sync-audio", SyncAudioRecipe)
    assert (recipe.optimizer.lr, recipe.optimizer.eps, recipe.optimizer.clip_norm) == (3e-4, 1e-7, None)
    assert (recipe.run.metric, recipe.run.metric_to_max, recipe.run.patience) == ("loss", False, 10)
    assert (recipe.data.batch_size, recipe.data.valid_batch_size, recipe.model.classes) == (16, 32, 308)
    assert recipe.transforms == AudioClipTransforms() and recipe.parallel.precision == "fp16"
    assert recipe.run.steps == 100 * (154078 // 16) and recipe.run.validate_every == 154078 // 16


def test_mistakes_are_told(dataset: Path, tmp_path: Path) -> None:
    def task(*overrides: str) -> object:
        return load("sync-audio-tiny", [f"data.paths=[{dataset}]", *SETTINGS, *overrides])[1]

    with pytest.raises(UserError, match="no dataset: add --data"):
        task("data.paths=[]")
    with pytest.raises(UserError, match="parallel.strategy=fsdp2"):
        task("parallel.strategy=fsdp2")
    with pytest.raises(UserError, match=r"the data have 4 labels, model\.classes=7: set model\.classes=4"):
        task("model.classes=7").source(0, 1)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no sample is left"):
        task("data.train_split=fold9").source(0, 1)  # type: ignore[attr-defined]
    plain = compiled.write(tmp_path / "plain", [30], fps=25)
    with pytest.raises(UserError, match="no sample is left of 1: 1 without a label"):
        task(f"data.paths=[{plain}]").source(0, 1)  # type: ignore[attr-defined]
    one = pl.read_parquet(dataset / "manifest.parquet")
    one = one.with_columns(pl.lit(str(dataset)).alias("dataset")).filter(
        (pl.col("split") == "fold2") | (pl.col("label") != "hum")
    )
    one.write_parquet(tmp_path / "some.parquet")
    with pytest.raises(UserError, match=r"1 labels have no clip in the split 'fold1', the first is 'hum'"):
        task(f"data.paths=[{tmp_path / 'some.parquet'}]").source(0, 1)  # type: ignore[attr-defined]

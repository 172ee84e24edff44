"""`javisc encode`: what is stored is what training on the clips would compute, whatever was killed or broken on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from javisc.cli import cli
from javisc.compiler.check.dataset import verify
from javisc.compiler.check.latents import latent_defects
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.reader import CorruptSample
from javisc.trainer.data.sources.encoded import Encoded, pack, unpack
from javisc.trainer.tasks.latents import latents_of, source
from javisc.trainer.tasks.prior import STORED, PriorTask
from javisc.trainer.tasks.registry import load
from javisc.trainer.use.encode import EncodeOptions, encode
from support import compiled
from support.warm import warm

CPU = torch.device("cpu")
BUCKETS = "data.buckets.48x64.17=[1.0,2]"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips, one of them too short for any bucket."""
    folder = compiled.write(tmp_path_factory.mktemp("encode") / "ds", [20, 25, 17, 22, 9, 18])
    path = folder / "manifest.parquet"
    pl.read_parquet(path).with_columns(split=pl.Series(["train"] * 5 + ["val"])).write_parquet(path)
    header = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**header, "recipe": PRESETS["jav"].to_json(), "digest": "d"}))
    return folder


def settings(*paths: Path) -> list[str]:
    return [f"data.paths=[{','.join(map(str, paths))}]", BUCKETS]


@pytest.fixture(scope="module")
def encoded(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By a process of its own, as a user has it."""
    out = tmp_path_factory.mktemp("encode") / "ds2"
    with pytest.MonkeyPatch.context() as monkeypatch:
        warm(monkeypatch)
        assert encode("prior-tiny", settings(dataset), str(out), EncodeOptions(passes=2, batches=1)) == 9
    return out


def prior(*paths: Path) -> PriorTask:
    task = load("prior-tiny", settings(*paths))[1]
    assert isinstance(task, PriorTask)
    return task


def epochs(task: PriorTask, count: int) -> list[dict[str, dict[str, Tensor]]]:
    """By epoch and key: what a row's loss is computed from."""
    source, out = task.source(0, 1), []
    try:
        for _ in range(count):
            rows: dict[str, dict[str, Tensor]] = {}
            for batch in source:
                tensors = task.stored(batch, CPU)
                rows |= {key: {n: tensors[n][i] for n in STORED} for i, key in enumerate(batch.keys)}
            out.append(rows)
        return out
    finally:
        source.close()


def test_training_sees_what_it_would_see_of_the_clips(dataset: Path, encoded: Path) -> None:
    raw, stored = epochs(prior(dataset), 2), epochs(prior(encoded), 3)
    for number in (0, 1):
        assert {key.removesuffix(f"_p{number}") for key in stored[number]} == set(raw[number])
        for key, row in raw[number].items():
            for name, value in row.items():
                assert torch.allclose(stored[number][f"{key}_p{number}"][name], value, atol=1e-4), (key, name)
    assert stored[2].keys() == stored[0].keys()  # the third epoch is the first pass again
    first = next(iter(raw[0]))
    assert not torch.equal(raw[0][first]["wrong_video_spatial"], raw[1][first]["wrong_video_spatial"])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("stage", ["audio-tiny", "jav-tiny"])
def test_the_other_stages_train_from_their_store_too(stage: str, dataset: Path, tmp_path: Path) -> None:
    def rows(*paths: Path) -> dict[str, dict[str, Tensor]]:
        _, task = load(stage, settings(*paths))
        source, out = task.source(0, 1), {}
        for batch in source:
            made = latents_of(batch, task.encoders(CPU), prior_text=task.config.has_prior)  # type: ignore[attr-defined]
            tensors = {n: x for n, x in vars(made).items() if isinstance(x, Tensor)}
            tensors["text"] = (
                tensors["text"] * tensors["mask"][:, None, :, None]
            )  # what lies behind a caption is never read
            out |= {key: {n: x[i] for n, x in tensors.items()} for i, key in enumerate(made.keys)}
        source.close()
        return out

    out = tmp_path / "out"
    encode(stage, settings(dataset), str(out), EncodeOptions())
    raw, stored = rows(dataset), rows(out)
    assert {f"{key}_p0" for key in raw} == set(stored) and len(raw) == 4
    for key, row in raw.items():
        assert row.keys() == stored[f"{key}_p0"].keys() and ("video" in row) == (stage == "jav-tiny")
        for name, value in row.items():
            assert torch.allclose(stored[f"{key}_p0"][name], value, atol=1e-4), (key, name)
    arguments = ["train", stage, "--data", str(out), "--run", str(tmp_path / "run"), BUCKETS, "run.steps=2"]
    told = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    assert "done at step 2" in told.output
    _, task = load(stage, [*settings(out), "encoders.tiny=false"])
    if stage == "audio-tiny":
        task.build()  # without any frozen network
    else:
        with pytest.raises(UserError, match="encoders.prior is not set"):
            task.build()


@pytest.mark.usefixtures("here")
def test_shards_that_are_away_end_the_work_and_are_held_against_no_clip(dataset: Path, tmp_path: Path) -> None:
    """As a mount that is gone for an hour: each clip was refused as corrupt for good, and the resumed command passed it over."""
    shard = next((dataset / "shards").glob("*.tar"))
    away = shard.rename(tmp_path / "away")
    out, asked = tmp_path / "out", [*settings(dataset), "data.reader.retries=0"]
    try:
        with pytest.raises(
            UserError, match=rf"{shard.name}: .*No such file.*once it is there, the same command goes on"
        ):
            encode("audio-tiny", asked, str(out), EncodeOptions())
    finally:
        away.rename(shard)
    assert encode("audio-tiny", asked, str(out), EncodeOptions()) == 5
    assert pl.read_parquet(out / "rejected.parquet")["reason"].to_list() == ["filtered"]


def test_what_is_stored_is_a_dataset(dataset: Path, encoded: Path) -> None:
    assert verify(encoded, workers=1).defects == []
    rows = pl.read_parquet(encoded / "manifest.parquet")
    assert rows["encoded_pass"].to_list().count(1) == 4 and rows.filter(split="val").height == 1
    refused = pl.read_parquet(encoded / "rejected.parquet")
    assert refused.select("key", "reason").rows() == [("00000004", "filtered")]
    told = json.loads((encoded / "dataset.json").read_text())["encoded"]
    assert set(told["networks"]) == {"audio_vae", "video_vae", "imagebind"} and told["sources"] == {str(dataset): "d"}
    assert told["passes"] == 2 and told["data"]["buckets"]["48x64"]["17"] == [1.0, 2]


def test_a_run_learns_from_the_store_without_the_networks(encoded: Path, tmp_path: Path) -> None:
    arguments = ["train", "prior-tiny", "--data", str(encoded), "--run", str(tmp_path / "run"), BUCKETS]
    arguments += [
        "encoders.tiny=false",
        "run.steps=6",
        "run.log_every=1",
        "run.validate_every=3",
        "run.checkpoint_every=0",
    ]
    CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    scores = [row["loss"] for row in rows if row["kind"] == "validate"]
    assert len(scores) == 2 and scores[1] < scores[0]


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.usefixtures("warmed")
def test_killed_and_continued_by_two_processes_gives_the_same_bytes(
    dataset: Path, encoded: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-P",
        "-m",
        "javisc",
        "encode",
        str(dataset),
        "--recipe",
        "prior-tiny",
        "--out",
        str(out),
    ]
    command += ["--passes", "2", "--batches", "1", "--set", BUCKETS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not (out / ".build/parts/000000.json").exists() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL and not (out / "dataset.json").exists()
    first = (out / "shards/000000.tar").stat().st_mtime_ns
    assert encode("prior-tiny", settings(dataset), str(out), EncodeOptions(passes=2, batches=1, workers=2)) == 9
    assert (out / "shards/000000.tar").stat().st_mtime_ns == first
    assert (out / "manifest.parquet").read_bytes() == (encoded / "manifest.parquet").read_bytes()
    ours, theirs = (json.loads((folder / "dataset.json").read_text())["digest"] for folder in (out, encoded))
    assert ours == theirs


@pytest.mark.usefixtures("here")
def test_a_broken_clip_is_refused_and_others_stand_for_themselves(tmp_path: Path) -> None:
    folder = compiled.write(tmp_path / "ds", [20, 25, 17, 22])
    rows = pl.read_parquet(folder / "manifest.parquet").with_columns(split=pl.lit("train"))
    rows.write_parquet(folder / "manifest.parquet")
    with (folder / "shards/000000.tar").open("r+b") as shard:
        shard.seek(rows["mp4_offset"][1] + 50)
        shard.write(b"\0\1\2\3")
    assert encode("prior-tiny", settings(folder), str(tmp_path / "out"), EncodeOptions(passes=2)) == 6
    refused = pl.read_parquet(tmp_path / "out/rejected.parquet")
    assert refused.select("key", "reason").rows() == [("00000001", "corrupt")]


def test_damage_is_found(encoded: Path, tmp_path: Path) -> None:
    good = pack({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)})
    assert list(latent_defects(good)) == []
    assert "cut or too long" in next(latent_defects(good[:5]))
    assert "are no F32" in next(latent_defects(good[:-8])) or "are no BF16" in next(latent_defects(good[:-8]))
    assert "belong to no tensor" in next(latent_defects(good + b"1234"))
    assert "not finite" in next(latent_defects(pack({"a": torch.tensor([1.0, float("nan")])})))
    assert "no safetensors" in next(latent_defects((4).to_bytes(8, "little") + b"[1]]"))
    for broken in (b"", good[:20], b"\xff" * 40):
        with pytest.raises(CorruptSample, match="no safetensors"):
            unpack(broken, "here")
    captions = {"text": torch.randn(1, 7, 4), "mask": torch.tensor([1, 1, 1, 0, 0, 0, 0])}
    again = unpack(pack(captions), "here")
    assert torch.equal(again["text"][:, :3], captions["text"][:, :3]) and again["text"].shape == (1, 7, 4)
    assert not again["text"][:, 3:].any()


def test_mistakes_are_told(dataset: Path, encoded: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="begun with other settings .*seed: 42 → 7"):
        encode("prior-tiny", [*settings(dataset), "seed=7"], str(encoded), EncodeOptions(2, 1))
    with pytest.raises(UserError, match="dataset of another kind"):
        encode("prior-tiny", settings(dataset), str(dataset), EncodeOptions())
    (tmp_path / "mine/shards").mkdir(parents=True)
    (tmp_path / "mine/shards/000000.tar").touch()
    with pytest.raises(UserError, match=r"mine holds shards/000000\.tar, which would be written over"):
        encode("prior-tiny", settings(dataset), str(tmp_path / "mine"), EncodeOptions())
    with pytest.raises(UserError, match="encoded already"):
        encode("prior-tiny", settings(encoded), str(tmp_path / "a"), EncodeOptions())
    with pytest.raises(UserError, match="task sync learns from clips"):
        encode("sync-demo", [f"data.paths=[{dataset}]"], str(tmp_path / "b"), EncodeOptions())
    with pytest.raises(UserError, match="at least 1"):
        encode("prior-tiny", settings(dataset), str(tmp_path / "c"), EncodeOptions(passes=0))
    with pytest.raises(UserError, match="some hold clips"):
        prior(dataset, encoded).source(0, 1)
    data = prior(encoded).recipe.data
    with pytest.raises(UserError, match=r"17 frames of 48x64.* does not name"):
        source(dataclasses.replace(data, buckets={"32x48": {"17": [1.0, 2]}}), "train", seed=0)
    latents = source(data, "train", seed=0)
    with pytest.raises(UserError, match="holds no 'text': encode it with this task's recipe"):
        next(iter(latents))
    latents.close()


def test_a_batch_tells_which_seeds_its_draws_had(encoded: Path) -> None:
    batches = prior(encoded).source(0, 1)
    batch = next(iter(batches))
    batches.close()
    assert isinstance(batch, Encoded)
    rows = {row["key"]: row for row in pl.read_parquet(encoded / "manifest.parquet").iter_rows(named=True)}
    assert batch.drawn_from == [rows[key]["clip_seed"] for key in batch.keys] and batch.seeds != batch.drawn_from

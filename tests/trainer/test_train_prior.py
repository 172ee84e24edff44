"""`javisc train prior-tiny` on compiled clips: from the command line to weights that others load, exact wherever it is killed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
from pathlib import Path

import polars as pl
import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from javisc.cli import cli
from javisc.compiler.build import BuildOptions, build
from javisc.compiler.demo.jav import write_scene
from javisc.compiler.demo.scenes import scene
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError
from javisc.trainer.data.sources.clips import Clips
from javisc.trainer.data.sources.negatives import batch_negatives
from javisc.trainer.engine.config import load_recipe
from javisc.trainer.engine.weights import read_weights
from javisc.trainer.forecast.dry_run import dry_run
from javisc.trainer.models.prior import PriorConfig
from javisc.trainer.models.prior import model as prior_files
from javisc.trainer.objectives.contrastive import Negatives
from javisc.trainer.tasks.prior import PriorInputs, PriorRecipe, PriorTask, pooled_means
from javisc.trainer.tasks.registry import load
from support import compiled, recipe_training
from support.parity import JAVISDIT
from support.recipe_training import PROGRAM
from support.shared import need
from support.toy_training import Ranks, losses

CPU = torch.device("cpu")
KILLS = random.Random(os.environ.get("JAVISC_TEST_SEED"))
SMALL = ["data.buckets.48x64.17=[1.0,2]", "run.log_every=1", "run.validate_every=0"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Flat pictures and a ramp of sound: nothing to learn, everything to compute."""
    folder = compiled.write(tmp_path_factory.mktemp("prior") / "ds", [20, 25, 17, 22, 30, 18])
    path = folder / "manifest.parquet"
    pl.read_parquet(path).with_columns(split=pl.Series(["train"] * 4 + ["val"] * 2)).write_parquet(path)
    return folder


def task(dataset: Path, *overrides: str) -> PriorTask:
    made = load("prior-tiny", [f"data.paths=[{dataset}]", *SMALL, *overrides])[1]
    assert isinstance(made, PriorTask)
    return made


def first_batch(made: PriorTask) -> Clips:
    source = made.source(0, 1)
    try:
        return next(iter(source))
    finally:
        source.close()


def flat(inputs: PriorInputs) -> dict[str, torch.Tensor]:
    """Every tensor of a batch's inputs by name."""
    found = {name: value for name, value in vars(inputs).items() if isinstance(value, torch.Tensor)}
    for aspect, wrong in inputs.negatives.items():
        assert isinstance(wrong, Negatives)
        found |= {f"{aspect} video": wrong.video, f"{aspect} audio": wrong.audio}
    return found


@pytest.mark.slow
@pytest.mark.dist
def test_learns_from_sounding_scenes_and_hands_its_weights_on(tmp_path: Path) -> None:
    raw, folder, out = tmp_path / "raw", tmp_path / "ds", tmp_path / "run"
    raw.mkdir()
    for index in range(5):
        made = scene(index, kind="bounce", seconds=1.0, fps=24)
        write_scene(made, raw / f"clip{index}.mp4")
    build(from_raw([str(raw)], captions=None), PRESETS["jav"], folder, BuildOptions(workers=1))
    path = folder / "manifest.parquet"
    pl.read_parquet(path).with_columns(split=pl.Series(["train"] * 4 + ["val"])).write_parquet(path)

    arguments = ["train", "prior-tiny", "--data", str(folder), "--run", str(out), *SMALL]
    arguments += ["run.steps=24", "run.validate_every=8", "run.checkpoint_every=0"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    assert "done at step 24" in result.output
    told = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    scores = [row for row in told if row["kind"] == "validate"]
    assert [row["step"] for row in scores] == [8, 16, 24] and scores[0]["clips"] == 1
    # A fresh model's loss is about 10; the same crops, noise and negatives every time.
    assert scores[-1]["loss"] < 0.9 * scores[0]["loss"]
    assert {"spatial_token_loss", "temporal_disc_loss", "spatial_mse_loss", "temporal_va_loss", "kl_loss"} <= set(
        scores[0]
    )

    for name in ("best", "last"):
        model, tower = prior_files.load(out / name)
        assert model.config.encode_va and not tower
        slim, _ = prior_files.load(out / name, encode_va=False)
        assert not any(key.startswith(prior_files.TRAINING_ONLY) for key in slim.state_dict())
    again = task(folder, f"start={out}").build()
    best = read_weights(out / "best")
    assert all(torch.equal(value, best[name]) for name, value in again.state_dict().items())
    with pytest.raises(UserError, match="another size"):
        task(folder, f"start={out}", "model.hidden_size=64").build()


def test_weights_have_the_official_names(dataset: Path, tmp_path: Path) -> None:
    """At this size there are fewer layers; otherwise what a run writes is exactly the published list."""
    model = task(dataset).build()
    prior_files.save(model, tmp_path)
    lines = need(JAVISDIT / "keys_STIBPrior_train.txt").read_text().splitlines()
    official = {line.split("\t")[0] for line in lines if line and not line.startswith("#")}
    assert set(read_weights(tmp_path)) == {name for name in official if ".layers." not in name or ".layers.0." in name}


@pytest.mark.slow
@pytest.mark.dist
def test_killed_and_resumed_is_the_run_that_was_not(dataset: Path, tmp_path: Path) -> None:
    overrides = [f"data.paths=[{dataset}]", *SMALL, "run.steps=5", "run.checkpoint_every=2", "run.tensorboard=false"]
    recipe_training.run(tmp_path / "whole", [*overrides, "run.checkpoint_every=0"], recipe="prior-tiny")
    whole = (tmp_path / "whole" / "result-0").read_text()
    killed, at = tmp_path / "killed", KILLS.randint(2, 5)
    assert Ranks(killed, overrides, program=PROGRAM, recipe="prior-tiny", die_at=at).wait() == [-signal.SIGKILL]
    recipe_training.run(killed, overrides, recipe="prior-tiny", resume=True)
    assert (killed / "result-0").read_text() == whole, at
    assert losses(killed) == losses(tmp_path / "whole"), at


@pytest.mark.slow
@pytest.mark.dist
def test_one_step_is_the_same_on_one_and_two_processes(dataset: Path, tmp_path: Path) -> None:
    """The step takes the whole split: two micro-batches of one process, or one of each of two. With so large an eps,
    Adam's update is nearly the gradient."""
    overrides = [f"data.paths=[{dataset}]", *SMALL, "run.steps=1", "optimizer.eps=1.0", "optimizer.lr=0.5"]
    recipe_training.run(tmp_path / "one", [*overrides, "run.accumulate=2"], recipe="prior-tiny")
    for name, strategy in (("two", "ddp"), ("sharded", "fsdp2")):
        options = [*overrides, f"parallel.strategy={strategy}"]
        assert len(Ranks(tmp_path / name, options, world=2, program=PROGRAM, recipe="prior-tiny").digests()) == 1
    one = read_weights(tmp_path / "one" / "last")
    for name in ("two", "sharded"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
        other = read_weights(tmp_path / name / "last")
        assert all(torch.allclose(other[key], one[key], rtol=1e-4, atol=1e-6) for key in one), name
    fresh = task(dataset).build().state_dict()
    assert sum(int((one[key] - fresh[key]).abs().max() > 1e-3) for key in one) > 20


def test_a_rows_inputs_depend_on_its_own_seed_alone(dataset: Path) -> None:
    made = task(dataset)
    batch = first_batch(made)
    both = flat(made.inputs(batch, CPU))
    assert both["spatial video"].shape[:3] == (2, 1, 4) and both["temporal audio"].shape[:3] == (2, 1, 8)
    loaded = batch.loaded
    assert loaded.tensors is not None and batch.video is not None and loaded.audio is not None
    tensors = dataclasses.replace(loaded.tensors, video=loaded.video[1:], audio=loaded.audio[1:])
    clips = dataclasses.replace(loaded.batch, clips=loaded.batch.clips[1:])
    part = dataclasses.replace(loaded, batch=clips, tensors=tensors, labels=loaded.labels[1:], sounds=loaded.sounds[1:])
    alone = dataclasses.replace(
        batch,
        video=batch.video[1:],
        sound=batch.sound[1:],
        captions=batch.captions[1:],
        keys=batch.keys[1:],
        seeds=batch.seeds[1:],
        loaded=dataclasses.replace(part, made=batch_negatives(part, made.pools(), made.recipe.negatives)),
    )
    torch.randn(3)  # the global generator has no part in it
    one = flat(made.inputs(alone, CPU))
    for name, value in one.items():
        assert torch.allclose(value, both[name][1:], atol=1e-4), name
    other = flat(made.inputs(dataclasses.replace(alone, seeds=[1]), CPU))
    assert not torch.allclose(other["noise"], one["noise"]) and not torch.allclose(other["audio"], one["audio"])


@pytest.mark.parametrize(
    ("switch", "moved"),
    [
        ("negatives.rule=reference", {"spatial audio", "temporal audio"}),
        ("data.mel_padding=silence", {"audio", "spatial audio", "temporal audio"}),
        ("data.clean_captions=true", {"hidden"}),
    ],
)
def test_reference_and_corrected_switches(
    tmp_path: Path, switch: str, moved: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each switch moves what it is about and nothing else."""
    noise = 0.3 * torch.randn(40 * 16000 // 24, generator=torch.Generator().manual_seed(0)).clamp(-3, 3).numpy()
    monkeypatch.setattr(compiled, "sound", lambda frames, fps: noise)
    folder = compiled.write(tmp_path / "ds", [40, 40, 40])
    path = folder / "manifest.parquet"
    rows = pl.read_parquet(path).with_columns(split=pl.lit("train"), text=pl.lit("A DOG!!! barks https://x.org"))
    rows.write_parquet(path)
    fixed = ["negatives.audio_spatial=[scale_volume]", "negatives.audio_temporal=[temporal_shift]"]
    plain, switched = (
        flat(made.inputs(first_batch(made), CPU)) for made in (task(folder, *fixed), task(folder, *fixed, switch))
    )
    assert {name for name in plain if not torch.equal(plain[name], switched[name])} == moved


def test_negatives_are_drawn_from_the_pools_that_are_given(dataset: Path, tmp_path: Path) -> None:
    """Any compiled dataset with sound can be the pool of other sounds; a resumed run must have the same one."""
    pool = compiled.write(tmp_path / "pool", [30, 40])
    path = pool / "manifest.parquet"
    pl.read_parquet(path).with_columns(relpath=pl.format("other{}", "relpath")).write_parquet(path)
    fixed = ["negatives.audio_spatial=[add_sound_source]", "negatives.audio_temporal=[audio_stall]"]
    without, made = task(dataset, *fixed), task(dataset, *fixed, f"pools.sources={pool}")
    plain, drawn = (flat(one.inputs(first_batch(one), CPU)) for one in (without, made))
    moved = {name for name in plain if not torch.equal(plain[name], drawn[name])}
    assert moved == {"spatial audio"}
    # Pools are read as the recipe says clips are: whole shards through the cache, to the same numbers.
    cached = ["data.reader.mode=whole", f"data.reader.cache={tmp_path / 'cache'}"]
    same = flat((through := task(dataset, *fixed, f"pools.sources={pool}", *cached)).inputs(first_batch(through), CPU))
    assert all(torch.equal(same[name], drawn[name]) for name in drawn)
    kept = {path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert kept >= {path.stat().st_size for path in (pool / "shards").glob("*.tar")}
    begun, other = made.source(0, 1), without.source(0, 1)
    with pytest.raises(UserError, match="other pools"):
        other.load_state_dict(begun.state_dict())
    begun.close()
    other.close()


def test_the_published_recipe_says_what_was_published() -> None:
    recipe = load_recipe("prior", PriorRecipe)
    o, p = recipe.optimizer, recipe.parallel
    assert (o.name, o.lr, o.eps, o.weight_decay, o.clip_norm, o.scale_lr_by_world) == (
        "adamw",
        1e-5,
        1e-8,
        0.0,
        1.0,
        False,
    )
    assert tuple(o.betas) == (0.9, 0.999) and recipe.ema.decay == 0 and recipe.schedule.warmup_steps == 0
    assert (p.precision, p.checkpoint_blocks, recipe.seed) == ("bf16", True, 42)
    assert recipe.run.keep_checkpoints == 2 and recipe.run.checkpoint_every == 200
    table = recipe.data.table()
    sizes = {(bucket.name.split("/")[0], bucket.frames): bucket.batch_size for bucket in table.buckets}
    assert sizes["144p", 51] == 16 and sizes["240p", 102] == 4 and sizes["720p", 51] == 1 and len(sizes) == 22
    assert recipe.model == PriorConfig() and recipe.data.mel_padding == "zero" and not recipe.data.clean_captions
    with torch.device("meta"):
        made = PriorTask(recipe)
        model = made.model()
    assert sum(p.numel() for p in model.parameters()) == 30_650_945
    inside = {id(p) for block in made.blocks(model) for p in block.parameters()}
    assert sum(p.numel() for p in model.parameters() if id(p) in inside) > 29_000_000


def test_mistakes_are_told(dataset: Path) -> None:
    with pytest.raises(UserError, match="no onset labels"):
        task(dataset, "model.pred_onset=true")
    with pytest.raises(UserError, match="encoders.imagebind is not set"):
        task(dataset, "encoders.tiny=false").build()
    with pytest.raises(UserError, match="no clip that fits"):
        pooled_means({}, 0, 1)
    source = task(dataset).source(0, 1)
    with pytest.raises(UserError, match="other pools"):
        source.load_state_dict({**source.state_dict(), "pools": "others"})
    source.close()


def test_a_dry_run_counts_without_the_frozen_networks(dataset: Path) -> None:
    made = task(dataset, "encoders.tiny=false", "negatives.repetitions=2")
    told = dry_run(made.recipe, made)
    assert told["parameters_trained"] == sum(p.numel() for p in task(dataset).build().parameters())
    assert told["samples_per_step"] == 2 and told["tokens_per_step"] == 32 and told["activations_checkpointed"] > 0
    assert {entry["op"] for entry in told["kernels"]} == {"attention", "bidirectional_attention"}
    # The arithmetic is that of a step which is taken.
    batch, model = first_batch(made), made.model()
    zeros = {name: torch.zeros_like(value) for name, value in made._shapes(batch, CPU).items()}
    with FlopCounterMode(display=False) as counter:
        model(made.inputs(batch, CPU, zeros))[0].backward()
    assert told["step_tflop"] == pytest.approx(counter.get_total_flops() / 1e12, rel=1e-9) and told["step_tflop"] > 0


def test_activation_checkpointing_changes_no_gradient(dataset: Path) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    made = task(dataset)
    inputs = made.inputs(first_batch(made), CPU)
    torch.manual_seed(1)
    model = made.build()
    loss, _ = model(inputs)
    loss.backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    chosen = {id(block) for block in made.blocks(model)}
    apply_activation_checkpointing(model, check_fn=lambda module: id(module) in chosen)
    again, _ = model(inputs)
    again.backward()
    assert torch.equal(loss, again)
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert torch.allclose(p.grad, plain[name.replace("_checkpoint_wrapped_module.", "")], atol=1e-6), name

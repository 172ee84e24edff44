"""`javisc train audio-tiny` and `jav-tiny` on clips of the demonstration: stage after stage, to a file that plays."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from javisc.cli import cli
from javisc.compiler.build import BuildOptions, build
from javisc.compiler.demo.jav import write_scene
from javisc.compiler.demo.scenes import scene
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError
from javisc.trainer.data.sources.clips import Clips
from javisc.trainer.engine.config import load_recipe
from javisc.trainer.engine.optim import Stepper
from javisc.trainer.engine.weights import read_weights, write_weights
from javisc.trainer.models.dit import VASTDiT3, blocks, checkpoint
from javisc.trainer.models.dit.attention import TextCrossAttention
from javisc.trainer.objectives.frame_masks import STAGE3_RATIOS
from javisc.trainer.task import key_random
from javisc.trainer.tasks.audio import AudioTask
from javisc.trainer.tasks.dit import DiTTask, Step
from javisc.trainer.tasks.dit_recipe import DiTRecipe
from javisc.trainer.tasks.jav import JavTask
from javisc.trainer.tasks.latents import Latents, encode
from javisc.trainer.tasks.registry import load
from support.recipe_training import PROGRAM, run
from support.toy_training import Ranks, losses

CPU = torch.device("cpu")
KILLS = random.Random(os.environ.get("JAVISC_TEST_SEED"))
#: Every kind of mask that jav-tiny draws, switched off.
UNMASKED = [f"mask_ratios.{kind}=0.0" for kind in load_recipe("jav-tiny", DiTRecipe).mask_ratios]
QUIET = ["run.tensorboard=false", "run.log_every=1"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six sounding scenes of the demonstration, compiled; two are held out."""
    root = tmp_path_factory.mktemp("scenes")
    raw, folder = root / "raw", root / "ds"
    raw.mkdir()
    for index in range(6):
        write_scene(scene(index, kind="bounce", seconds=1.0, fps=24), raw / f"clip{index}.mp4")
    build(from_raw([str(raw)], captions=None), PRESETS["jav"], folder, BuildOptions(workers=1))
    path = folder / "manifest.parquet"
    pl.read_parquet(path).with_columns(split=pl.Series(["train"] * 4 + ["val"] * 2)).write_parquet(path)
    return folder


def task(name: str, dataset: Path | str, *overrides: str) -> Any:
    return load(name, [f"data.paths=[{dataset}]", *QUIET, *overrides])[1]


def first_batch(made: DiTTask) -> Clips:
    source = made.source(0, 1)
    try:
        batch = next(iter(source))
    finally:
        source.close()
    assert isinstance(batch, Clips)
    return batch


def ready(made: DiTTask, batch: Clips) -> Latents:
    return encode(made.encoders(CPU), batch, prior_text=made.config.has_prior)


def row(latents: Latents, which: slice) -> Latents:
    cut = {name: x[which] for name, x in vars(latents).items() if isinstance(x, Tensor | list)}
    return dataclasses.replace(latents, **cut)


def scores(folder: Path) -> dict[int, dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: r for r in rows if r["kind"] == "validate"}


def fresh_loss(name: str, dataset: Path, *overrides: str) -> float:
    """The held-out loss before the first step."""
    made = task(name, dataset, *overrides)
    key_random(made.recipe.seed, "init")
    loss: float = made.validate(made.build().eval(), 0, 1, CPU)["loss"]
    return loss


@pytest.fixture(scope="module")
def stage_one(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 1."""
    folder = tmp_path_factory.mktemp("runs") / "audio"
    # A checkpoint costs more than a step: who looks at none writes none.
    overrides = [f"data.paths=[{dataset}]", *QUIET, "run.steps=30", "run.validate_every=10", "run.checkpoint_every=0"]
    run(folder, overrides, recipe="audio-tiny")
    return folder


@pytest.fixture(scope="module")
def stage_two(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of stage 2."""
    folder = tmp_path_factory.mktemp("runs") / "prior"
    run(folder, [f"data.paths=[{dataset}]", *QUIET, "run.steps=2", "run.validate_every=0"], recipe="prior-tiny")
    return folder


@pytest.mark.slow
@pytest.mark.dist
def test_stage_one_learns_and_goes_on_exactly_after_a_kill(dataset: Path, stage_one: Path, tmp_path: Path) -> None:
    told = scores(stage_one)
    assert list(told) == [10, 20, 30] and told[30]["clips"] == 2
    begin = fresh_loss("audio-tiny", dataset)
    assert told[30]["loss"] < told[10]["loss"] < begin and told[30]["loss"] < 0.95 * begin
    overrides = [f"data.paths=[{dataset}]", *QUIET, "run.steps=30", "run.validate_every=10", "run.checkpoint_every=7"]
    at = KILLS.randint(15, 25)  # the second save has published the first
    killed = Ranks(tmp_path, overrides, program=PROGRAM, recipe="audio-tiny", die_at=at)
    assert killed.wait() == [-signal.SIGKILL], killed.told()
    run(tmp_path, overrides, recipe="audio-tiny", resume=True)
    assert (tmp_path / "result-0").read_text() == (stage_one / "result-0").read_text(), at
    assert losses(tmp_path) == losses(stage_one) and scores(tmp_path)[30]["loss"] == told[30]["loss"]


@pytest.mark.slow
@pytest.mark.dist
def test_stage_three_starts_from_both_goes_on_exactly_and_is_seen_and_heard(
    dataset: Path, stage_one: Path, stage_two: Path, tmp_path: Path
) -> None:
    start = [f"start.audio={stage_one}", f"encoders.prior={stage_two}"]
    overrides = [f"data.paths=[{dataset}]", *QUIET, *start, "run.steps=16", "run.validate_every=8"]
    built = task("jav-tiny", dataset, *start).build()
    given = read_weights(stage_one / "best")
    for name, value in built.state_dict().items():
        assert name not in given or torch.equal(value, given[name]), name
    whole, cut, at = tmp_path / "whole", tmp_path / "cut", KILLS.randint(11, 15)
    run(whole, [*overrides, "run.checkpoint_every=0"], recipe="jav-tiny")
    overrides += ["run.checkpoint_every=5"]
    killed = Ranks(cut, overrides, program=PROGRAM, recipe="jav-tiny", die_at=at)
    assert killed.wait() == [-signal.SIGKILL], killed.told()
    run(cut, overrides, recipe="jav-tiny", resume=True)
    assert (cut / "result-0").read_text() == (whole / "result-0").read_text(), at
    told = scores(whole)
    assert told[16]["loss"] < told[8]["loss"] < fresh_loss("jav-tiny", dataset, *start)
    # Frozen means frozen: what stage 1 learnt is what stage 3 leaves.
    last = read_weights(whole / "last")
    assert all(torch.equal(last[name], given[name]) for name in last if name.startswith("audio_spatial_blocks."))
    assert not torch.equal(last["va_cross_blocks.0.gamma_m1"], torch.zeros(64))

    out = tmp_path / "out"
    arguments = ["sample", "a steel ball bounces", "--model", str(whole), "--out", str(out), "--resolution", "48x64"]
    arguments += ["--num-frames", "17", "--steps", "2", "--dtype", "fp32", "--device", "cpu"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    assert "1 clips" in result.output
    with av.open(str(out / "00000.mp4")) as file:
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        file.seek(0)
        heard = np.concatenate([frame.to_ndarray() for frame in file.decode(audio=0)], axis=1)
    assert len(pictures) == 17 and pictures[0].shape == (48, 64, 3) and np.stack(pictures).std() > 1
    assert heard.shape[0] == 2 and abs(heard.shape[1] - round(17 * 16000 / 24)) <= 2048
    assert heard.std() > 1e-3


def opensora(seed: int = 1) -> dict[str, Tensor]:
    """Random weights under the names that OpenSora's model has, at the tiny size."""
    torch.manual_seed(seed)
    state = VASTDiT3(load_recipe("jav-tiny", DiTRecipe).model.config()).state_dict()
    new = ("audio_", "ax_", "st_", "video_st_", "va_")
    return {name: torch.randn_like(value) for name, value in state.items() if not name.startswith(new)}


def test_weights_to_start_from_are_asked_for_and_taken(dataset: Path, tmp_path: Path) -> None:
    write_weights(tmp_path / "opensora", opensora())
    with pytest.raises(UserError, match=r"start\.opensora is not set; download hpcai-tech/OpenSora-STDiT-v3"):
        task("audio-tiny", dataset, "start.fresh=false").build()
    model = task("audio-tiny", dataset, "start.fresh=false", f"start.opensora={tmp_path / 'opensora'}").build()
    given, state = opensora(), model.state_dict()
    assert torch.equal(state["audio_temporal_blocks.1.mlp.fc1.weight"], given["temporal_blocks.1.mlp.fc1.weight"])
    checkpoint.save(model, tmp_path / "audio" / "last")
    with pytest.raises(UserError, match=r"start\.audio is not set; download JavisDiT-v0\.1-audio, or a run of"):
        task("jav-tiny", dataset, "start.fresh=false", f"start.opensora={tmp_path / 'opensora'}").build()
    both = [f"start.opensora={tmp_path / 'opensora'}", f"start.audio={tmp_path / 'audio'}", "start.fresh=false"]
    joint = task("jav-tiny", dataset, *both).build()
    assert torch.equal(
        joint.state_dict()["spatial_blocks.0.attn.qkv.weight"], given["spatial_blocks.0.attn.qkv.weight"]
    )
    checkpoint.save(joint, tmp_path / "jav")
    again = task("jav-tiny", dataset, "start.fresh=false", f"start.model={tmp_path / 'jav'}").build()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in joint.state_dict().items())


def test_missing_networks_and_other_mistakes_are_one_line(dataset: Path) -> None:
    for name, overrides, message in (
        ("audio", [], "encoders.t5 is not set; download DeepFloyd"),
        (
            "jav",
            ["encoders.tiny=true", "encoders.prior=nowhere"],
            "encoders.prior: nowhere is not there; download JavisDiT",
        ),
    ):
        with pytest.raises(UserError, match=message):
            made = task(name, dataset, *overrides)
            made.build()
    for name, override, message in (
        ("audio-tiny", "model.preset=VASTDiT3-tiny", "trains the other stage's model"),
        ("jav-tiny", "model.preset=VASTDiT3-small", "model.preset='VASTDiT3-small': it may be VASTDiT3-XL/2"),
        ("jav-tiny", "model.options.dept=3", "unknown option 'dept'; did you mean 'depth'"),
        ("jav-tiny", "mask_ratios.imag_head=0.1", "unknown kind 'imag_head'"),
        ("jav-tiny", "flow.masked_rows=never", "masked_rows is 'never'"),
    ):
        with pytest.raises(UserError, match=message):
            task(name, dataset, override)


@pytest.mark.parametrize("name", ["audio-tiny", "jav-tiny"])
def test_what_a_row_draws_is_its_own(dataset: Path, name: str) -> None:
    made = task(name, dataset, *UNMASKED, "mask_ratios.image_head=0.6", "model.options.class_dropout_prob=0.5")
    latents = ready(made, first_batch(made))
    assert len(latents) == 4
    whole, part = made.step(latents, CPU), made.step(row(latents, slice(2, 4)), CPU)
    assert isinstance(whole, Step) and len(set(whole.t.tolist())) == 4
    assert torch.equal(whole.t[2:], part.t)
    for mine, theirs in ((whole.noise, part.noise), (whole.drops, part.drops), (whole.masks, part.masks)):
        assert (mine is None) == (theirs is None)
        assert mine is None or all(torch.equal(mine[key][2:], theirs[key]) for key in mine)
    if name == "jav-tiny":
        assert whole.masks is not None and not whole.masks["video"][:, 0].all() and whole.priors is not None
        assert torch.allclose(whole.priors[0][2:], part.priors[0], atol=1e-6)
    drops = torch.stack([made.step(dataclasses.replace(latents, seeds=[i] * 4), CPU).drops["text"] for i in range(200)])
    assert drops.eq(drops[:, :1]).all() and 0.35 < drops.float().mean() < 0.65


@pytest.mark.parametrize("masked_rows", ["one", "excluded"])
def test_rows_of_two_batches_sum_to_those_of_one(dataset: Path, masked_rows: str) -> None:
    """So the gradient is the same on any number of processes, where no row reads another's prior and all rows count."""
    made = task(
        "jav-tiny", dataset, "model.options.prior_attention=sample", *UNMASKED, f"flow.masked_rows={masked_rows}"
    )
    model, latents = made.build().train(), ready(made, first_batch(made))
    whole = made.loss(model, latents, CPU)["loss"]
    halves = sum(made.loss(model, row(latents, part), CPU)["loss"] for part in (slice(0, 2), slice(2, 4)))
    assert torch.allclose(whole, halves, rtol=1e-4)


def test_nothing_to_measure_on_is_told_before_training(dataset: Path) -> None:
    for overrides, message in (
        (["data.valid_split=test"], "no sample is left"),
        (["data.train_split=test", "data.valid_split=null"], "no sample is left"),
    ):
        with pytest.raises(UserError, match=message):
            task("jav-tiny", dataset, *overrides).source(0, 1)
    with pytest.raises(UserError, match="do not give each of 3 processes a batch"):
        task("audio-tiny", dataset).source(2, 3)


def test_a_row_with_nothing_to_generate_counts_one_or_not_at_all(dataset: Path) -> None:
    found = {}
    for rule in ("one", "excluded"):
        made = task("jav-tiny", dataset, f"flow.masked_rows={rule}", *UNMASKED, "mask_ratios.audio_to_video=1.0")
        torch.manual_seed(0)
        model = made.build().train()
        step = made.step(ready(made, first_batch(made)), CPU)
        assert not step.masks["audio"].any() and step.masks["video"].all()
        found[rule] = made.flow(model, step).mean()
    assert torch.allclose(found["one"], found["excluded"] + 1.0, atol=1e-5)


def test_only_what_learns_costs_optimizer_state(dataset: Path) -> None:
    made = task("jav-tiny", dataset)
    model = made.build()
    stepper = Stepper(model, made.recipe.optimizer, CPU, None)
    stepper.prepare()
    held = {name.split(".")[1] for name in stepper.state_dict() if name.startswith("state.")}
    assert held == {
        "st_t_block",
        "st_prior_embedder",
        "video_st_prior_blocks",
        "audio_st_prior_blocks",
        "va_cross_blocks",
    }


def test_text_is_projected_once_a_block_and_masks_only_where_frames_are_given(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = task("jav-tiny", dataset)
    model = made.build().train()
    step = made.step(ready(made, first_batch(made)), CPU)
    projected: list[torch.Size] = []
    for module in model.modules():
        if isinstance(module, TextCrossAttention):
            module.kv_linear.register_forward_hook(lambda _m, given, _out: projected.append(given[0].shape))
    masks: list[Tensor | None] = []
    for name, at in (("modulated_layer_norm", 3), ("gated_residual", 3), ("gated_residual_layer_norm", 5)):
        op = getattr(blocks, name)

        def watched(*given: Any, op: Any = op, at: int = at) -> Any:
            masks.append(given[at] if len(given) > at else None)
            return op(*given)

        monkeypatch.setattr(blocks, name, watched)
    frames = step.latents.video.shape[2], step.latents.audio.shape[2]
    everything = {
        "video": torch.ones(4, frames[0], dtype=torch.bool),
        "audio": torch.ones(4, frames[1], dtype=torch.bool),
    }

    def with_masks(given: dict[str, Tensor] | None) -> Any:
        """The step with these masks, and what `ready` learns of them before they go to the device."""
        facts = {name: not bool(mask.all()) for name, mask in given.items()} if given else None
        return dataclasses.replace(step, masks=given, partial=facts)

    for given in (None, everything):
        made.flow(model, with_masks(given))
        assert masks and all(mask is None for mask in masks)
        assert len(projected) == 4 * made.config.depth
        assert set(projected) == {torch.Size((int(step.latents.mask.sum()), 64))}
        masks.clear(), projected.clear()
    everything["video"][1, 0] = False
    made.flow(model, with_masks(everything))
    assert any(mask is not None for mask in masks)


@pytest.mark.parametrize(("name", "kind"), [("audio", AudioTask), ("jav", JavTask)])
def test_the_official_recipes_say_what_was_published(name: str, kind: type[DiTTask]) -> None:
    recipe, made = load(name, ["data.paths=[x]"])
    assert isinstance(recipe, DiTRecipe) and isinstance(made, kind)
    o, run = recipe.optimizer, recipe.run
    assert (o.name, o.lr, o.betas, o.eps, o.weight_decay, o.clip_norm) == ("adamw", 1e-4, (0.9, 0.999), 1e-15, 0.0, 1.0)
    assert not o.scale_lr_by_world and recipe.ema.decay == 0.99 and not recipe.ema.warmup and recipe.seed == 42
    from javisc.trainer.engine.schedule import rate_factor

    assert [rate_factor(recipe.schedule, k) for k in (0, 499, 999, 1000, 5000)] == pytest.approx(
        [1 / 1001, 500 / 1001, 1000 / 1001, 1.0, 1.0]
    )
    assert recipe.parallel.precision == "bf16" and recipe.parallel.checkpoint_blocks and run.accumulate == 1
    assert (run.epochs, run.checkpoint_every, run.keep_checkpoints) == ((50, 250, 2) if name == "audio" else (2, 50, 2))
    flow = recipe.flow
    assert (flow.sample_method, flow.transform_scale, flow.masked_rows) == ("logit-normal", 1.0, "one")
    assert recipe.mask_ratios == ({} if name == "audio" else STAGE3_RATIOS)
    with torch.device("meta"):
        model = made.model()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == (1_196_481_088 if name == "audio" else 1_315_605_888)
    table = recipe.data.table()
    sizes = {(bucket.name.rsplit("/", 1)[0], bucket.batch_size) for bucket in table.buckets}
    expected = (
        {("144p/51", 256), ("144p/408", 32)} if name == "audio" else {("144p/51", 16), ("720p/51", 1), ("512/204", 1)}
    )
    assert expected <= sizes and len(sizes) == (4 if name == "audio" else 22)


def test_a_dry_run_needs_no_weights(dataset: Path) -> None:
    for name in ("audio-tiny", "jav-tiny"):
        arguments = ["train", name, "--data", str(dataset), "--dry-run", "--json", "encoders.tiny=false"]
        arguments.append("model.options.depth=1")
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
        told = json.loads(result.stdout)
        assert told["step_tflop"] > 0 and told["memory"]["activations"] > 0
        # 24 audio latent frames are 6 patches of 16 bins; 5 video frames of 3 x 4 patches
        assert told["tokens_per_step"] == 4 * (6 * 16 + (5 * 3 * 4 if name == "jav-tiny" else 0))
        assert told["parameters_frozen"] > 0

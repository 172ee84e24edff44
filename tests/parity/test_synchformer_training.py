"""The training loops of Synchformer's three stages against the reference's: loss, rate, gradient norm, and weights afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from javisc.trainer.engine.optim import LossScaleConfig, OptimizerConfig, Stepper, groups_of
from javisc.trainer.engine.schedule import ScheduleConfig, rate_factor
from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.models.synchformer.config import SegmentContrastConfig, SynchformerConfig
from javisc.trainer.models.synchformer.model import JoinTransformer, SegmentContrast, Synchformer
from javisc.trainer.models.synchformer.official import own_names, published_names
from javisc.trainer.objectives.segment_contrast import segment_contrast
from support.sync_parity import Fixture
from support.synchformer_parity import audio_config, cases, join_config, visual_config


def same(name: str, got: float, fixture: Fixture, limit: float = 1e-5) -> None:
    assert got == pytest.approx(fixture.tensors[f"out/{name}"].item(), rel=limit), name


def check_weights(state: dict[str, Tensor], fixture: Fixture) -> None:
    """To a share of what training changed; where the true gradient is 0, optimizers turn rounding noise into full steps."""
    wanted = fixture.named("out/sd:")
    assert state.keys() == wanted.keys()
    for name, want in wanted.items():
        change = (want - fixture.state[name]).abs().max().item()
        error = (state[name] - want).abs()
        if name.endswith((".key.bias",)):
            continue
        if name.endswith(("qkv.bias", "in_proj_bias")):
            third = len(want) // 3
            error[third : 2 * third] = 0
        assert error.max().item() <= 2e-3 * change, name


@cases("train_stage1")
def test_first_stage(folder: Path, name: str) -> None:
    fixture = Fixture(folder, name)
    meta = fixture.meta
    module = SegmentContrast(SegmentContrastConfig(visual_config(meta["config"]), audio_config(meta["config"]))).train()
    load_strictly(module, own_names(fixture.state), name)
    given, schedule = meta["optimizer"], meta["schedule"]
    config = OptimizerConfig(
        "adamw", given["lr"], False, tuple(given["betas"]), given["eps"], weight_decay=given["weight_decay"],
        weight_decay_on="matrices", clip_norm=meta["clip"],
    )  # fmt: skip
    stepper = Stepper(module, config, torch.device("cpu"), None)
    spared, *_ = groups_of(stepper.named, config)
    ids = {id(p) for p in spared["params"]}
    wanted = {key for key in given["no_decay"] if ".patch_embed.proj." not in key}
    assert published_names({key: p for key, p in stepper.named if id(p) in ids}).keys() == wanted
    rates = ScheduleConfig("openclip", schedule["warmup"], end_factor=0.0)
    for step in range(meta["steps"]):
        vis, aud = fixture.inputs[f"vis{step}"], fixture.inputs[f"aud{step}"]
        loss = segment_contrast(*module(vis.transpose(2, 3), aud.transpose(2, 3).unsqueeze(2)))
        loss.backward()
        lr = given["lr"] * rate_factor(rates, step, schedule["total"])
        norm, _ = stepper.step(lr)
        same(f"loss{step}", loss.item(), fixture)
        same(f"grad_norm{step}", norm.item(), fixture)
        assert lr == pytest.approx(fixture.tensors[f"out/lr{step}"].item(), abs=1e-9)
    check_weights(published_names(module.state_dict()), fixture)


class Upper(nn.Module):
    """What the second and third stages train: everything above features that rest."""

    def __init__(self, config: dict[str, object], visual: int, audio: int) -> None:
        super().__init__()
        settings = join_config(config, drop=0.0)
        self.config = SynchformerConfig()
        self.vproj, self.aproj = nn.Linear(visual, settings.width), nn.Linear(audio, settings.width)
        self.transformer = JoinTransformer(settings)


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled-loss"])
@cases("train_stage2", "train_stage3")
def test_later_stages(folder: Path, name: str, scaled: bool) -> None:
    fixture = Fixture(folder, name)
    meta = fixture.meta
    module = Upper(meta["config"], meta["config"]["visual_dim"], meta["config"]["audio_dim"]).train()
    load_strictly(module, fixture.state, name)
    given = meta["optimizer"]
    config = OptimizerConfig(given["name"], given["base_lr"], True, tuple(given["betas"]), given["eps"],
                             weight_decay=given["weight_decay"], clip_norm=meta["clip"])  # fmt: skip
    stepper = Stepper(module, config, torch.device("cpu"), LossScaleConfig(initial=1024.0) if scaled else None)
    rates = ScheduleConfig(warmup_steps=meta["schedule"]["warmup"])
    for step in range(meta["steps"]):
        # The fixture's tokens are those of all segments in a row.
        logits = Synchformer.join(module, *(fixture.inputs[f"{key}{step}"].unsqueeze(1) for key in "va"))  # type: ignore[arg-type]
        loss = nn.functional.cross_entropy(logits, fixture.inputs[f"targets{step}"])
        (loss * stepper.scale).backward()
        lr = given["base_lr"] * given["world"] * rate_factor(rates, step)
        norm, bad = stepper.step(lr)
        same(f"loss{step}", loss.item(), fixture)
        same(f"grad_norm{step}", norm.item(), fixture)
        assert lr == pytest.approx(fixture.tensors[f"out/lr{step}"].item(), abs=1e-9) and not bad.item()
    check_weights(module.state_dict(), fixture)

"""Optimizer steps against the reference's: loss, rate, gradient norm and the weights afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from javisc.trainer.engine.optim import LossScaleConfig, OptimizerConfig, Stepper
from javisc.trainer.engine.schedule import ScheduleConfig, rate_factor
from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.models.sync.official import build_transformer
from support.sync_parity import Fixture, fixtures


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled-loss"])
@pytest.mark.parametrize(("folder", "name"), fixtures("train_steps"))
def test_training_steps(folder: Path, name: str, scaled: bool) -> None:
    fixture = Fixture(folder, name)
    meta, tensors = fixture.meta, fixture.tensors
    model = build_transformer(meta["config"]).train()
    load_strictly(model, fixture.state, name)
    config = OptimizerConfig(
        lr=meta["base_learning_rate"], betas=tuple(meta["betas"]), eps=meta["adam_eps"], clip_norm=meta["max_clip_norm"]
    )
    stepper = Stepper(model, config, torch.device("cpu"), LossScaleConfig(initial=1024.0) if scaled else None)
    schedule = ScheduleConfig(warmup_steps=meta["warmup"])
    for step in range(meta["steps"]):
        logits = model(tensors[f"in/vis{step}"], tensors[f"in/aud{step}"])
        loss = F.cross_entropy(logits, tensors[f"in/targets{step}"])
        (loss * stepper.scale).backward()
        lr = meta["base_learning_rate"] * meta["world_size"] * rate_factor(schedule, step)
        norm, bad = stepper.step(lr)
        assert loss.item() == pytest.approx(tensors["out/loss"][step].item(), rel=1e-5), step
        assert lr == pytest.approx(tensors["out/lr"][step].item(), abs=1e-9), step
        assert norm.item() == pytest.approx(tensors["out/grad_norm"][step].item(), rel=1e-5), step
        assert bad.item() == 0
    state = model.state_dict()
    for key, want in fixture.named("out/sd:").items():
        if key.endswith("key.bias"):
            continue  # its true gradient is 0: Adam turns rounding noise into full steps
        change = (want - fixture.state[key]).abs().max().item()
        assert (state[key] - want).abs().max().item() <= 1e-3 * change, key

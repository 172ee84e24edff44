"""The official checkpoint container: read without its packages, equal to the values written beside it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from javisc.manifests.errors import UserError
from javisc.trainer.engine.optim import LossScaleConfig, OptimizerConfig, Stepper
from javisc.trainer.engine.schedule import ScheduleConfig, rate_factor
from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.models.sync.checkpoint import read_sync_checkpoint
from javisc.trainer.models.sync.official import build_transformer
from javisc.trainer.tasks.selector import carried_over
from support.sync_parity import SETS, rel

SAMPLES = [path for folder in SETS for path in folder.glob("ckpt_format_sample*.pt")]
each_sample = pytest.mark.parametrize("path", SAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")


@each_sample
def test_weights_logits_and_settings(path: Path) -> None:
    want = json.loads(path.with_suffix(".json").read_text())
    tensors = load_file(path.with_suffix(".safetensors"))
    checkpoint = read_sync_checkpoint(path)
    stored = {key.removeprefix("sd/"): value for key, value in tensors.items() if key.startswith("sd/")}
    assert checkpoint.model.keys() == stored.keys()
    assert all(torch.equal(checkpoint.model[key], value) for key, value in stored.items())
    node = checkpoint.config["model"]["params"]["transformer"]
    assert node["params"] == want["transformer_params"]
    module = build_transformer(node).eval()
    load_strictly(module, checkpoint.model, str(path))
    with torch.no_grad():
        assert rel(module(tensors["in/vis"], tensors["in/aud"]), tensors["out/logits"]) <= 1e-5
    assert checkpoint.epoch == want["epoch"]
    assert checkpoint.loss == want["loss"]
    assert checkpoint.metrics_nested == want["metrics_nested_under_off"]
    assert checkpoint.metrics == pytest.approx(want["metrics"], abs=0)
    assert checkpoint.optimizer is not None and checkpoint.lr_scheduler is not None and checkpoint.scaler is not None
    group = checkpoint.optimizer["param_groups"][0]
    assert group["lr"] == want["lr"] and group["betas"] == [0.9, 0.999]
    for key, text in want["lr_scheduler"].items():
        assert repr(checkpoint.lr_scheduler[key]) == text, key


@each_sample
def test_reading_imports_no_foreign_package(path: Path) -> None:
    code = (
        "import sys, javisc.trainer.models.sync.checkpoint as c; before = set(sys.modules); "
        "c.read_sync_checkpoint(sys.argv[1]); print(sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    )
    run = subprocess.run([sys.executable, "-P", "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "omegaconf" not in run.stdout


@each_sample
def test_the_optimizer_carries_over(path: Path) -> None:
    """The reference's fine-tuning goes on with the checkpoint's moments, rate and warm-up; the next rate follows its schedule."""
    want = json.loads(path.with_suffix(".json").read_text())
    checkpoint = read_sync_checkpoint(path)
    module = build_transformer(checkpoint.config["model"]["params"]["transformer"])
    carried = carried_over(checkpoint, module)
    stepper = Stepper(module, OptimizerConfig(), torch.device("cpu"), LossScaleConfig())
    stepper.prepare()
    stepper.adopt(carried)
    assert checkpoint.optimizer is not None and checkpoint.scaler is not None
    stored = checkpoint.optimizer["state"]
    for number, (name, p) in enumerate(module.named_parameters()):
        mine = stepper.optimizer.state[p]
        assert torch.equal(mine["exp_avg"], stored[number]["exp_avg"]), name
        assert torch.equal(mine["exp_avg_sq"], stored[number]["exp_avg_sq"]), name
        assert float(mine["step"]) == float(stored[number]["step"])
    assert carried.lr * rate_factor(ScheduleConfig(), carried.steps) == pytest.approx(want["lr"], rel=1e-9)
    assert stepper.scale.item() == checkpoint.scaler["scale"]
    with pytest.raises(UserError, match="tensors, the model has"):
        carried_over(checkpoint, torch.nn.Linear(2, 2))
    with pytest.raises(UserError, match="no optimizer and schedule"):
        carried_over(dataclasses.replace(checkpoint, lr_scheduler=None), module)

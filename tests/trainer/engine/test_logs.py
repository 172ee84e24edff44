"""What a run tells others: its surroundings, and Weights & Biases, whose client is stood in for by a recorder."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from javisc.manifests.errors import UserError
from javisc.trainer.tasks.registry import load
from support.toy_training import run

QUICK = ["run.log_every=1", "run.checkpoint_every=2"]


class Recorder(ModuleType):
    """Takes what the client of Weights & Biases is given, and is as strict as it: steps of a run never go back."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.started: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.axes: list[tuple[str, str]] = []

    def init(self, **options: Any) -> Recorder:
        self.started.append(options)
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.axes.append((name, step_metric))

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        pass


def test_wandb_gets_the_recipe_a_name_and_the_same_axis_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", recorder)
    for other, every in (("a", 3), ("b", 0)):  # two folders of one name are two runs
        run(tmp_path / other / "toy", ["run.wandb=true", "run.steps=3", *QUICK, f"run.checkpoint_every={every}"])
    run(tmp_path / "a" / "toy", ["run.wandb=true", "run.steps=4", "run.name=mine", "run.log_every=1"], resume=True)
    first, second, third = recorder.started
    assert first["id"] == third["id"] != second["id"] and third["resume"] == "allow"
    assert (first["name"], third["name"]) == ("toy", "mine")
    assert first["config"]["optimizer"]["lr"] == 0.001 and first["config"]["run"]["steps"] == 3
    assert set(recorder.axes) == {("*", "step")}
    losses = [row["step"] for row in recorder.rows if "train/loss" in row]
    assert losses == [1, 2, 3, 1, 2, 3, 4]


def test_wandb_that_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"run\.wandb=true needs wandb, which is not installed"):
        run(tmp_path, ["run.wandb=true", "run.steps=1"])
    load("audio-tiny", ["run.wandb=true"])  # a dry run, or `encode`, logs nothing


def test_a_run_tells_its_surroundings_and_leaves_the_process_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, gc.isenabled()
    run(tmp_path / "a", ["run.steps=3", "run.gc_every=2", "parallel.tf32=allowed", *QUICK])
    after = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, gc.isenabled()
    assert before == after
    row = json.loads((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[0])
    told = ("processes", "device", "tf32_matmul", "tf32_convolution", "allocator", "gc_every")
    assert row["kind"] == "start" and [row[name] for name in told] == [1, "cpu", 1, 1, "expandable_segments:True", 2]
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    run(tmp_path / "b", ["run.steps=1", "parallel.tf32=never", *QUICK])
    row = json.loads((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()[0])
    assert [row[name] for name in told] == [1, "cpu", 0, 0, "backend:native", 0]

"""A run that stands still says where; a run that is slow can be traced."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from javisc.trainer.engine.watch import record_flights
from support.toy_training import ToyTask, losses, run

QUICK = ["run.checkpoint_every=0", "run.log_every=1", "dropout=0"]


def test_a_process_that_stands_still_writes_its_stacks_and_its_last_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    compute, calls = ToyTask.loss, 0
    stacks = tmp_path / "heartbeats" / "rank-00000.stacks.txt"

    def noticed() -> bool:
        return stacks.exists() and " in hang" in stacks.read_text()

    def hang(self: ToyTask, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= 3:  # stands until somebody has noticed; on a busy machine a step was told of before it stood
            end = time.monotonic() + 10
            while not noticed() and time.monotonic() < end:
                time.sleep(0.02)
        return compute(self, *arguments)

    monkeypatch.setattr(ToyTask, "loss", hang)
    run(tmp_path, ["run.steps=8", "run.watchdog_sec=0.05", *QUICK])
    text = stacks.read_text()
    assert "process 0 has taken no step for" in text and "after step" in text and " in hang" in text
    told = capfd.readouterr().err
    assert "stacks of its threads, also in" in told and "its last batch: " in told
    keys = told.split("its last batch: ")[1].split("; stacks")[0].split(", ")
    assert len(keys) == 4 and all(key.isdigit() for key in keys)
    beat = json.loads((tmp_path / "heartbeats" / "rank-00000.json").read_text())
    assert beat["pid"] == os.getpid() and 0 <= beat["step"] <= 8


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, ["run.steps=2", *QUICK])
    beat = json.loads((tmp_path / "heartbeats" / "rank-00000.json").read_text())  # from the first moment on
    assert (beat["pid"], beat["step"]) == (os.getpid(), 0)
    assert not list(tmp_path.glob("heartbeats/*.stacks.txt")) and "no step" not in capfd.readouterr().err
    run(tmp_path / "off", ["run.steps=2", "run.watchdog_sec=0", *QUICK])


@pytest.mark.parametrize("steps", [8, 4])
def test_some_steps_are_traced(steps: int, tmp_path: Path) -> None:
    """Also where the run ends before the trace does."""
    run(tmp_path / "traced", [f"run.steps={steps}", "run.profile=2", *QUICK])
    run(tmp_path / "plain", [f"run.steps={steps}", *QUICK])
    assert losses(tmp_path / "traced") == losses(tmp_path / "plain")
    trace = json.loads(gzip.decompress((tmp_path / "traced" / "profile" / "rank-00000.json.gz").read_bytes()))
    names = [event.get("name", "") for event in trace["traceEvents"]]
    updates = sum(name.startswith("Optimizer.step") for name in names)
    assert updates == min(2, steps - 3) and any(name == "aten::convolution" for name in names)
    assert not (tmp_path / "plain" / "profile").exists()


def test_collectives_are_remembered_unless_a_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_FR_DUMP_TEMP_FILE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "7")
    record_flights(tmp_path)
    assert os.environ["TORCH_FR_BUFFER_SIZE"] == "7" and os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / "heartbeats" / "nccl-")

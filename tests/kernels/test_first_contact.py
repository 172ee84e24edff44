"""The first call on a machine with a GPU, rehearsed without one: it ends within its budget and says what it did not come to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.films import Films

ROOT = Path(__file__).parents[2]
OUTSIDE = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "JAVISC_KERNELS")}


def cells(path: Path) -> dict[str, dict[str, Any]]:
    return {cell["cell"]: cell for cell in map(json.loads, path.read_text().splitlines())}


def contact(films: Films, log: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    command = [sys.executable, "-P", "-W", "ignore", "benchmarks/contact.py", str(films.dataset), "--results", str(log)]
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=OUTSIDE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return cells(log)


def test_a_spent_budget_starts_nothing_and_says_so(films: Films, tmp_path: Path) -> None:
    found = contact(films, tmp_path / "log", "--budget", "0")
    assert {"load", "step/jav", "step/prior", "step/synchformer", "encode", "score"} <= set(found)
    assert all(cell["not measured"] == "the budget is spent" for cell in found.values())


def test_the_whole_call_ends_within_its_budget(films: Films, tmp_path: Path) -> None:
    """Of few seconds: the first stages at most; every other says that the budget is spent, and there is a report."""
    call = ["bash", "benchmarks/first_contact.sh", "5", str(tmp_path / "out"), str(films.dataset)]
    done = subprocess.run(call, cwd=ROOT, env=OUTSIDE | {"PYTHON": sys.executable}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    told = {n: c["ended"] for n, c in cells(tmp_path / "out/kernels.jsonl").items() if n.startswith("stage/")}
    assert len(told) == 10 and "budget is spent" in told["stage/sweep"]
    assert "Kernels beside their peers" in (tmp_path / "out/kernels.md").read_text()
    for log in ("step-dit", "step-sync", "contact", "load"):
        assert "budget is spent" in (tmp_path / f"out/{log}.log").read_text()


@pytest.mark.slow
def test_batches_are_the_same_beside_a_busy_device_and_steps_tell_their_waits(films: Films, tmp_path: Path) -> None:
    found = contact(films, tmp_path / "log", "--budget", "500", "--only", "load", "step/jav")
    assert not {name: cell["not measured"] for name, cell in found.items() if "not measured" in cell}
    assert found["load"]["same"] and found["load"]["batches"] > 1 and len(set(found["load"]["checksums"])) > 2
    assert found["step/jav"]["host waits"] == 0 and found["step/jav"]["seconds a step"] > 0
    again = contact(films, tmp_path / "log", "--budget", "0", "--only", "load", "step/jav")
    assert again == found  # measured cells are kept

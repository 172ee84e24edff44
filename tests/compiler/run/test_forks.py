"""Forks, which tests start where users start an interpreter, are processes like those."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from javisc.compiler.run.calls import Call
from javisc.compiler.run.pool import Pool
from support.forked import javisc
from support.processes import alive, workers_of

TESTS = Path(__file__).resolve().parents[2]


def test_a_command_ends_as_it_does_for_a_user(tmp_path: Path) -> None:
    done = javisc("stats", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and "nowhere" in done.stderr
    done = javisc("--version", env={"HOME": "/", "PATH": os.environ["PATH"]})
    assert done.returncode == 0 and done.stdout.startswith("javisc, version ") and done.stderr == ""


def test_a_worker_is_a_child_without_what_this_process_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number, its end by a signal and its modules are its own, and it ends with its pool."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")
    with Pool(1, tmp_path / "logs", ("support.faults",)) as pool:
        pool.submit(Call("number", "support.faults:who", {"seconds": 0.0}, 30.0))
        pool.submit(Call("modules", "support.probe_process:modules", {}, 30.0))
        said = {}
        while len(said) < 2:
            said |= {outcome.call.tag: outcome.value for outcome in pool.wait()}
        assert [pid for pid, _ in workers_of(os.getpid())] == [said["number"]]
        assert "pytest" in sys.modules and "pytest" not in said["modules"] and "av" in said["modules"]
        os.kill(said["number"], signal.SIGKILL)
        pool.submit(Call("again", "support.faults:who", {"seconds": 0.0}, 30.0))
        until = time.monotonic() + 60
        while not (ended := pool.wait()):
            assert time.monotonic() < until
        (outcome,) = ended
        assert outcome.error is None and outcome.value != said["number"]
    assert not alive(outcome.value) and workers_of(os.getpid()) == []

"""MFU in the logs: where the device's peak is known, and only there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from javisc.trainer.engine import loop
from javisc.trainer.engine.distributed import world
from javisc.trainer.engine.meter import Meter
from support.toy_training import run


def test_mfu_is_the_rate_over_the_peak() -> None:
    with world() as here:
        known, unknown = Meter(here, 2e12), Meter(here, None)
        for meter in (known, unknown):
            meter.start()
            meter.got_data(1.0)
            meter.took(4, 3e9)
        told = known.read()
        assert told["mfu"] == pytest.approx(told["tflops_per_sec"] / 2)
        assert told["samples_per_sec"] == pytest.approx(4 / told["step_sec"])
        assert "mfu" not in unknown.read()
        known.start()
        known.got_data(1.0, known.mark)  # what is counted after the data were there is no waiting for them
        known.took(4, 0.0)
        assert known.waited == 0
        assert "tflops_per_sec" not in known.read()  # nothing was done since


def test_a_run_logs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(loop, "peak_flops", lambda device, precision: 1e9)
    run(tmp_path, ["run.steps=2", "run.log_every=1", "run.checkpoint_every=0"])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["kind"] == "train"]
    assert [row["mfu"] for row in trained] == pytest.approx([row["tflops_per_sec"] * 1e3 for row in trained])
    assert "MFU" in capfd.readouterr().err

"""Workers that start beside their parent's imports, and stay for the whole build."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from javisc.cli import cli
from javisc.compiler.build import BuildOptions, build
from javisc.compiler.inputs.local import AUDIO_SUFFIXES
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.compiler.run.early import early
from javisc.manifests.errors import UserError
from support.processes import alive

TESTS = Path(__file__).resolve().parents[2]


def test_those_that_look_at_a_handful_build_afterwards_and_are_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process writes down its number with every file: with shards this small a handful is looked at first."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")
    monkeypatch.setenv("JAVISC_TEST_SEEN", str(tmp_path / "seen"))
    (tmp_path / "raw").mkdir()
    for number in range(9):
        soundfile.write(tmp_path / "raw" / f"{number}.wav", np.zeros(800 + number), 16000)
    inputs = from_raw([str(tmp_path / "raw")], suffixes=AUDIO_SUFFIXES)
    options = BuildOptions(workers=2, shard_size=100, compiler="support.faults:seen")
    with early("audio", str(tmp_path / "ds"), 2) as pool:
        assert pool is not None
        first = pool.workers[0].process.pid
        result = build(inputs, PRESETS["audio"], tmp_path / "ds", options, pool=pool)
        assert not pool.workers
    assert result.samples == 9
    seen = (tmp_path / "seen").read_text().split()
    assert len(seen) == 8 + 9 and str(first) in seen and len(set(seen)) <= 2
    assert not any(alive(int(process)) for process in seen)


def test_nothing_starts_where_a_build_was_begun_or_lies_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "ds" / ".build").mkdir(parents=True)
    for out in (str(tmp_path / "ds"), "s3://bucket/ds", "memory://ds"):
        with early("audio", out, 1) as pool:
            assert pool is None


def test_a_mistake_ends_the_workers_that_had_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    def refuse(*_: object, pool: object = None, **__: object) -> None:
        begun.extend(worker.process.pid for worker in pool.workers)  # type: ignore[attr-defined]
        raise UserError("no")

    monkeypatch.setattr("javisc.compiler.build.build", refuse)
    monkeypatch.setattr("javisc.compiler.inputs.raw.from_raw", lambda *_, **__: None)
    done = CliRunner().invoke(cli, ["build", "jav", str(tmp_path), "--out", str(tmp_path / "ds")])
    assert isinstance(done.exception, UserError) and len(begun) == 1
    assert not alive(begun[0]) and not (tmp_path / "ds").exists()

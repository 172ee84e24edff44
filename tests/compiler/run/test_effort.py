"""A file's time is its worker's CPU time, and grows with what its header declares; a hang is told from a busy machine."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from javisc.compiler.recipe import PRESETS
from javisc.compiler.run import effort
from javisc.compiler.run.calls import Call, Outcome
from javisc.compiler.run.effort import MAX_WALL, Line, Meter, needed, read_stat
from javisc.compiler.run.engine import COMPILERS
from javisc.compiler.run.pool import Pool
from javisc.compiler.run.unit import compile_input
from support.media import Spec, write

#: What a worker does between two looks: its state at the second, seconds of CPU time used, seconds passed.
STRETCHES = st.lists(
    st.tuples(st.sampled_from("RSDTZ"), st.sampled_from([0.0, 0.01, 0.3]), st.sampled_from([0.25, 0.5, 5.0])),
    max_size=30,
)


@pytest.fixture(autouse=True)
def _workers_find_the_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]), prepend=":")


class Told:
    """A process whose doings are written down."""

    def __init__(self) -> None:
        self.now, self.state, self.cpu = 100.0, "S", 7.0

    def meter(self) -> Meter:
        return Meter(0, look=lambda pid: (self.state, self.cpu), clock=lambda: self.now)

    def pass_by(self, meter: Meter, state: str, used: float, span: float) -> None:
        self.state, self.cpu, self.now = state, self.cpu + used, self.now + span
        meter.update()


@given(STRETCHES)
def test_what_is_charged(stretches: list[tuple[str, float, float]]) -> None:
    """Definition: CPU time is what was used; idle is what passed without any, unless the process could have run."""
    told = Told()
    meter = told.meter()
    for stretch in stretches:
        told.pass_by(meter, *stretch)
    assert meter.cpu == pytest.approx(sum(used for _, used, _ in stretches))
    assert meter.idle == pytest.approx(sum(span for state, used, span in stretches if used == 0 and state != "R"))


def test_a_loaded_machine_does_not_count() -> None:
    told = Told()
    meter = told.meter()
    for _ in range(100):  # a tenth of a second of the processor in every ten
        told.pass_by(meter, "R", 0.1, 5.0)
        told.pass_by(meter, "R", 0.0, 5.0)
    assert meter.exceeded(60.0) is None
    told.pass_by(meter, "R", 51.0, 51.0)
    assert "longer than 60 seconds" in (meter.exceeded(60.0) or "")
    assert meter.exceeded(60.0, granted=100.0) is None


def test_a_hang_is_told_and_nothing_lasts_for_ever() -> None:
    told = Told()
    meter = told.meter()
    told.pass_by(meter, "S", 0.0, 61.0)
    assert "did nothing" in (meter.exceeded(60.0, granted=1000.0) or "")
    meter = told.meter()
    told.pass_by(meter, "R", 0.0, MAX_WALL * 60 + 1)
    assert meter.exceeded(60.0) is not None
    blind = Meter(0, look=lambda pid: None, clock=lambda: told.now)
    told.now += 61  # where the system tells nothing, the clock on the wall counts
    blind.update()
    assert blind.exceeded(60.0) is not None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc")
def test_the_system_is_read_right() -> None:
    before = read_stat(os.getpid())
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    after = read_stat(os.getpid())
    assert before is not None and after is not None and after[0] == "R"
    assert after[1] - before[1] == pytest.approx(0.3, abs=0.1)
    assert read_stat(2**30) is None


def outcome(tmp_path: Path, seconds: float, asks: float | None) -> Outcome:
    with Pool(1, tmp_path / "logs", ("support.faults",)) as pool:
        pool.submit(Call("burn", "support.faults:burn", {"seconds": seconds, "asks": asks}, 1.0))
        found: list[Outcome] = []
        while not found:
            found = pool.wait()
    return found[0]


def test_who_says_what_it_needs_gets_it(tmp_path: Path) -> None:
    assert outcome(tmp_path, 2.0, 5.0).value == "done"
    refused = outcome(tmp_path, 2.0, None)
    assert refused.error == "timeout" and "longer than 1 seconds, twice" in refused.message


def test_what_a_clip_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Declared seconds x pixels, of the window that is wanted; told once the clip takes its time."""
    assert needed(10.0, 3840 * 2160) > 10 * 60 and needed(None, 10**6) == 0 and needed(1e9, 10**9) == effort.MAX_SECONDS
    source = write(
        Spec(video="libx265", seconds=3.5, video_options=(("x265-params", "log-level=none"),)), tmp_path / "a.mp4"
    )
    told: list[float] = []
    monkeypatch.setattr(effort, "PATIENCE", 0.001)
    monkeypatch.setattr(effort.LINE, "send", told.append)
    slow = {**PRESETS["jav"].to_json(), "encoder_preset": "veryslow"}
    for window, recipe, seconds in (
        ([None, None], slow, 3.5),
        ([1.0, 2.0], slow, 2.0),
        ([None, None], {**slow, "max_seconds": 1.0}, 1.0),
    ):
        told.clear()
        compile_input("0", str(source), None, window, recipe, COMPILERS["jav"], str(tmp_path))
        assert told == [pytest.approx(needed(seconds, 160 * 120), rel=0.05)]


def test_nothing_is_told_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "PATIENCE", 0.05)
    line, told = Line(), list[float]()
    line.send = told.append
    with line.asking(lambda: 1.0):
        pass
    with line.asking(lambda: time.sleep(0.3) or 2.0):
        time.sleep(0.1)
    time.sleep(0.4)
    assert told == []

"""Short calls, of which workers are told a few ahead: each is still a call of its own."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from javisc.compiler.run.calls import Call, Outcome
from javisc.compiler.run.pool import Pool

TESTS = Path(__file__).parents[2]


def ended(pool: Pool) -> dict[int, Outcome]:
    found: dict[int, Outcome] = {}
    while pool.busy:
        found |= {outcome.call.tag: outcome for outcome in pool.wait()}
    return found


@pytest.mark.parametrize("order", ["crash", "hang"])
def test_one_that_dies_or_hangs_costs_itself_only(order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that its worker was told of before it died are made by another, in their first attempt."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")
    with Pool(2, tmp_path / "logs", ("support.faults",)) as pool:
        for number in range(12):
            what = order if number == 3 else "square"
            pool.submit(Call(number, "support.faults:short", {"what": what, "number": number}, 0.5, short=True))
        found = ended(pool)
    assert sorted(found) == list(range(12))
    for number, outcome in found.items():
        if number == 3:
            assert outcome.error == {"crash": "crashed", "hang": "timeout"}[order] and "twice" in outcome.message
        else:
            assert (outcome.error, outcome.value, outcome.call.attempts) == (None, number**2, 0)


def test_a_worker_is_told_ahead_of_short_calls_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a worker that is killed in between loses nothing."""
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")
    with Pool(1, tmp_path / "logs", ("support.faults",)) as pool:
        for number in range(9):
            call = Call(number, "support.faults:short", {"what": "nap", "number": number}, 9.0, short=number != 5)
            pool.submit(call)
        while not (pool.workers and pool.workers[0].call):
            assert not pool.wait()
        assert [call.tag for call in pool.workers[0].ahead] == [1, 2, 3, 4] and pool.waiting[0].tag == 5
        os.kill(pool.workers[0].process.pid, signal.SIGKILL)
        found = ended(pool)
    assert {number: outcome.value for number, outcome in found.items()} == {number: number**2 for number in range(9)}

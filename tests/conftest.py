"""Every test runs with few threads (the suite shares two cores between its workers) and none is timed.

Without a CUDA device, Triton kernels run under its interpreter, which Triton must be told before it is first imported. A skip
that `support/skips.py` does not expect on this machine is a failure, and a run ends with what was not tried.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from support.films import Films

pytest.register_assert_rewrite("support.looks")  # its asserts tell what they saw, as a test's
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A busy machine is not a bug: property tests have no deadline. In CI they try the same examples each time, so that what fails
# there is the change; elsewhere they keep looking for new ones.
settings.register_profile("javisc", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "javisc")


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Films:
    """Six films, their captions and their dataset (support.films): read, never changed."""
    from support.films import build, write

    return build(write(tmp_path_factory.mktemp("films")))


def pytest_configure(config: pytest.Config) -> None:
    """Every dataset that a test builds in its own process is judged when it is published. Workers of its pools are forks."""
    from support.forked import fork_workers
    from support.sane import watch

    watch()
    fork_workers()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Without the garbage collector, which a million objects of imported modules keep busy for seconds, and never look at them
    again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture
def cold_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of pools are fresh interpreters, as users have them, not forks of one (see support.forked)."""
    import subprocess

    from javisc.compiler.run import pool

    monkeypatch.setattr(pool, "subprocess", subprocess)


def _reason(report: Any) -> str:
    """Why a report says that something was skipped."""
    found = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(found).removeprefix("Skipped: ")


def _judged(report: Any) -> Any:
    from support.skips import expected

    if report.skipped and not hasattr(report, "wasxfail") and expected(_reason(report)) is None:
        report.longrepr = (
            f"skipped, which is not expected on this machine: {_reason(report)}\n"
            "Make it run, or say in tests/support/skips.py which machines may leave it out."
        )
        report.outcome = "failed"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    return _judged((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    return _judged((yield))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was not tried and why, last."""
    from support.skips import expected

    left = [report for report in terminalreporter.stats.get("skipped", []) if not hasattr(report, "wasxfail")]
    rows = [expected(_reason(report)) for report in left]
    terminalreporter.section("not tried", sep="-")
    for why, count in Counter(row.why if row else "?" for row in rows).most_common():
        terminalreporter.line(f"{count:>5} {why}")
    if not left:
        terminalreporter.line("    - nothing was left out")

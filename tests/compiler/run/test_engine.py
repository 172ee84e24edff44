"""The local engine against files that crash, hang and kill their worker, and against kills from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from javisc.compiler.run.calls import Call
from javisc.compiler.run.pool import Pool
from javisc.manifests.errors import UserError
from support.engines import rejects, run, sources
from support.processes import alive, workers_of

TESTS = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _workers_find_the_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")


def test_every_fault_costs_its_own_file_only(tmp_path: Path) -> None:
    faults = {"segfault": "crashed", "hang": "timeout", "spin": "timeout", "exit": "crashed", "kill": "crashed"}
    faults |= {"memory": "crashed", "bug": "internal", "reject": "corrupt"}
    good = {f"good {i}.mp4": f"fine {i}" for i in range(8)}
    out = tmp_path / "ds"
    files = {**{f"{name}.mp4": name for name in faults}, **good}
    result = run(sources(tmp_path / "raw", files), out, time_limit=1.0)
    found = rejects(out)
    assert {name.removesuffix(".mp4"): reason for name, (reason, _) in found.items()} == faults
    assert result.samples == len(good)
    assert "SIGSEGV" in found["segfault.mp4"][1] and "twice" in found["segfault.mp4"][1]
    assert found["reject.mp4"][1] == "a message of the library below"
    assert "ZeroDivisionError" in found["bug.mp4"][1]
    assert "code 7" in found["exit.mp4"][1]
    assert not (out / ".work").exists()


def test_a_call_that_takes_more_memory_than_its_bound_is_as_good_as_crashed(tmp_path: Path) -> None:
    """What a shard is made with, file by file, for which a node's memory did not suffice."""
    with Pool(1, tmp_path / "logs", ("support.faults",), bound=200_000_000) as pool:
        for size in (1, 600, 2):
            pool.submit(Call(size, "support.faults:held", {"megabytes": size}, 60.0))
        found: dict[int, tuple[str | None, str]] = {}
        while pool.busy or len(found) < 3:
            found |= {outcome.call.tag: (outcome.error, outcome.message) for outcome in pool.wait()}
    assert found[1] == found[2] == (None, "")
    assert found[600][0] == "crashed" and "where its shard asks a node for 0.2, twice" in found[600][1]


def test_a_killed_worker_costs_one_retry_and_no_bytes(tmp_path: Path) -> None:
    contents = {f"{i}.mp4": f"fine {i}" for i in range(6)}
    calm = run(sources(tmp_path / "a", contents), tmp_path / "calm", compiler="support.faults:fake")
    marked = sources(tmp_path / "b", {**contents, "3.mp4": f"once {tmp_path / 'mark'}"})
    first = run(marked, tmp_path / "once")
    assert first.samples == 6 and calm.samples == 6
    again = run(marked, tmp_path / "twin", workers=1)  # the mark is there now: nothing dies
    assert again.samples == 6
    assert tree(tmp_path / "once") == tree(tmp_path / "twin")


def tree(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "shards").rglob("*"))}


def test_a_full_disk_stops_in_one_line_and_resumes(tmp_path: Path) -> None:
    contents = {f"{i}.mp4": f"fine {i}" for i in range(9)}
    inputs = sources(tmp_path / "raw", {**contents, "full.mp4": "full"})
    with pytest.raises(UserError, match=r"half.mp4 cannot be written: No space left on device.*resumes") as caught:
        run(inputs, tmp_path / "ds", shard_samples=2)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ds" / "manifest.parquet").exists()
    (tmp_path / "raw" / "full.mp4").write_text("room again")
    inputs = sources(tmp_path / "raw", {**contents, "full.mp4": "room again"})
    assert run(inputs, tmp_path / "ds", shard_samples=2).samples == 10


def test_a_vanished_file_is_a_reject_and_a_vanished_folder_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAVISC_PATIENCE", "0.5")
    inputs = sources(tmp_path / "raw", {"a.mp4": "fine", "b.mp4": "fine b"})
    (tmp_path / "raw" / "a.mp4").unlink()
    result = run(inputs, tmp_path / "ds", compiler=None)
    assert result.rejected["vanished"] == 1
    inputs = sources(tmp_path / "mount", {"a.mp4": "fine", "b.mp4": "fine b"})
    for file in (tmp_path / "mount").iterdir():
        file.unlink()
    (tmp_path / "mount").rmdir()
    for left in ("mounted", "nothing"):  # an empty folder is what a lost mount leaves
        (tmp_path / "mount").mkdir() if left == "mounted" else (tmp_path / "mount").rmdir()
        with pytest.raises(UserError, match="mount it again") as caught:
            run(inputs, tmp_path / "other", compiler=None)
        assert caught.value.exit_code == 1 and not list((tmp_path / "other").rglob("*.rejected.parquet"))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    begun = [tmp_path / "hangs", tmp_path / "spins"]
    program = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from support.engines import sources, run\n"
        "files = {'a.mp4': 'hang ' + sys.argv[4], 'b.mp4': 'spin ' + sys.argv[5]}\n"
        "run(sources(Path(sys.argv[2]), files), Path(sys.argv[3]), time_limit=500.0)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", program, str(TESTS), *map(str, (tmp_path / "raw", tmp_path / "ds", *begun))]
    )
    until = time.monotonic() + 60
    while not all(mark.exists() for mark in begun):  # before that a worker reads its line, whose end ends it
        assert time.monotonic() < until and parent.poll() is None
        time.sleep(0.05)
    workers = [pid for pid, _ in workers_of(parent.pid)]
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    until = time.monotonic() + 10
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < until, "workers outlive their parent"
        time.sleep(0.05)


@pytest.mark.usefixtures("cold_workers")
def test_worker_threads_and_start_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are fresh interpreters: nothing of this process's modules or threads is in them, and no threads of a library.

    Where nobody sets OMP_NUM_THREADS, as a user does not, a worker for every core had as many threads each for its products.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    with Pool(1, tmp_path / "logs") as pool:
        for name in ("modules", "threads"):
            pool.submit(Call(name, f"support.probe_process:{name}", {}, 30))
        outcomes: dict[str, Any] = {}
        while len(outcomes) < 2:
            for outcome in pool.wait():
                assert outcome.error is None, outcome
                outcomes[outcome.call.tag] = outcome.value
    assert not {"torch", "nvidia.dali", "pytest", "_pytest"} & set(outcomes["modules"])
    assert outcomes["threads"] <= 2, "its own and the one that watches for its parent"


def test_more_inputs_lie_in_shards_of_the_size_that_is_asked_for_now(tmp_path: Path) -> None:
    """A plan remembers how many samples fill a shard of its size; of another size it must be found anew."""
    films = {f"{number}.mp4": f"fine {number}" for number in range(9)}
    small = {"workers": 1, "shard_samples": None, "compiler": "support.faults:fake"}
    first = run(sources(tmp_path / "raw", dict(list(films.items())[:3])), tmp_path / "ds", **small)
    more = run(sources(tmp_path / "raw", films), tmp_path / "ds", shard_size=10, **small)
    assert (first.shards, more.shards, more.samples) == (1, 1 + 6, 9)


def test_only_the_option_tries_again_what_was_refused_for_a_passing_reason(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    inputs = sources(tmp_path / "raw", {"a.mp4": "fine", "b.mp4": f"until {mended}"})
    run(inputs, tmp_path / "ds", workers=1)
    assert rejects(tmp_path / "ds")["b.mp4"][0] == "internal"
    mended.touch()
    run(inputs, tmp_path / "ds", workers=1)
    assert list(rejects(tmp_path / "ds")) == ["b.mp4"], "it is not tried again by itself"
    assert run(inputs, tmp_path / "ds", workers=1, retry_rejected=True).samples == 2
    assert rejects(tmp_path / "ds") == {}

"""Work that is spread over processes outlives them; and only the cores that were given are used."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from javisc.compiler.dedupe.near import near_pairs
from javisc.compiler.demo.sync import make_datasets
from javisc.compiler.run import cores
from javisc.compiler.run.calls import Call, Outcome
from javisc.compiler.run.spread import Job, Resources, _halves, spread, visible_gpus
from javisc.compiler.sparsesync.files import write_files
from javisc.compiler.sparsesync.offsets import clip_namer
from javisc.manifests.environment import Unavailable
from javisc.manifests.errors import UserError
from javisc.manifests.io import scan_many
from support.compiled import write
from support.processes import workers_of

TESTS = Path(__file__).resolve().parents[2]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".build" not in path.parts
    }


def near(dataset: Path, folder: Path) -> Any:
    near_pairs(scan_many([str(dataset)])[1], folder, workers=2)
    return digests(folder)


def files(dataset: Path, folder: Path) -> Any:
    assert write_files(str(dataset), folder, clip_namer(None), workers=2).written == 5
    return digests(folder)


def demo(dataset: Path, folder: Path) -> Any:
    made = make_datasets(folder, clips=3, test_clips=1, workers=2, say=lambda line: None)
    return [sorted(pl.read_parquet(each / "manifest.parquet")["source_sha256"]) for each in (made.learn, made.test)]


@pytest.mark.usefixtures("cold_workers")  # whose start a kill can meet: forks may have done all by then
@pytest.mark.parametrize("work", [near, files, demo])
def test_a_killed_worker_changes_nothing(work: Callable[[Path, Path], Any], tmp_path: Path) -> None:
    dataset = write(tmp_path / "ds", [24, 30, 36, 24, 48])
    calm = work(dataset, tmp_path / "calm")
    killed, over = [], threading.Event()

    def kill() -> None:
        while not killed and not over.wait(0.005):
            if workers := [pid for pid, retry in workers_of(os.getpid()) if not retry]:
                time.sleep(0.25)
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        assert work(dataset, tmp_path / "killed") == calm
    finally:
        over.set()
        thread.join()
    assert killed


def test_what_always_kills_its_worker_costs_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")
    calls = [(number, {"number": number}, 30.0) for number in range(6)]
    ended = {outcome.call.tag: outcome for outcome in spread("support.faults:deadly_three", calls, workers=2)}
    assert sorted(ended) == list(range(6)) and ended[3].error == "crashed" and "twice" in ended[3].message
    assert [ended[number].value for number in (0, 1, 2, 4, 5)] == [0, 1, 4, 16, 25]


def test_storage_that_is_away_stops_the_work_and_is_no_items_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")
    with pytest.raises(Unavailable, match="/mnt/away does not answer"):
        list(spread("support.faults:away", [(0, {"number": 0}, 30.0)], workers=1))


def test_a_sample_that_kills_its_worker_has_no_fingerprint_and_the_others_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that crashes on one clip: here soundfile, by a file that every worker imports at its start."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(DEADLY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "python"), prepend=":")
    dataset = write(tmp_path / "ds", [24, 30, 36], hiss=True)
    found = near_pairs(scan_many([str(dataset)])[1], tmp_path / "prints", workers=2)
    assert found.unread == 1
    (table,) = (tmp_path / "prints").glob("*.parquet")
    rows = pl.read_parquet(table).sort("row")
    assert [error is None for error in rows["error"]] == [True, False, True]
    assert all(len(sound) > 0 for sound, error in rows.select("sound", "error").iter_rows() if error is None)
    with pytest.raises(UserError, match=r"00000001|1\.mp4"):
        write_files(str(dataset), tmp_path / "files", clip_namer(None), workers=2)
    assert sorted(path.name for path in (tmp_path / "files").glob("*.mp4")) == ["0.mp4", "2.mp4"]


DEADLY = """
import os, signal, sys
if "javisc.compiler.run.worker" in " ".join(sys.orig_argv):
    from javisc.manifests.members import MemberReader
    read = MemberReader.read
    def deadly(self, row, kind):
        if row["key"] == "00000001":
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, row, kind)
    MemberReader.read = deadly
"""


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {}, 64),
        ("0::/\n", {"cpu.max": "max 100000"}, 64),
        ("0::/\n", {"cpu.max": "400000 100000"}, 4),
        ("0::/\n", {"cpu.max": "150000 100000"}, 2),
        ("0::/job/step\n", {"job/cpu.max": "300000 100000", "job/step/cpu.max": "max 100000"}, 3),
        ("0::/not/visible/here\n", {"cpu.max": "50000 100000"}, 1),
        ("3:cpu,cpuacct:/job\n", {"cpu/job/cpu.cfs_quota_us": "200000", "cpu/job/cpu.cfs_period_us": "100000"}, 2),
        ("3:cpu:/job\n", {"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, 64),
        ("nonsense\n", {"cpu.max": "nonsense"}, 64),
    ],
)  # fmt: skip
def test_a_quota_of_control_groups_counts(
    groups: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)))
    (tmp_path / "cgroup").write_text(groups)
    for name, content in files.items():
        (tmp_path / "mount" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mount" / name).write_text(content + "\n")
    assert cores.usable_cores(tmp_path / "cgroup", tmp_path / "mount") == expected


def test_the_affinity_counts() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_the_gpus_are_those_that_the_user_or_the_driver_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n[ \"$1 $2\" = '--query-gpu=index --format=csv,noheader' ] && printf '0\\n1\\n'\n")
    tool.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert visible_gpus() == ["0", "1"]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert visible_gpus() == [], "the driver does not answer"
    for said, names in {"3,GPU-a": ["3", "GPU-a"], "": [], "-1": []}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
        assert visible_gpus() == names


@pytest.mark.parametrize(("error", "halved"), [("crashed", True), ("timeout", True), ("raised", False), (None, False)])
def test_a_half_is_a_call_of_its_own_with_all_its_tries(error: str | None, halved: bool) -> None:
    job, first = Job("support.faults:squares", items="numbers"), Call("first", "module:load", {}, 5.0)
    made = {"before": first, "tries": 3, "attempts": 3, "prepared": True}
    call = Call(7, "support.faults:squares", {"numbers": [1, 2, 3], "load": "x"}, 9.0, **made)
    parts = [Call(7, call.function, {"numbers": part, "load": "x"}, 9.0, first, tries=3) for part in ([1], [2, 3])]
    assert _halves(job, Outcome(call, error=error)) == (parts if halved else [])
    assert _halves(job, Outcome(parts[0], error=error)) == [], "one item is the culprit itself"


def test_one_process_for_each_gpu_and_what_kills_it_is_halved_down_to_one_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")
    job = Job("support.faults:squares", Resources(gpus=1), items="numbers")
    calls = [(batch, {"numbers": [4 * batch + n for n in range(4)]}, 60.0) for batch in range(8)]
    seen: dict[str, set[int]] = {}
    made: dict[int, int] = {}
    failed = []
    for outcome in spread(job, calls, devices=["GPU-a", "GPU-b"]):
        if outcome.error is not None:
            failed.append((outcome.call.arguments["numbers"], outcome.error, outcome.message))
            continue
        made |= dict(zip(outcome.call.arguments["numbers"], outcome.value["squares"], strict=True))
        seen.setdefault(outcome.value["gpus"], set()).add(outcome.value["process"])
    assert made == {number: number**2 for number in range(32) if number != 3}
    assert [(items, error) for items, error, _ in failed] == [([3], "crashed")] and "3 times" in failed[0][2]
    assert set(seen) == {"GPU-a", "GPU-b"} and sum(map(len, seen.values())) < 14
    both = Job("support.faults:squares", Resources(gpus=2), items="numbers")
    (outcome,) = spread(both, calls[1:2], devices=["GPU-a", "GPU-b"])
    assert (outcome.value["gpus"], outcome.value["squares"]) == ("GPU-a,GPU-b", [16, 25, 36, 49])
    with pytest.raises(UserError, match="needs 2 GPUs for a process, this machine shows 1"):
        list(spread(Job("support.faults:squares", Resources(gpus=2)), calls, devices=["0"]))

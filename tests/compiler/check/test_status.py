"""Parts of one plan, built side by side by processes that know nothing of each other, and what `javisc status` says of them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.check.status import Status, _rate, ranges, status
from javisc.compiler.plan import settings as parse
from javisc.compiler.plan.layout import summary
from javisc.compiler.recipe import PRESETS
from javisc.compiler.store.files import Store
from javisc.compiler.store.running import forget
from javisc.manifests.errors import UserError
from javisc.manifests.io import read_header
from support.engines import digests, run, sources

TESTS = Path(__file__).resolve().parents[2]
CLIPS = {f"{number:03d}.mp4": f"fine {number}" for number in range(30)} | {"bad.mp4": "reject"}


@pytest.fixture(autouse=True)
def _workers_find_the_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")


def test_three_processes_build_a_plan_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    inputs = sources(tmp_path / "raw", CLIPS)
    run(inputs, tmp_path / "whole")
    out = tmp_path / "parts"
    planned = run(inputs, out, write_plan=True)
    assert (planned.samples, planned.shards) == (0, 8) and not (out / "shards").exists()
    before = status(str(out))
    assert (before.shards, before.published, before.inputs, before.merged) == (8, 0, 31, False)
    assert before.missing == tuple(range(8)) and before.rate is None
    program = (
        "import sys; from javisc.compiler.build import BuildOptions, build; from javisc.compiler.recipe import PRESETS\n"
        "build(None, PRESETS['jav'], sys.argv[1], BuildOptions(compiler='support.faults:faulty', workers=1, shard_samples=4,"
        " time_limit=2.0, part=(int(sys.argv[2]), 3)))"
    )
    # The raw list is not looked at again: a part needs the plan alone.
    processes = [subprocess.Popen([sys.executable, "-P", "-c", program, str(out), str(part)]) for part in (2, 0)]
    assert [process.wait(120) for process in processes] == [0, 0]
    between = status(str(out))
    assert between.missing == (1, 4, 7) and between.parts(3) == (1,) and not between.merged
    assert between.published == 5 and between.samples + sum(between.rejected.values()) == between.inputs_done
    with pytest.raises(UserError, match="a build was begun there and not finished; `javisc status"):
        read_header(str(out / "dataset.json"))
    with pytest.raises(UserError, match="3 of 8 shards are not built yet"):
        run(None, out, finish=True)  # type: ignore[arg-type]
    assert subprocess.run([sys.executable, "-P", "-c", program, str(out), "1"], timeout=120).returncode == 0
    assert not status(str(out)).merged and not status(str(out)).missing
    run(None, out, finish=True)  # type: ignore[arg-type]
    after = status(str(out))
    assert after.merged and after.samples == 30 and after.rejected == {"corrupt": 1}
    assert after.bytes == sum(path.stat().st_size for path in out.glob("shards/*.tar")) > 0
    assert digests(out) == digests(tmp_path / "whole")
    for name in ("manifest.parquet", "shards.parquet", "rejected.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_who_builds_is_told_while_it_lives(tmp_path: Path) -> None:
    out = tmp_path / "ds"
    slow = {f"{number:03d}.mp4": f"slow {number}" for number in range(400)}
    run(sources(tmp_path / "raw", slow), out, write_plan=True)
    program = (
        "import sys; from javisc.compiler.build import BuildOptions, build; from javisc.compiler.recipe import PRESETS\n"
        "build(None, PRESETS['jav'], sys.argv[1], BuildOptions(compiler='support.faults:faulty', workers=1, shard_samples=4,"
        " part=(1, 3)))"
    )
    assert status(str(out)).running == ()
    process = subprocess.Popen([sys.executable, "-P", "-c", program, str(out)])
    try:
        until = time.monotonic() + 60
        while not (found := status(str(out))).running:
            assert process.poll() is None and time.monotonic() < until
        (one,) = found.running
        assert (one.pid, one.part, one.what, one.host) == (process.pid, (1, 3), "part 1/3", socket.gethostname())
        assert found.parts(3) == (0, 2) and 1 in found.parts(4)
    finally:
        process.kill()
        process.wait()
    # A killed one is no longer told, though nobody could say goodbye for it; the next build that is alone clears it away.
    assert status(str(out)).running == () and list((out / ".build" / "running").iterdir())
    assert 1 in status(str(out)).parts(3)
    forget(Store(str(out), tmp_path / "scratch"))
    assert not list((out / ".build" / "running").iterdir())


def test_what_was_added_since_the_merge_is_told(tmp_path: Path) -> None:
    out = tmp_path / "ds"
    run(sources(tmp_path / "raw", CLIPS), out)
    run(sources(tmp_path / "raw", {**CLIPS, "new.mp4": "fine new"}), out, write_plan=True)
    found = status(str(out))
    assert found.missing == (8,) and not found.merged and found.inputs == 32
    with pytest.raises(
        UserError, match="was built without --split, now it is with --split a=0.25,b=0.75: give the same"
    ):
        run(sources(tmp_path / "raw", CLIPS), out, split={"a": 0.25, "b": 0.75})
    shutil.rmtree(out / ".build")
    with pytest.raises(UserError, match="has no plan: nothing was begun there"):
        status(str(out))


def test_a_copy_is_as_merged_as_its_dataset_and_a_torn_shard_is_missing(tmp_path: Path) -> None:
    run(sources(tmp_path / "raw", CLIPS), tmp_path / "ds")
    copy = shutil.copytree(tmp_path / "ds", tmp_path / "copy")
    for part in (copy / ".build/parts").iterdir():
        os.utime(part)  # copied last
    assert status(str(copy)).merged
    torn, gone = copy / "shards/000002.tar", copy / "shards/000005.tar"
    os.truncate(torn, 100)
    gone.unlink()
    found = status(str(copy))
    assert found.missing == (2, 5) and not found.merged and found.parts(8) == (2, 5)
    assert "000002.tar has 100 bytes instead of" in found.lost[2] and found.lost[5] == "shards/000005.tar is missing"


def test_the_rate_is_that_of_the_last_hour_and_the_first_shard_of_it_begins_it() -> None:
    published = [(0.0, 1000), (7000.0, 9), (4000.0, 5), (5000.0, 7)]
    assert _rate(published) == pytest.approx((7 + 9) / 3000)
    assert _rate(published[:1]) is None and _rate([]) is None
    found = Status(9, 31, 4, 21, 20, {}, 0, (), rate=0.5, merged=False)
    assert found.seconds_left == 20 and replace(found, rate=None).seconds_left is None


@settings(deadline=None, max_examples=30)
@given(shards=st.integers(0, 200), count=st.integers(1, 20), low=st.integers(0, 50), size=st.integers(1, 50))
def test_parts_cover_a_plan_once(shards: int, count: int, low: int, size: int) -> None:
    taken = [shard for part in range(count) for shard in range(shards) if BuildOptions(part=(part, count)).takes(shard)]
    assert sorted(taken) == list(range(shards))
    assert [shard for shard in range(shards) if BuildOptions(shard_range=(low, low + size)).takes(shard)] == [
        shard for shard in range(shards) if low <= shard < low + size
    ]


@given(st.sets(st.integers(0, 60)))
def test_ranges_are_read_back(numbers: set[int]) -> None:
    text = ranges(numbers)
    back = {
        number
        for run in filter(None, text.split(","))
        for number in range(int(run.split("-")[0]), int(run.split("-")[-1]) + 1)
    }
    assert back == numbers


def test_arrays_say_their_part() -> None:
    slurm = {
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_MAX": "63",
        "SLURM_ARRAY_TASK_COUNT": "64",
    }
    assert parse.part("auto", slurm) == (5, 64)
    assert parse.part("auto", {**slurm, "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "64"}) == (4, 64)
    steps = {
        "SLURM_ARRAY_TASK_STEP": "2",
        "SLURM_ARRAY_TASK_ID": "4",
        "SLURM_ARRAY_TASK_MAX": "6",
        "SLURM_ARRAY_TASK_COUNT": "4",
    }
    assert parse.part("auto", {**slurm, **steps}) == (2, 4)
    assert parse.part(
        "auto", {"SGE_TASK_ID": "3", "SGE_TASK_FIRST": "1", "SGE_TASK_LAST": "9", "SGE_TASK_STEPSIZE": "1"}
    ) == (2, 9)
    assert parse.part("auto", {"LSB_JOBINDEX": "7", "LSB_JOBINDEX_END": "8"}) == (6, 8)
    assert parse.part("auto", {"SLURM_PROCID": "2", "SLURM_NTASKS": "16"}) == (2, 16)
    assert parse.part("auto", {"SGE_TASK_ID": "undefined", **slurm}) == (5, 64)
    assert parse.part("0/1", {}) == (0, 1)
    with pytest.raises(UserError, match=r"this array has gaps .* give --part \$SLURM_ARRAY_TASK_ID/N"):
        parse.part("auto", {**slurm, "SLURM_ARRAY_TASK_COUNT": "3"})
    for wrong in ("3/3", "4", "-1/3", "1/0", "a/b", "1/3/4", ""):
        with pytest.raises(UserError, match="I/N with I from 0 to N-1"):
            parse.part(wrong, slurm)
    with pytest.raises(UserError, match="is set: give --part I/N"):
        parse.part("auto", {})


def test_a_plan_can_be_written_for_real_media(tmp_path: Path) -> None:
    """The shards of the plan are those that a build makes, also where their size has to be guessed."""
    inputs = sources(tmp_path / "raw", CLIPS)
    options = BuildOptions(write_plan=True, shard_samples=7)
    assert (
        build(inputs, PRESETS["jav"], tmp_path / "ds", options).shards
        == summary(tmp_path / "ds/.build/plan.parquet").height
    )

"""Locks: one builder at a time on disks and in object stores, and what happens where there are no locks."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.store import lease as leases
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.compiler.store.scratch import Scratch, sweep
from javisc.manifests.errors import UserError
from support.faulty_store import s3_server
from support.processes import before_others
from support.raw import raw_folder
from support.sane import sane
from support.soak import OPTIONS, local_digests

TESTS = Path(__file__).resolve().parents[2]
#: The issue asks for 100; the suite takes a slice.
ROUNDS = int(os.environ.get("JAVISC_TEST_LOCK_ROUNDS", "8"))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    with s3_server():
        s3fs.S3FileSystem().mkdir("locks")
        yield "s3://locks"


def contend(where: str, folder: Path) -> list[tuple[str, str]]:
    """What two processes were told that took the lock of `where`/N together, by round."""
    folder.mkdir()
    command = [sys.executable, "-P", "-m", "support.contender", where, str(folder)]
    started = [
        subprocess.Popen([*command, name, str(ROUNDS)], env=os.environ | {"PYTHONPATH": before_others(TESTS)})
        for name in "ab"
    ]
    assert [process.wait() for process in started] == [0, 0]
    return [tuple((folder / f"{name}.{number}").read_text() for name in "ab") for number in range(ROUNDS)]  # type: ignore[misc]


@pytest.mark.parametrize("remote", [False, True])
def test_of_two_that_start_together_one_builds_and_one_says_who(remote: bool, s3: str, tmp_path: Path) -> None:
    told = contend(f"{s3}/together" if remote else str(tmp_path / "together"), tmp_path / "told")
    for pair in told:
        assert sorted(said == "held" for said in pair) == [False, True], pair
        loser = next(said for said in pair if said != "held")
        assert re.search(r"is being built by (process \d+ on \S+|another process): wait for it", loser), loser


@pytest.mark.parametrize("remote", [False, True])
def test_ranges_share_the_lock_and_nobody_else(remote: bool, s3: str, tmp_path: Path) -> None:
    """Holders of ranges are several and none is alone, so none removes what others left; nor is one beside a whole build."""
    store = Store(f"{s3}/ranges" if remote else str(tmp_path / "ranges"), tmp_path)
    with locked(store, shared=True) as one, locked(store, shared=True) as other:
        assert not one.alone and not other.alone
    if not remote:  # what an earlier holder wrote, whose name was longer
        (tmp_path / "ranges/.build/lock").write_text("process 123456789 on a-host-of-a-long-name.example.org\n")
    me = re.escape(f"process {os.getpid()} on {socket.gethostname()}")
    with locked(store) as held:
        assert held.alone
        with pytest.raises(UserError, match=rf"is being built by {me}: wait for it"), locked(store, shared=True):
            pass
    with locked(store, shared=True) as again:
        assert not again.alone


def test_a_released_lock_and_one_of_a_dead_process_are_taken(s3: str, tmp_path: Path) -> None:
    store = Store(f"{s3}/dead", tmp_path)
    for _ in range(3):
        with (
            locked(store),
            pytest.raises(UserError, match=rf"is being built by process {os.getpid()} on"),
            locked(store),
        ):
            pass
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    held = {"pid": gone.pid, "host": socket.gethostname(), "space": leases.space(), "id": "x", "beat": 3}
    store.write(json.dumps(held | {"renewed": time.time()}).encode(), ".build", "lock-000009.json")
    with locked(store):
        assert store.names(".build") == {"lock-000010.json"}


def test_a_lock_of_another_machine_ends_with_its_lease(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same process number lives here, so only the silence tells; a clock that is behind is not silence."""
    monkeypatch.setattr(leases, "BEAT", 0.3)
    store = Store(f"{s3}/lease", tmp_path)
    other = {
        "pid": os.getpid(),
        "host": "elsewhere",
        "space": "another boot",
        "id": "x",
        "beat": 3,
        "renewed": time.time(),
    }
    store.write(json.dumps(other).encode(), ".build", "lock-000001.json")
    with pytest.raises(UserError, match="on elsewhere"), locked(store):
        pass
    store.write(json.dumps(other | {"renewed": time.time() - 3600}).encode(), ".build", "lock-000001.json")
    with locked(store) as held:
        held.check()
        # A machine that slept while another took over learns it at its next beat.
        store.write(json.dumps(other).encode(), ".build", "lock-000003.json")
        until = time.monotonic() + 20
        while held.lost is None and time.monotonic() < until:  # type: ignore[attr-defined]
            time.sleep(0.05)
        with pytest.raises(UserError, match="process .* on elsewhere took its lock over"):
            held.check()


def test_a_living_holder_is_renewed_and_not_taken_for_dead(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.2)
    monkeypatch.setattr(leases, "LEASE", 0.0)  # clocks that differ by more than a lease
    store = Store(f"{s3}/living", tmp_path)
    with locked(store):
        monkeypatch.setattr(leases, "space", lambda: "another machine")
        with pytest.raises(UserError, match="is being built by"), locked(Store(f"{s3}/living", tmp_path / "b")):
            pass


NO_LOCKS = """
import errno, fcntl, os
def flock(descriptor, kind):
    raise OSError(errno.{0}, os.strerror(errno.{0}))
fcntl.flock = flock
"""


@pytest.mark.parametrize("error", ["ENOSYS", "ENOLCK"])
def test_without_locks_two_builds_lose_nothing_and_say_so(error: str, tmp_path: Path) -> None:
    raw = raw_folder(tmp_path / "raw", 4)
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "sitecustomize.py").write_text(NO_LOCKS.format(error))
    command = [sys.executable, "-P", "-m", "javisc", "build", "jav", str(raw), *OPTIONS, "--out"]
    subprocess.run([*command, str(tmp_path / "calm")], check=True, capture_output=True)
    environment = os.environ | {"PYTHONPATH": before_others(tmp_path / "python")}
    started = [
        subprocess.Popen([*command, str(tmp_path / "ds")], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in started:
        said = process.communicate()[1]
        assert process.returncode == 0, said
        assert "file system without locks" in said and os.strerror(getattr(__import__("errno"), error)) in said
    assert pl.read_parquet(tmp_path / "ds" / "rejected.parquet").is_empty()
    sane(tmp_path / "ds", inputs=4, split=())
    assert local_digests(tmp_path / "ds") == local_digests(tmp_path / "calm")


def test_only_folders_whose_owner_is_gone_are_swept(tmp_path: Path) -> None:
    """Not by process numbers: a container's say nothing about another's, even where both have one name."""
    mine, living = Scratch("s3://x/ds", tmp_path), Scratch("s3://x/ds", tmp_path)
    mine.open()
    living.open()
    dead = living.path.with_name(f"javisc-{socket.gethostname()}-{os.getpid()}-dead")
    dead.mkdir()
    (dead / ".alive").touch()
    unknown = dead.with_name(f"javisc-{socket.gethostname()}-999999999-unknown")
    unknown.mkdir()
    sweep(Store(str(tmp_path / "ds"), mine.path), mine)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.path.name, living.path.name, unknown.name])
    living.close()
    mine.close()
    assert not mine.path.exists() and not living.path.exists()

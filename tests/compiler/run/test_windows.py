"""Windows of one source: fetched once, digested once, and each still its own row whatever becomes of the others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.inputs.table import table
from javisc.compiler.media.onward import forget
from javisc.compiler.media.transcode import transcode
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS
from javisc.compiler.run import ahead, digests, node
from javisc.compiler.run.ahead import Ahead, Group, groups
from javisc.compiler.run.calls import Call
from javisc.compiler.run.copies import Copies
from javisc.compiler.run.pool import Pool
from javisc.manifests.files import sha256_of
from javisc.manifests.urls import filesystem
from support import faults
from support.engines import digests as shards
from support.engines import rejects, run, sources, windows
from support.faulty_store import s3_server
from support.media import Spec, write

TESTS = Path(__file__).resolve().parents[2]
#: Films whose compiler dies at a second of theirs, or never.
FILMS = {"a.mp4": "film", "b.mp4": "film 5.0", "c.mp4": "film", "whole.mp4": "fine"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Callable[[], Counter[str]]]]:
    """A bucket's URL on a real S3 server of this machine, and what counts the requests for objects so far."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    log = tmp_path_factory.mktemp("moto") / "log"

    def asked() -> Counter[str]:
        return Counter(re.findall(r'"((?:GET|HEAD) /bucket/\S*)', log.read_text()))

    with s3_server(log):
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket", asked


def test_a_remote_source_is_asked_for_once_however_many_windows_it_has(
    store: tuple[str, Callable[[], Counter[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    url, asked = store
    files = sources(tmp_path / "raw", FILMS)
    filesystem(url)[0].put(f"{tmp_path / 'raw'}/", "bucket/raw/", recursive=True)
    local = windows(files, 12)
    run(local, tmp_path / "here", shard_samples=5)
    remote = local.with_columns(path=pl.lit(f"{url}/raw/") + pl.col("relpath"))
    before = asked()
    run(remote, tmp_path / "there", shard_samples=5, scratch=tmp_path)
    assert len(shards(tmp_path / "here")) == 2 * 10
    assert shards(tmp_path / "there") == shards(tmp_path / "here")
    found = asked() - before
    assert {name: found[f"GET /bucket/raw/{name}"] for name in FILMS} == dict.fromkeys(FILMS, 1)
    assert found.total() == len(FILMS), found
    table = pl.read_parquet(tmp_path / "there" / "rejected.parquet")
    assert table.select("path", "reason", "clip_start").rows() == [(f"{url}/raw/b.mp4", "crashed", 5.0)]
    assert pl.read_parquet(tmp_path / "there" / "manifest.parquet").height == 47
    assert not list(tmp_path.glob("javisc-*")), "copies are left"


def test_what_is_not_there_costs_its_own_windows(
    store: tuple[str, Callable[[], Counter[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    url, _ = store
    files = sources(tmp_path / "raw", {"here.mp4": "film", "gone.mp4": "film"})
    filesystem(url)[0].put_file(str(tmp_path / "raw/here.mp4"), "bucket/some/here.mp4")
    remote = windows(files, 3).with_columns(path=pl.lit(f"{url}/some/") + pl.col("relpath"))
    assert run(remote, tmp_path / "ds").samples == 3
    assert rejects(tmp_path / "ds")["gone.mp4"][0] == "vanished"
    assert pl.read_parquet(tmp_path / "ds" / "rejected.parquet").height == 3


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([None, "x", "y"]), st.floats(0, 9)), max_size=12),
    st.randoms(use_true_random=False),
)
def test_every_row_is_in_one_group_of_its_sources(rows: list[tuple[str, str | None, float]], draw: object) -> None:
    names = ("path", "audio_path", "window_start")
    given = [{**dict(zip(names, row, strict=True)), "raw_path": None, "key": str(n)} for n, row in enumerate(rows)]
    found = groups(0, given)
    assert sorted(row["key"] for group in found for row in group.rows) == sorted(row["key"] for row in given)
    assert len({(group.rows[0]["path"], group.rows[0]["audio_path"]) for group in found}) == len(found)
    for group in found:
        assert len({(row["path"], row["audio_path"]) for row in group.rows}) == 1
        assert [row["window_start"] for row in group.rows] == sorted(row["window_start"] for row in group.rows)


def test_windows_of_a_film_are_what_each_is_by_itself_also_where_a_worker_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    film = tmp_path / "film.mp4"
    write(Spec(seconds=14.0, size=(96, 64), video_options=(("g", "60"), ("sc_threshold", "0"))), film)
    film.with_suffix(".deadly").write_text("7.0")
    rows = windows(table([{"path": str(film), "relpath": "film.mp4", "source_bytes": film.stat().st_size}]), 13)
    run(rows, tmp_path / "ds", compiler="support.faults:film", shard_samples=13, time_limit=60.0)
    assert not film.with_suffix(".deadly").exists()
    manifest = pl.read_parquet(tmp_path / "ds" / "manifest.parquet")
    assert manifest.height == 13
    with tarfile.open(tmp_path / "ds" / "shards" / "000000.tar") as shard:
        for key, start, end in manifest.select("key", "clip_start", "clip_end").iter_rows():
            forget()
            (folder := tmp_path / key).mkdir()
            for extension, made in transcode(film, PRESETS["jav"], folder, window=(start, end)).files.items():
                member = shard.extractfile(f"{key}.{extension}")
                assert member is not None and member.read() == made.read_bytes(), (start, extension)


def test_calls_of_a_run_go_to_one_worker_and_none_waits_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    found: list[tuple[tuple[str, int], int]] = []
    with Pool(2, tmp_path / "logs", ("support.faults",)) as pool:
        for number, run_ in enumerate("a" * 16 + "b" * 8 + "c" * 8):
            pool.submit(Call((run_, number), "support.faults:who", {"seconds": 0.02}, 60.0, run=run_))
        while pool.busy:
            found += [(outcome.call.tag, outcome.value) for outcome in pool.wait()]
    makers = [pid for _, pid in sorted(found)]
    assert len(makers) == 32
    # Two workers in turn would change at every call; one that has nothing left takes the later half of what the other has.
    changes = sum(one != other for one, other in pairwise(makers))
    assert 0 < changes <= 8, makers


@settings(deadline=None, max_examples=20)
@given(st.lists(st.tuples(st.floats(0, 500), st.floats(1, 20)), min_size=2, max_size=40))
def test_runs_are_windows_that_lie_close(given: list[tuple[float, float]]) -> None:
    rows = [
        {"key": str(n), "window_start": at, "window_end": at + length} for n, (at, length) in enumerate(sorted(given))
    ]
    runs = Group(0, rows).runs
    assert runs[0] == "0:0"
    for number, row in enumerate(rows[1:], 1):
        gap = row["window_start"] - max(before["window_end"] for before in rows[:number])
        assert (runs[number] != runs[number - 1]) == (gap > ahead.NEAR)
    assert len(set(runs)) == sum(1 for _ in groupby(runs)), "a run is taken up again"


def test_a_digest_that_is_known_is_not_taken_again_unless_the_file_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = tmp_path / "film"
    film.write_bytes(b"a film")
    known = digests.known_of([("film", str(film)), ("none", str(tmp_path / "none"))], {})
    assert known == {"film": (sha256_of(film), 6, film.stat().st_mtime_ns)}
    read: list[Path] = []
    monkeypatch.setattr(digests, "sha256_of", lambda path: (read.append(path), sha256_of(path))[1])
    made, found = digests.digested({"film": film}, lambda: "made", known)
    assert (made, found, read) == ("made", {"film": known["film"][0]}, [])
    assert digests.known_of([("film", str(film))], known) == known and not read
    film.write_bytes(b"another")
    assert digests.digested({"film": film}, lambda: "made", known)[1] == {"film": sha256_of(film)} and read
    with pytest.raises(Rejected, match="changed while it was read"):
        digests.digested({"film": film}, lambda: film.write_bytes(b"!"), digests.known_of([("film", str(film))], {}))


def test_copies_stay_while_somebody_needs_them_and_go_when_room_is_needed(tmp_path: Path) -> None:
    here, there = (Copies(tmp_path / "copies", most=1000) for _ in range(2))
    places = []
    for number, copies in enumerate((here, here, there)):
        places.append(Path(copies.hold(f"s3://b/{number}.mp4", 300)))
        places[-1].write_bytes(bytes(300))
        os.utime(places[-1], (number, number))
    assert here.room(100) and not here.room(101), "900 bytes are held"
    here.release("s3://b/1.mp4", keep=True)
    assert here.room(300) and not places[1].exists() and places[0].exists() and places[2].exists()
    here.release("s3://b/0.mp4", keep=False)
    assert not places[0].exists() and here.room(10**9), "what is larger than all has its place, alone"
    assert places[2].exists(), "another build needs it"
    there.close()
    assert here.room(10**9) and not places[2].exists()


def test_a_copy_that_another_process_holds_stays_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    program = (
        "import sys,time; from pathlib import Path; from javisc.compiler.run.copies import Copies\n"
        "Path(Copies(Path(sys.argv[1])).hold('s3://b/a.mp4', 9)).write_bytes(bytes(9)); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-P", "-c", program, str(tmp_path)])
    copies = Copies(tmp_path, most=10)
    try:
        place, until = Path(copies.place("s3://b/a.mp4")), time.monotonic() + 60
        while not place.exists() or place.stat().st_size < 9:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert copies.room(9) and place.exists()
    finally:
        other.kill()
        other.wait()
    assert copies.room(9) and not place.exists()


def test_no_more_is_fetched_ahead_than_there_is_room_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Group] = []
    monkeypatch.setattr(Ahead, "_submit", lambda self, group, wanted: started.append(group))
    made = Ahead(3, Copies(tmp_path, most=1000), tmp_path / "logs")
    rows = [
        {**dict.fromkeys(("audio_path", "audio_bytes", "raw_path", "window_end")), "path": f"s3://b/{n}.mp4"}
        | {"key": str(n), "source_bytes": 200 if n < 8 else 10, "window_start": 1.0}
        for n in range(30)
    ]
    for group in groups(0, rows):
        assert group.waits
        made.push(group)
    list(made.wait(0.0))
    assert len(started) == 5, "1,000 bytes"
    for row in rows[:8]:
        made.done(0, row)
        list(made.wait(0.0))
    assert len(started) == 8 + 2 * 3 + 4, "so many sources"
    assert made.full


@pytest.mark.parametrize(
    ("fetch", "name", "error"), [("broken", "a", "raised"), ("kept", "crash", None), ("kept", "a", None)]
)
def test_a_fetch_that_fails_is_told_and_a_digest_that_fails_is_left_to_compiling(
    fetch: str, name: str, error: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS), prepend=":")
    monkeypatch.setattr(ahead, "fetch_all", getattr(faults, f"{fetch}_fetch"))
    monkeypatch.setattr(ahead, "known_of", faults.faulty_digest)
    row = dict.fromkeys(("audio_path", "audio_bytes", "raw_path", "window_start", "window_end"))
    group = Group(0, [{**row, "path": f"s3://b/{name}.mp4", "key": "0", "source_bytes": 9}])
    with Ahead(1, Copies(tmp_path, most=1000), tmp_path / "logs") as made:
        made.push(group)
        ended: list[Any] = []
        while not ended:
            ended = list(made.wait(0.5))
    ((found, outcome),) = ended
    assert found is group and outcome.error == error
    assert error is None or "cannot fetch 1 sources" in outcome.message


def test_a_folder_that_processes_share_goes_with_the_last_of_them(tmp_path: Path) -> None:
    program = (
        "import sys,time; from javisc.compiler.run.node import shared_folder\n"
        "print(shared_folder(sys.argv[1], 'run'), shared_folder(sys.argv[1], 'run') , flush=True); time.sleep(600)"
    )
    users = [
        subprocess.Popen([sys.executable, "-P", "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        said = {line for user in users if user.stdout is not None for line in user.stdout.readline().split()}
        (name,) = said
        (Path(name) / "sources").mkdir()
        users[0].kill()
        users[0].wait()
        time.sleep(1)
        node._sweep(tmp_path)
        assert Path(name, "sources").is_dir(), "the other one uses it"
    finally:
        for user in users:
            user.kill()
            user.wait()
    until = time.monotonic() + 60
    while list(tmp_path.iterdir()):
        assert time.monotonic() < until
        time.sleep(0.05)
    (tmp_path / Path(name).name).mkdir()
    (tmp_path / Path(name).name / ".alive").touch()  # as a machine that lost its power leaves it
    node._sweep(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[Path, tuple[int, object]]]:
    """What this process shares, which it lets go of at the end."""
    shared: dict[Path, tuple[int, object]] = {}
    monkeypatch.setattr(node, "_SHARING", shared)
    yield shared
    for descriptor, _ in shared.values():
        os.close(descriptor)


def test_a_sweep_takes_nothing_of_one_who_begins_meanwhile(
    tmp_path: Path, sharing: dict[Path, tuple[int, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing many copies takes a while: who asks for the folder in that time has one of its own, and keeps it."""
    folder = node.shared_folder(str(tmp_path), "run")
    descriptor, pipe = sharing.pop(folder)  # the pipe stays open: its remover would come first
    os.close(descriptor)  # as of a machine that lost its power: nobody holds it
    (folder / "old.mp4").touch()
    remove, began = shutil.rmtree, []

    def meanwhile(gone: Path, **options: bool) -> None:
        began.append(node.shared_folder(str(tmp_path), "run") / "new.mp4")
        began[-1].touch()
        remove(gone, **options)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", meanwhile)
        node._sweep(tmp_path)
    assert began == [folder / "new.mp4"] and {path.name for path in folder.iterdir()} == {".alive", "new.mp4"}
    node._sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [folder] and began[0].exists() and pipe is not None


@pytest.mark.usefixtures("sharing")
def test_a_remover_takes_nothing_of_one_who_begins_meanwhile(tmp_path: Path) -> None:
    program = (
        "import sys,time; from javisc.compiler.run.node import shared_folder\n"
        "print(shared_folder(sys.argv[1], 'run'), flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-P", "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        folder = Path(user.stdout.readline().strip())
        for number in range(40):  # some are removed before .alive, others after it
            (folder / str(number)).mkdir()
            for file in range(100):
                (folder / str(number) / str(file)).touch()
        user.kill()
    until = time.monotonic() + 60
    while (folder / ".alive").exists():
        assert time.monotonic() < until
    (node.shared_folder(str(tmp_path), "run") / "new.mp4").touch()
    assert {path.name for path in folder.iterdir()} == {".alive", "new.mp4"}
    while list(tmp_path.iterdir()) != [folder]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert (folder / "new.mp4").exists()

"""The Ray engine on a cluster of this machine: the same bytes as locally, whatever is killed, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from javisc.compiler.build import BuildResult
from javisc.compiler.check.dataset import Checks, verify
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.run import ray as engine
from javisc.compiler.run.engine import EngineOptions, Event
from javisc.compiler.run.spread import Job, Resources, spread
from javisc.manifests.errors import UserError
from support.engines import digests, rejects, run, sources, windows
from support.raw import write_clip
from support.short import little_memory, little_room

pytest.importorskip("ray", reason="Ray is not installed (pip install 'javisc[ray]')")
pytestmark = pytest.mark.dist
TESTS = Path(__file__).resolve().parents[2]
#: Films of twelve windows that take a twentieth of a second each, so that a build lasts long enough to be disturbed; and how many
#: shards of 24 they make.
SLOW = {f"{number:03d}.mp4": f"slow {number}" for number in range(10)}
SHARDS = 5
#: How often the build is killed whose bytes must be the others'; benchmarks/results/soak.md tells of more.
KILLS = int(os.environ.get("JAVISC_KILLS", "2"))
#: A build of its own process: inputs, DS, engine, address, scratch, part.
PROGRAM = (
    "import sys, polars as pl; from pathlib import Path; from javisc.compiler.build import BuildOptions, build\n"
    "from javisc.compiler.recipe import PRESETS; from javisc.manifests.errors import UserError\n"
    "part = tuple(map(int, sys.argv[6].split('/'))) if sys.argv[6] else None\n"
    "options = BuildOptions(compiler='support.faults:faulty', engine=sys.argv[3], address=sys.argv[4] or None, workers=1,"
    " scratch=Path(sys.argv[5]), shard_samples=24, time_limit=2.0, part=part)\n"
    "try: build(pl.read_parquet(sys.argv[1]), PRESETS['jav'], sys.argv[2], options)\n"
    "except UserError as error: print(error); sys.exit(error.exit_code)\n"
)
NODE = {"num_cpus": 1, "memory": 2_000_000_000, "object_store_memory": 80_000_000}


class Nodes:
    """A cluster whose head does no work, and what its units may leave behind."""

    def __init__(self, scratch: Path) -> None:
        from ray.cluster_utils import Cluster

        self.scratch = scratch
        self.cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0, "include_dashboard": False})
        self.nodes: list[Any] = []
        self.address = self.cluster.address

    def want(self, count: int) -> None:
        """Have so many nodes that work."""
        while len(self.nodes) < count:
            self.nodes.append(self.cluster.add_node(**NODE))
        self.cluster.wait_for_nodes()

    def wait_for(self, cpus: int) -> None:
        """Wait for a node that was started by somebody else."""
        import ray

        until = time.monotonic() + 60
        with engine.connected(self.address):
            while not any(node["Alive"] and node["Resources"].get("CPU") == cpus for node in ray.nodes()):
                assert time.monotonic() < until, "no such node came"
                time.sleep(0.1)

    def kill_one(self) -> None:
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def left(self) -> list[str]:
        """Scratch folders of units, and worker processes that compile."""
        folders = [path.name for path in self.scratch.glob("javisc-unit-*")]
        return folders + [
            entry.name
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and str(self.scratch) in _environment(entry)
        ]

    def clean_within(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while left := self.left():
            assert time.monotonic() < until, f"left behind: {left}"
            time.sleep(0.1)


def _environment(process: Path) -> str:
    """The command line of a compiling worker together with what it has open in the scratch folder."""
    try:
        command = (process / "cmdline").read_bytes()
        if b"run.worker" not in command:
            return ""
        return " ".join(str(link.readlink()) for link in (process / "fd").iterdir())
    except OSError:
        return ""


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_AUTH_MODE")}
    os.environ.update(PYTHONPATH=str(TESTS), RAY_AUTH_MODE="disabled")
    made = Nodes(tmp_path_factory.mktemp("scratch"))
    try:
        yield made
    finally:
        made.cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, dict[str, str]]:
    """The inputs, and the digests of what the local engine makes of them."""
    place = tmp_path_factory.mktemp("plain")
    inputs = windows(sources(place / "raw", SLOW), 12)
    os.environ["PYTHONPATH"] = str(TESTS)
    run(inputs, place / "ds", shard_samples=24)
    return inputs, digests(place / "ds")


def on(nodes: Nodes, inputs: pl.DataFrame, out: Path, **options: object) -> BuildResult:
    chosen = {"engine": "ray", "address": nodes.address, "workers": 1, "scratch": nodes.scratch, "shard_samples": 24}
    return run(inputs, out, **{**chosen, **options})


def test_a_node_is_killed_half_way_and_the_bytes_are_the_same(
    nodes: Nodes, plain: tuple[pl.DataFrame, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.want(2)
    inputs, expected = plain
    told: list[Event] = []
    meter = engine._Run._tell

    def kill_at_a_third(self: Any, report: Callable[[Event], None], done: list[int]) -> None:
        meter(self, lambda event: (told.append(event), report(event))[1], done)
        if len(told) > 40 and len(nodes.nodes) == 2:
            nodes.kill_one()

    monkeypatch.setattr(engine._Run, "_tell", kill_at_a_third)
    result = on(nodes, inputs, tmp_path / "ds")
    assert len(nodes.nodes) == 1, "the node was not killed: the build was over too soon"
    assert (result.samples, result.shards) == (120, SHARDS) and digests(tmp_path / "ds") == expected
    # Units that ran twice were counted once.
    assert len(told) == 120
    nodes.clean_within(5)


def test_faults_cost_their_own_file_only(nodes: Nodes, tmp_path: Path) -> None:
    nodes.want(1)
    faults = {"segfault": "crashed", "hang": "timeout", "kill": "crashed", "memory": "crashed", "reject": "corrupt"}
    inputs = sources(tmp_path / "raw", {f"{name}.mp4": name for name in faults} | {"good.mp4": "fine"})
    assert on(nodes, inputs, tmp_path / "ds", shard_samples=3).samples == 1
    assert {name: reason for name, (reason, _) in rejects(tmp_path / "ds").items()} == {
        f"{name}.mp4": reason for name, reason in faults.items()
    }


def started(
    inputs: pl.DataFrame, place: Path, scratch: Path, engine: str = "local", address: str = "", part: str = ""
) -> subprocess.Popen[str]:
    """A build into `place`/ds in a process of its own."""
    if not (place / "inputs.parquet").exists():
        inputs.write_parquet(place / "inputs.parquet")
    arguments = [str(place / "inputs.parquet"), str(place / "ds"), engine, address, str(scratch), part]
    return subprocess.Popen([sys.executable, "-P", "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)


def test_parts_in_processes_and_a_build_that_is_killed_give_the_same_bytes(
    plain: tuple[pl.DataFrame, dict[str, str]], tmp_path: Path
) -> None:
    """The inputs of the cluster's tests: windows of one film lie in all shards."""
    inputs, expected = plain
    assert inputs.group_by("path").len()["len"].unique().to_list() == [12]
    for name in ("parts", "killed"):
        (tmp_path / name).mkdir()
    tasks = [started(inputs, tmp_path / "parts", tmp_path, part=f"{number}/3") for number in range(3)]
    said = [task.communicate(timeout=300)[0] for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0, 0], said
    run(None, tmp_path / "parts" / "ds", shard_samples=24, finish=True)
    assert digests(tmp_path / "parts" / "ds") == expected
    published = tmp_path / "killed" / "ds" / ".build" / "parts"
    for kill in range(KILLS):
        build, until = started(inputs, tmp_path / "killed", tmp_path), time.monotonic() + 300
        while (
            not (tmp_path / "killed" / "ds" / ".build" / "plan.parquet").exists()
            or len(list(published.glob("*.json"))) < SHARDS * kill // KILLS
        ):
            assert time.monotonic() < until and build.poll() is None
            time.sleep(0.02)
        time.sleep(0.3 * (kill % 4))
        build.kill()
        build.wait()
    assert len(list(published.glob("*.json"))) < SHARDS, "it was over before it was killed the last time"
    run(inputs, tmp_path / "killed" / "ds", shard_samples=24, scratch=tmp_path)
    assert digests(tmp_path / "killed" / "ds") == expected


def test_units_on_a_node_share_what_they_fetch(
    nodes: Nodes, plain: tuple[pl.DataFrame, dict[str, str]], tmp_path: Path
) -> None:
    nodes.want(1)
    inputs, _ = plain
    few = inputs.filter(pl.col("relpath") < "002.mp4")
    run(few, tmp_path / "here", shard_samples=6)
    with served(Path(few["path"][0]).parent) as (url, asked):
        remote = few.with_columns(path=pl.lit(f"{url}/") + pl.col("relpath"))
        on(nodes, remote, tmp_path / "there", shard_samples=6)
    assert len(digests(tmp_path / "here")) == 2 * 4 and digests(tmp_path / "there") == digests(tmp_path / "here")
    gets = {path: count for path, count in asked.items() if path.startswith("GET ")}
    # Copies go with the last unit at work: on a machine so busy that all end before the next begins, one is fetched again.
    assert set(gets) == {f"GET /{name}" for name in few["relpath"]} and sum(gets.values()) <= 2 * len(gets), asked
    assert few.height >= 8 * len(gets), "or nothing is shared"
    nodes.clean_within(10)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """A folder at a URL, and what was asked for."""
    asked: Counter[str] = Counter()

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked[f"{self.command} {self.path}"] += 1

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL] + [signal.SIGTERM] * ("JAVISC_KILLS" in os.environ))
def test_a_driver_that_ends_leaves_a_clean_cluster_and_either_engine_goes_on(
    nodes: Nodes, plain: tuple[pl.DataFrame, dict[str, str]], tmp_path: Path, number: signal.Signals
) -> None:
    nodes.want(2)
    inputs, expected = plain
    driver = started(inputs, tmp_path, nodes.scratch, "ray", nodes.address)
    parts = tmp_path / "ds" / ".build" / "parts"
    until = time.monotonic() + 300
    while len(list(parts.glob("*.json"))) < 2:
        assert time.monotonic() < until and driver.poll() is None
        time.sleep(0.02)
    driver.send_signal(number)
    said, _ = driver.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert driver.returncode == 130 and "run the same command again" in said
        assert "raylet" not in said, "Ray's own messages are no output of ours"
    nodes.clean_within(10 if number == signal.SIGKILL else 5)
    assert len(list(parts.glob("*.json"))) < SHARDS, "it was over before it was stopped"
    if number == signal.SIGINT:
        on(nodes, inputs, tmp_path / "ds")
    else:
        run(inputs, tmp_path / "ds", shard_samples=24, scratch=tmp_path)
    assert digests(tmp_path / "ds") == expected


def test_a_unit_that_is_always_lost_ends_the_build_in_one_line(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.want(1)
    monkeypatch.setattr(engine, "MAX_RETRIES", 1)
    inputs = sources(tmp_path / "raw", {"deadly.mp4": "unit"})
    with pytest.raises(UserError, match="shard 000000 was lost 2 times with its node or process") as raised:
        on(nodes, inputs, tmp_path / "ds", time_limit=60.0)
    assert raised.value.exit_code == 1 and not (tmp_path / "ds" / "manifest.parquet").exists()
    nodes.clean_within(10)


def test_a_scratch_that_is_full_stops_in_one_line_and_the_same_command_resumes(nodes: Nodes, tmp_path: Path) -> None:
    nodes.want(1)
    for number in range(2):
        write_clip(tmp_path / "raw" / f"{number}.mp4", seconds=2, seed=number)
    build, options = partial(run, from_raw([str(tmp_path / "raw")])), {"compiler": None, "time_limit": 60.0}
    build(tmp_path / "plain", **options)
    with little_room(tmp_path / "scratch", 100_000) as resize:
        options |= {"engine": "ray", "address": nodes.address, "workers": 1, "scratch": tmp_path / "scratch"}
        with pytest.raises(UserError) as raised:
            build(tmp_path / "ds", **options)
        said = f"on {socket.gethostname()}: {tmp_path}/scratch/.* cannot be written: No space left on device; .*, it resumes"
        assert re.fullmatch(said, str(raised.value)) and not (tmp_path / "ds" / "rejected.parquet").exists()
        resize(20_000_000)
        assert build(tmp_path / "ds", **options).samples == 2
        assert list((tmp_path / "scratch").iterdir()) == []
    assert digests(tmp_path / "ds") == digests(tmp_path / "plain")


@pytest.mark.skipif(
    "JAVISC_KILLS" not in os.environ, reason="half a minute: set JAVISC_KILLS; test_engine.py has its half"
)
def test_a_file_that_takes_a_nodes_memory_costs_its_own_row(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Ray ends the unit's process before the kernel does; a unit that it ended again and again is made file by file."""
    monkeypatch.setattr(engine, "memory_of", lambda recipe, workers: 150_000_000 * workers)
    monkeypatch.setenv("RAY_task_oom_retries", "1")
    files = {"a.mp4": "fine", "b.mp4": f"eats {tmp_path / 'notes'}", "c.mp4": "fine c"}
    inputs = sources(tmp_path / "raw", files)
    with little_memory(nodes.address, 1_500_000_000, tmp_path / "log", num_cpus=2, object_store_memory=80_000_000):
        nodes.wait_for(cpus=2)  # only the small one has as many
        result = on(nodes, inputs, tmp_path / "ds", workers=2, time_limit=60.0)
    assert result.samples == 2
    reason, message = rejects(tmp_path / "ds")["b.mp4"]
    assert reason == "crashed" and re.fullmatch(
        r"took 0\.3\d? GB .* where its shard asks a node for 0\.3, twice", message
    )
    assert len((tmp_path / "notes").read_text().split()) == 2 + 2, "twice ended by Ray, twice alone"
    assert "oom" not in capfd.readouterr().out, "Ray's own messages are no output of ours"


def test_what_the_cluster_cannot_give_is_one_line(nodes: Nodes, tmp_path: Path) -> None:
    nodes.want(1)
    inputs = sources(tmp_path / "raw", {"a.mp4": "fine"})
    with pytest.raises(UserError, match="--workers 64: no node of the cluster has 64 CPUs"):
        on(nodes, inputs, tmp_path / "ds", workers=64)
    with pytest.raises(UserError, match=r"--address 127\.0\.0\.1:1: no Ray cluster answers there"):
        on(nodes, inputs, tmp_path / "ds", address="127.0.0.1:1")
    with pytest.raises(UserError, match="--address nowhere: HOST:PORT, auto or local is allowed"):
        on(nodes, inputs, tmp_path / "ds", address="nowhere")


def test_a_second_attempt_is_not_counted_again() -> None:
    events = [Event(path, 1, 1.0, 1.0) for path in ("a", "a", "b")]
    meter = engine.Meter()
    meter.add(0, "first", events[:2])
    meter.add(0, "second", events)
    meter.add(1, "first", events[:1])
    assert [event.path for event in meter.drain([])] == ["a", "a", "b", "a"]
    meter.add(0, "third", events)
    assert meter.drain([0, 1]) == [] and not meter._seen and not meter._passed


def test_what_lies_in_the_working_folder_is_not_imported_on_the_nodes(nodes: Nodes, tmp_path: Path) -> None:
    """Ray puts a driver's working folder first on its workers' path; a `javisc/` or `polars.py` there must not matter."""
    for name in ("javisc/__init__.py", "polars.py", "numpy.py"):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text("raise SystemExit('imported from the working folder')")
    nodes.want(1)
    sources(tmp_path / "raw", {"a.mp4": "no media"})
    command = [Path(sys.executable).parent / "javisc", "build", "jav", tmp_path / "raw", "--out", tmp_path / "ds"]
    options = ["--engine", "ray", "--address", nodes.address, "--workers", "1"]
    ran = subprocess.run([*command, *options], cwd=tmp_path / "here", capture_output=True, text=True, timeout=120)
    assert rejects(tmp_path / "ds")["a.mp4"][0] == "not_media", ran.stdout + ran.stderr
    assert "Token authentication" not in ran.stdout + ran.stderr and "Ray" not in ran.stdout


def test_calls_on_a_cluster_outlive_a_node_and_are_halved_down_to_the_deadly_item(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol of stages that are not builds: what kills its process costs itself, what is lost with a node is made again."""
    nodes.want(2)
    needs = Resources(memory=100_000_000)
    job = Job("support.faults:squares", needs, items="numbers")
    options = EngineOptions(address=nodes.address, scratch=str(nodes.scratch))
    calls = [(batch, {"numbers": list(range(4 * batch, 4 * batch + 4)), "load": "once"}, 60.0) for batch in range(40)]
    made: dict[int, int] = {}
    failed: list[tuple[int, list[int], str | None]] = []
    loads: set[int] = set()
    for outcome in spread(job, calls, engine="ray", options=options):
        if outcome.error is not None:
            failed.append((outcome.call.tag, outcome.call.arguments["numbers"], outcome.error))
            continue
        made |= dict(zip(outcome.call.arguments["numbers"], outcome.value["squares"], strict=True))
        loads.add(outcome.value["process"])
        if len(made) > 40 and len(nodes.nodes) == 2:
            nodes.kill_one()
    assert len(nodes.nodes) == 1 and failed == [(0, [3], "crashed")]
    assert made == {number: number**2 for number in range(160) if number != 3}
    # A process serves many calls: two to begin with, one for each death (3 of the call, then its halves), and what a node took.
    assert len(loads) < 16
    nodes.clean_within(10)


def test_a_check_on_a_cluster_finds_what_the_local_one_finds(nodes: Nodes, tmp_path: Path) -> None:
    nodes.want(1)
    run(sources(tmp_path / "raw", {f"{number:03d}.mp4": f"fine {number}" for number in range(12)}), tmp_path / "ds")
    (tmp_path / "ds/shards/000001.idx").write_text("no index")
    here = verify(tmp_path / "ds", checks=Checks("digests", workers=1))
    there = verify(tmp_path / "ds", checks=Checks("digests", engine="ray", address=nodes.address))
    assert sorted(here.defects) == sorted(there.defects) and there.shards == 3
    assert "shards/000001.idx: SHA-256 differs from shards.parquet" in there.defects
    options = EngineOptions(address=nodes.address)
    needy = spread(Job("support.faults:squares", Resources(gpus=1)), [], engine="ray", options=options)
    with pytest.raises(UserError, match="no node of the cluster has 1 CPUs, 1 GPUs"):
        list(needy)


def test_a_driver_whose_own_node_is_gone_ends_in_one_line(
    nodes: Nodes, plain: tuple[pl.DataFrame, dict[str, str]], tmp_path: Path
) -> None:
    """Where Ray itself waits for ever. The last test of this file, since it takes the head along."""
    nodes.want(1)
    driver = started(plain[0], tmp_path, nodes.scratch, "ray", nodes.address)
    parts, until = tmp_path / "ds" / ".build" / "parts", time.monotonic() + 300
    while not list(parts.glob("*.json")):
        assert time.monotonic() < until and driver.poll() is None
        time.sleep(0.02)
    nodes.cluster.head_node.kill_raylet()
    said, _ = driver.communicate(timeout=120)
    assert driver.returncode == 1 and said.startswith("the Ray node on this machine is gone") and "it resumes" in said

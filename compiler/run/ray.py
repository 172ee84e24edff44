"""The Ray engine: one task is one unit, whose clips run in the local engine's supervised pool on whichever node has room.

Units are idempotent, so Ray may run one again wherever it likes when a node is lost: the bytes are the same. No media and no
clips pass through the driver or Ray's object store, only a unit's plan rows there and its counts back.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from javisc.compiler.recipe import Recipe
from javisc.compiler.run.engine import EngineOptions, Event, Job, Unit, UnitResult
from javisc.compiler.run.local import LocalEngine
from javisc.compiler.run.node import own_folder, remove_when_gone, shared_folder
from javisc.compiler.store.tables import tools
from javisc.manifests.errors import UserError
from javisc.manifests.extras import missing, need
from javisc.manifests.urls import is_url

#: How often Ray may run a unit again whose node or process was lost.
MAX_RETRIES = 5
#: How often Ray may run a unit again that it ended because its node ran out of memory, before it is run file by file.
OOM_RETRIES = 2
#: A Ray worker process is replaced after this many units: what a library leaks ends with it.
MAX_CALLS = 64
#: Worker processes of one unit where the user does not say; larger units leave cores idle at their ends.
WORKERS = 4
_NODE_GONE = (
    "the Ray node on this machine is gone, and with it the way to the cluster: start it again (`ray start`), and run the same "
    "command again, it resumes"
)
#: Seconds between looks at whether the node on this machine still stands.
_LOOK = 3.0
#: Events travel in batches: at most so many seconds old.
_BATCH_SECONDS = 0.5


def memory_of(recipe: Recipe, workers: int) -> int:
    """Bytes that a unit asks of its node: processes with libav and numpy, and where there are pictures a few of 4K in each."""
    picture = 0 if recipe.kind == "audio" else 400_000_000
    return workers * (250_000_000 + picture)


class Meter:
    """An actor that gathers the events of all units for the driver; a unit's second attempt repeats none of its first."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._passed: dict[int, Counter[str]] = {}
        self._seen: dict[tuple[int, str], Counter[str]] = {}

    def add(self, shard: int, attempt: str, events: list[Event]) -> None:
        """Take events of an attempt at a unit; those that an earlier attempt told already are dropped."""
        passed = self._passed.setdefault(shard, Counter())
        seen = self._seen.setdefault((shard, attempt), Counter())
        for event in events:
            seen[event.path] += 1
            if seen[event.path] > passed[event.path]:
                passed[event.path] += 1
                self._events.append(event)

    def drain(self, done: list[int]) -> list[Event]:
        """The events since the last call. done: units that are published, whose counts may be forgotten."""
        for shard in done:
            self._passed.pop(shard, None)
            for key in [key for key in self._seen if key[0] == shard]:
                del self._seen[key]
        events, self._events = self._events, []
        return events


def run_unit(
    job: Job,
    unit: Unit,
    workers: int,
    scratch: str | None,
    made_by: dict[str, str],
    meter: Any,
    run: str,
    bound: int | None = None,
) -> Any:
    """In a Ray worker: run one unit with the local engine. Returns its UnitResult, or (message, exit code) of a UserError.

    run: names the build that its units on a node share their copies of remote sources in. bound: see LocalEngine.
    """
    if (other := stranger(made_by)) is not None:
        return other, 1
    folder = own_folder(scratch)
    events = _Batches(meter, unit.shard, uuid.uuid4().hex)
    try:
        folder.mkdir(parents=True)
        remove_when_gone(folder)
        remote = any(is_url(row[name] or "") for row in unit.inputs for name in ("path", "audio_path"))
        copies = shared_folder(scratch, run) / "sources" if remote else None
        engine = LocalEngine(replace(job, scratch=str(folder)), EngineOptions(workers=workers), copies, bound)
        with contextlib.closing(engine.run([unit], events.add)) as results:  # type: ignore[type-var]
            (result,) = results
        events.flush()
        return result
    except OSError as error:
        return (
            f"{folder} on {socket.gethostname()} cannot be written: {error.strerror or error}: give another --scratch",
            1,
        )
    except UserError as error:
        return f"on {socket.gethostname()}: {error}", error.exit_code
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stranger(made_by: Mapping[str, str]) -> str | None:
    """What is another version on this node than on the driver's, in words; None if nothing is."""
    for name, version in tools().items():
        if made_by.get(name) != version:
            return f"{socket.gethostname()} has {name} {version}, the driver {made_by.get(name)}: install the same on every node"
    return None


class _Batches:
    """Sends events to the meter a few times a second."""

    def __init__(self, meter: Any, shard: int, attempt: str) -> None:
        self.meter, self.shard, self.attempt = meter, shard, attempt
        self.waiting: list[Event] = []
        self.since = time.monotonic()

    def add(self, event: Event) -> None:
        self.waiting.append(event)
        if time.monotonic() - self.since > _BATCH_SECONDS:
            self.flush()

    def flush(self) -> None:
        self.meter.add.remote(self.shard, self.attempt, self.waiting)
        self.waiting, self.since = [], time.monotonic()


class RayEngine:
    """Runs units on a Ray cluster, `options.workers` CPUs each (default: WORKERS, or what the nodes have).

    options.address: of the cluster, "auto" for the one this machine belongs to, "local" for one of its own. Every node needs the
    same javisc and sees sources and output under the same paths or URLs. Raises UserError where there is no cluster.
    """

    def __init__(self, job: Job, options: EngineOptions) -> None:
        self.job, self.options = job, options

    @staticmethod
    def check(options: EngineOptions) -> None:
        """Raise UserError without Ray, or where nothing listens at the cluster's address."""
        need("--engine ray", "ray")
        _answers(options.address or "auto")

    def run(self, units: Iterable[Unit], report: Callable[[Event], None]) -> Iterator[UnitResult]:
        """Publish the units; see Engine. However this ends, Ray ends its tasks when the driver lets go of the cluster.

        They are not cancelled one by one: a task that completes while it is cancelled aborts the driver in Ray 2.60.
        """
        with connected(self.options.address or "auto") as ray:
            yield from _Run(ray, self.job, self.options).run(iter(units), report)


class _Run:
    """One run on a connected cluster."""

    def __init__(self, ray: Any, job: Job, options: EngineOptions) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.ray, self.job, self.options = ray, job, options
        self.made_by, self.name = tools(), uuid.uuid4().hex[:12]
        cpus, self.workers = _share(ray, options.workers, lambda count: memory_of(job.recipe, count))
        self.ahead = max(2, 2 * (cpus // self.workers))
        self.task = ray.remote(
            num_cpus=self.workers,
            memory=memory_of(job.recipe, self.workers),
            max_retries=MAX_RETRIES,
            retry_exceptions=False,
            max_calls=MAX_CALLS,
            scheduling_strategy="SPREAD",
        )(run_unit)
        # The meter lives where the driver does: no other node's end takes it along.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.meter = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=here)(
            Meter
        ).remote()
        self.running: dict[Any, Unit] = {}
        #: Shards that a node had too little memory for: their files are made one by one, within what the shard asks for.
        self.alone: set[int] = set()

    def _submit(self, unit: Unit) -> None:
        workers, bound = self.workers, None
        if unit.shard in self.alone:
            workers, bound = 1, memory_of(self.job.recipe, self.workers)
        told = (self.job, unit, workers, self.options.scratch, self.made_by, self.meter, self.name, bound)
        self.running[self.task.remote(*told)] = unit

    def run(self, units: Iterator[Unit], report: Callable[[Event], None]) -> Iterator[UnitResult]:
        ended = False
        done: list[int] = []
        while True:
            while not ended and len(self.running) < self.ahead:
                unit = next(units, None)
                ended = unit is None
                if unit is not None:
                    self._submit(unit)
            if not self.running:
                self._tell(report, done)
                return
            ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=0.5)
            for reference in ready:
                unit = self.running.pop(reference)
                if (result := self._result(reference, unit)) is None:
                    self._submit(unit)
                    continue
                done.append(unit.shard)
                yield result
            self._tell(report, done)
            done = []

    def _result(self, reference: Any, unit: Unit) -> UnitResult | None:
        """What became of a unit; None where it is to be run again, alone."""
        errors = self.ray.exceptions
        try:
            result = self.ray.get(reference)
        except errors.OutOfMemoryError as error:
            if unit.shard not in self.alone:
                self.alone.add(unit.shard)
                return None
            each = memory_of(self.job.recipe, 1) / 1e9
            raise UserError(
                f"shard {unit.shard:06d} was ended again and again because its node ran out of memory: nodes need {each:.2g} GB "
                "for each CPU beside what else runs there; take others, or start them with fewer CPUs (`ray start --num-cpus`), "
                "and run the same command again, it resumes",
                exit_code=1,
            ) from error
        except errors.LocalRayletDiedError as error:
            raise UserError(_NODE_GONE, exit_code=1) from error
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError) as error:
            raise UserError(
                f"shard {unit.shard:06d} was lost {MAX_RETRIES + 1} times with its node or process ({type(error).__name__}): "
                "see whether the nodes stay up and have memory enough, and run the same command again, it resumes",
                exit_code=1,
            ) from error
        if isinstance(result, UnitResult):
            return result
        message, code = result
        raise UserError(message, exit_code=code)

    def _tell(self, report: Callable[[Event], None], done: list[int]) -> None:
        """Hand on what the units told since. A meter that does not answer is no reason to stop."""
        try:
            events = self.ray.get(self.meter.drain.remote(done), timeout=5.0)
        except (self.ray.exceptions.GetTimeoutError, self.ray.exceptions.RayActorError):
            return
        for event in events:
            report(event)


def _share(ray: Any, wanted: int | None, memory: Callable[[int], int]) -> tuple[int, int]:
    """(CPUs of the cluster, CPUs of a unit): as wanted, or what the nodes have room for. Raises UserError if none has."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = int(sum(node.get("CPU", 0) for node in nodes))
    tries = [wanted] if wanted else range(WORKERS, 0, -1)
    for count in tries:
        if any(node.get("CPU", 0) >= count and node.get("memory", 0) >= memory(count) for node in nodes):
            return total, count
    most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
    count = wanted or 1
    raise UserError(
        f"--workers {count}: no node of the cluster has {count} CPUs and {memory(count) / 1e9:.1f} GB for a shard's work "
        f"(the largest has {most} CPUs): give fewer --workers, or add nodes"
    )


def _no_cluster(address: str) -> UserError:
    where = "this machine is part of no Ray cluster" if address == "auto" else "no Ray cluster answers there"
    return UserError(f"--address {address}: {where}: start one with `ray start --head`, or give --address local")


def _answers(address: str) -> None:
    """Raise UserError if nothing listens at an address that is given: Ray itself asks for many minutes."""
    host, _, port = (
        (os.environ.get("RAY_ADDRESS", "") if address == "auto" else address).rpartition("://")[2].rpartition(":")
    )
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address) from error
    elif address not in ("auto", "local"):
        raise UserError(f"--address {address}: HOST:PORT, auto or local is allowed")


@contextlib.contextmanager
def _our_signals() -> Iterator[None]:
    """Keep this process's handlers of SIGINT and SIGTERM: Ray puts its own in their place, which end the process at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _standing(ray: Any) -> Iterator[None]:
    """Raise UserError when the node is gone through which this process talks to the cluster: Ray itself then waits for ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    own, main = ray.get_runtime_context().get_node_id(), threading.get_ident()
    ended, lost = threading.Event(), threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK):
            if any(node["NodeID"] == own and not node["Alive"] for node in ray.nodes()):
                lost.set()
                signal.pthread_kill(main, signal.SIGINT)  # which is all that Ray's waiting hears
                return

    watch = threading.Thread(target=look, daemon=True)
    watch.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise UserError(_NODE_GONE, exit_code=1) from None
    finally:
        ended.set()
        watch.join(_LOOK)


@contextlib.contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster for as long as this lasts. Its chatter and its statistics stay at home."""
    os.environ.setdefault("RAY_task_oom_retries", str(OOM_RETRIES))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _answers(address)
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise missing("--engine ray", "ray") from None
    logging.getLogger("ray").setLevel(logging.ERROR)
    # Of each process that Ray ends for want of memory it prints fifty lines on standard output, log_to_driver or not.
    ray._private.worker._worker_logs_enabled = False
    # Ray puts the working folder before all others on the workers' path, where a checkout or any file of its would be
    # imported in place of what is installed: it is told of an empty folder instead.
    empty = tempfile.mkdtemp(prefix="javisc-ray-")
    try:
        with contextlib.chdir(empty), _our_signals():
            ray.init(
                address=address,  # "local": one of its own, where None would join what runs on this machine already
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
                include_dashboard=False if address == "local" else None,
                namespace=f"javisc-{uuid.uuid4().hex}",
            )
        with _standing(ray):
            yield ray
    except ConnectionError as error:
        raise _no_cluster(address) from error
    finally:
        ray.shutdown()
        shutil.rmtree(empty, ignore_errors=True)

"""Many calls of one function, side by side in supervised workers: what dies takes one call with it, not the work.

The protocol of every stage that is not a build: a `Job` says what is called and what a call needs, `spread` makes the calls on
this machine or on a Ray cluster. A worker process lives from call to call: what a function keeps in its module, as a model, is
loaded once for each. With GPUs there is one process for each, which sees that one alone.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from javisc.compiler.run.calls import Call, Outcome
from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.engine import EngineOptions, check_engine
from javisc.compiler.run.pool import Pool
from javisc.manifests.entries import named
from javisc.manifests.errors import UserError

#: How often a call of many items may kill its process before it is halved; a call of one is then given up.
MAX_DEATHS = 3


@dataclass(frozen=True)
class Resources:
    """What one process needs: CPUs, GPUs, bytes of memory. More than one GPU: that many for every process."""

    cpus: int = 1
    gpus: int = 0
    memory: int = 500_000_000


@dataclass(frozen=True)
class Job:
    """What is called. function: `module:function`, JSON in and JSON out.

    resources: of one process. preload: modules that processes import before their first call. items: the name of the argument
    that is a list, for a function that returns one value for each: a call that kills its process MAX_DEATHS times is halved
    until the one item is found, whose Outcome then has the error.
    """

    function: str
    resources: Resources = field(default_factory=Resources)
    preload: Sequence[str] = ()
    items: str | None = None


def spread(
    job: Job | str,
    calls: Iterable[tuple[Any, dict[str, Any], float]],
    *,
    workers: int | None = None,
    preload: Sequence[str] = (),
    engine: str = "local",
    options: EngineOptions | None = None,
    devices: Sequence[str] = (),
) -> Iterator[Outcome]:
    """Make the job's call for every (tag, arguments, seconds) and yield how each ended, in the order in which they end.

    job: or the function's name alone. Arguments and values are JSON. calls is read as workers become free. workers: processes;
    None: as many as fit. devices: names of local GPUs, a process each sees one of them (CUDA_VISIBLE_DEVICES); without any, a job
    with GPUs takes those that the system shows. A halved call yields an Outcome for each half that ended, with the call's tag and
    the half's arguments. Raises UserError for a mistake of the user's and where storage does not answer: those end the work.
    """
    given = Job(job) if isinstance(job, str) else job
    given = replace(given, preload=(given.function.partition(":")[0], *given.preload, *preload))
    chosen = replace(options or EngineOptions(), workers=workers)
    check_engine(engine, chosen)
    if engine == "ray":
        runner = named("javisc.compiler.run.ray_calls:on_ray")(given, chosen)
    else:
        runner = _Local(given, workers, devices)
    with runner as made:
        yield from _made(given, iter(calls), made)


class Runner(Protocol):
    """What makes calls. A Pool is one."""

    @property
    def hungry(self) -> bool:
        """True while it takes more calls."""

    @property
    def busy(self) -> bool:
        """True while a call waits or runs."""

    def submit(self, call: Call, *, first: bool = False) -> None:
        """Queue a call."""

    def wait(self) -> list[Outcome]:
        """The calls that ended since the last time; waits a moment for one."""


def _made(job: Job, pending: Iterator[tuple[Any, dict[str, Any], float]], runner: Runner) -> Iterator[Outcome]:
    again: deque[Call] = deque()
    exhausted = False
    while True:
        while again:
            runner.submit(again.popleft(), first=True)
        while not exhausted and runner.hungry:
            call = next(pending, None)
            exhausted = call is None
            if call is not None:
                tag, arguments, limit = call
                runner.submit(Call(tag, job.function, arguments, limit, tries=MAX_DEATHS if job.items else 2))
        if exhausted and not runner.busy:
            return
        for outcome in runner.wait():
            outcome.stop_if_unavailable()
            if outcome.error in ("fatal", "unwritable"):
                raise UserError(outcome.message, exit_code=outcome.details.get("code", 1))
            if halves := _halves(job, outcome):
                again += halves
            else:
                yield outcome


def _halves(job: Job, outcome: Outcome) -> list[Call]:
    """Both halves of a call that killed its process, or hung, for more than one item."""
    items = outcome.call.arguments[job.items] if job.items else []
    if outcome.error not in ("crashed", "timeout") or len(items) < 2:
        return []
    middle = len(items) // 2
    return [
        replace(outcome.call, arguments={**outcome.call.arguments, str(job.items): part}, attempts=0, prepared=False)
        for part in (items[:middle], items[middle:])
    ]


class _Local:
    """A pool of this machine, with logs in a folder of its own."""

    def __init__(self, job: Job, workers: int | None, devices: Sequence[str]) -> None:
        gpus = job.resources.gpus
        names = list(devices) or (visible_gpus() if gpus else [])
        if gpus and len(names) < gpus:
            raise UserError(f"{job.function} needs {gpus} GPUs for a process, this machine shows {len(names)}")
        shares = [",".join(names[at : at + gpus]) for at in range(0, len(names) - gpus + 1, gpus)] if gpus else []
        size = (
            min(workers or len(shares), len(shares)) if gpus else workers or usable_cores() // job.resources.cpus or 1
        )
        self.logs = tempfile.TemporaryDirectory(prefix="javisc-logs-")
        slots = [{"CUDA_VISIBLE_DEVICES": share} for share in shares[:size]]
        self.pool = Pool(size, Path(self.logs.name), job.preload, slots)

    def __enter__(self) -> Pool:
        return self.pool

    def __exit__(self, *_: object) -> None:
        self.pool.close()
        self.logs.cleanup()


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them; none without NVIDIA's driver."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name for name in said.split(",") if name.strip() not in ("", "-1")]
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split()

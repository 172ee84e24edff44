"""Calls on a Ray cluster: an actor is a supervised pool of one process, which loads what it needs once and serves many calls.

The driver deals out the calls itself: an actor that is lost with its node gives its calls back, so a cluster that shrinks goes on
with what is left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

from javisc.compiler.run.calls import Call, Outcome
from javisc.compiler.run.engine import EngineOptions
from javisc.compiler.run.node import own_folder, remove_when_gone
from javisc.compiler.run.pool import Pool
from javisc.compiler.run.ray import MAX_RETRIES, connected, stranger
from javisc.compiler.run.spread import Job, Resources
from javisc.compiler.store.tables import tools
from javisc.manifests import places
from javisc.manifests.errors import UserError

#: Calls that wait at an actor beside the one it makes, so that it is never idle while the driver decides.
_AHEAD = 1


class Host:
    """The actor: one process of the job on its node."""

    def __init__(self, job: Job, scratch: str | None, made_by: Mapping[str, str], named: str) -> None:
        self.refusal = stranger(made_by)
        os.environ[places.VARIABLE] = named
        self.folder = own_folder(scratch)
        self.folder.mkdir(parents=True)
        remove_when_gone(self.folder)
        # What a call puts into temporary files lies in this folder, and goes with the actor.
        os.environ["TMPDIR"] = str(self.folder)
        tempfile.tempdir = None
        self.pool = Pool(1, self.folder / "logs", job.preload)

    def ready(self) -> bool:
        """It stands."""
        return True

    def make(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Make one call, see Pool. Returns the fields of its Outcome but the call."""
        if self.refusal is not None:
            return {"error": "fatal", "message": self.refusal, "details": {"code": 1}}
        try:
            self.pool.submit(Call(None, **fields))
            while self.pool.busy:
                for outcome in self.pool.wait():
                    found = asdict(replace(outcome, call=None))  # type: ignore[arg-type]
                    return {name: value for name, value in found.items() if name != "call"}
        except UserError as error:
            return {"error": "fatal", "message": str(error), "details": {"code": error.exit_code}}
        raise AssertionError("a pool forgot its call")

    def close(self) -> None:
        """End the process and remove its folder."""
        self.pool.close()
        shutil.rmtree(self.folder, ignore_errors=True)


class Calls:
    """Makes calls on a connected cluster; see spread.Runner."""

    def __init__(self, ray: Any, job: Job, options: EngineOptions) -> None:
        self.ray, self.job, self.options = ray, job, options
        self.made_by = tools()
        needs = job.resources
        self.most = min(options.workers or 10**6, _room(ray, needs))
        if self.most < 1:
            raise UserError(
                f"no node of the cluster has {needs.cpus} CPUs, {needs.gpus} GPUs and {needs.memory / 1e9:.1f} GB: "
                "add one, or use the local engine"
            )
        self.actor = ray.remote(
            num_cpus=needs.cpus, num_gpus=needs.gpus, memory=needs.memory, max_restarts=0, scheduling_strategy="SPREAD"
        )(Host)
        self.hosts: list[Any] = []
        self.starting: dict[Any, Any] = {}
        self.losses = 0
        self.waiting: deque[tuple[Call, int]] = deque()
        self.running: dict[Any, tuple[Any, Call, int]] = {}

    @property
    def hungry(self) -> bool:
        return len(self.waiting) < 2

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, call: Call, *, first: bool = False) -> None:
        """Queue a call."""
        (self.waiting.appendleft if first else self.waiting.append)((call, 0))

    def wait(self, timeout: float = 0.5) -> list[Outcome]:
        """Deal out what waits, and return the calls that ended. Raises UserError where one is lost again and again."""
        self._deal()
        asked = [*self.running, *self.starting]
        ready, _ = self.ray.wait(asked, num_returns=len(asked), timeout=0) if asked else ([], [])
        if asked and not ready:
            ready, _ = self.ray.wait(asked, num_returns=1, timeout=timeout)
        found = []
        for reference in ready:
            starting = reference in self.starting
            host, call, losses = (self.starting.pop(reference), None, 0) if starting else self.running.pop(reference)
            try:
                answer = self.ray.get(reference)
            except self.ray.exceptions.RayError as error:
                self.hosts = [one for one in self.hosts if one is not host]
                self._lost(call, losses, error)
                continue
            if call is None:
                self.hosts.append(host)
            else:
                found.append(Outcome(call, **answer))
        return found

    def _lost(self, call: Call | None, losses: int, error: Exception) -> None:
        """A process is gone with its node: what it made is made again elsewhere."""
        self.losses += call is None
        if losses >= MAX_RETRIES or self.losses > MAX_RETRIES:
            raise UserError(
                f"processes were lost {MAX_RETRIES + 1} times with their nodes ({type(error).__name__}): run the same command "
                "again, it resumes",
                exit_code=1,
            ) from error
        if call is not None:
            self.waiting.appendleft((call, losses + 1))

    def _deal(self) -> None:
        """Give waiting calls to the actors that have the fewest; ask for one more while there was room for it.

        An actor gets calls when it has answered: where a node is gone, its successor may never start.
        """
        while self.waiting:
            loads = {id(host): 0 for host in self.hosts}
            for host, _, _ in self.running.values():
                loads[id(host)] = loads.get(id(host), 0) + 1
            idle = any(loads[id(host)] == 0 for host in self.hosts)
            if not idle and len(self.hosts) + len(self.starting) < self.most:
                host = self.actor.remote(
                    self.job, self.options.scratch, self.made_by, os.environ.get(places.VARIABLE, "")
                )
                self.starting[host.ready.remote()] = host
            able = [host for host in self.hosts if loads[id(host)] <= _AHEAD]
            if not able:
                return
            host = min(able, key=lambda one: loads[id(one)])
            call, losses = self.waiting.popleft()
            fields = {"function": call.function, "arguments": call.arguments, "limit": call.limit, "tries": call.tries}
            self.running[host.make.remote(fields)] = (host, call, losses)

    def close(self) -> None:
        """End the actors' processes; Ray ends the actors with the driver's connection."""
        if not self.running and self.hosts:
            ends = [host.close.remote() for host in self.hosts]
            self.ray.wait(ends, num_returns=len(ends), timeout=5.0)


def _room(ray: Any, needs: Resources) -> int:
    """How many processes of these needs the cluster's nodes have room for."""
    count = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        shares = [int(has.get("CPU", 0) // needs.cpus), int(has.get("memory", 0) // needs.memory)]
        shares += [int(has.get("GPU", 0) // needs.gpus)] if needs.gpus else []
        count += min(shares)
    return count


@contextmanager
def on_ray(job: Job, options: EngineOptions) -> Iterator[Calls]:
    """What makes the job's calls on the cluster at `options.address`. Raises UserError where there is none, or no room."""
    with connected(options.address or "auto") as ray:
        calls = Calls(ray, job, options)
        yield calls
        calls.close()

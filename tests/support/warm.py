"""Where `spread`'s calls are made, other than in a fresh interpreter that imports torch first: in the test's own process, or in
one that is forked from a server that has torch."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest

from javisc.compiler.run import pool, spread, worker
from javisc.compiler.run.calls import Call, Outcome
from javisc.compiler.run.spread import Job
from support.processes import forkserver


class Here:
    """What makes `spread`'s calls in the test's process, which has torch already, by the function that a worker answers with."""

    def __init__(self, job: Job, workers: int | None, devices: Sequence[str]) -> None:
        self.made: list[Outcome] = []

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    @property
    def hungry(self) -> bool:
        return not self.made

    @property
    def busy(self) -> bool:
        return bool(self.made)

    def submit(self, call: Call, *, first: bool = False) -> None:
        asked = json.dumps({"call": call.function, "arguments": call.arguments}).encode()
        told = json.loads(json.dumps(worker.answer(asked)))
        outcome = Outcome(call, told.get("value"), told.get("error"), told.get("message", ""), told)
        self.made.append(outcome)

    def wait(self) -> list[Outcome]:
        made, self.made = self.made, []
        return made


def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the calls of `spread` made here: no process, so nothing that dies, hangs or runs beside another."""
    monkeypatch.setattr(spread, "_Local", Here)


class Warm:
    """A worker of a pool that is forked from the server of `forkserver`: all that a worker is but the seconds in which a fresh
    interpreter imports torch. It has what `Pool` asks of subprocess.Popen."""

    def __init__(
        self, command: Sequence[str], *, pass_fds: Sequence[int], stdout: Any, env: Mapping[str, str], **_: Any
    ) -> None:
        words = command[command.index("-m") + 1 :]
        assert words[0] == worker.__name__
        preload = [word for word in words[3:] if not word.startswith("-")]
        # Connections, since those are handed on to a process.
        line, log = Connection(os.dup(pass_fds[0])), Connection(os.dup(stdout.fileno()))
        self.process = forkserver().Process(target=_serve, args=(line, log, dict(env), preload))
        self.process.start()
        line.close()
        log.close()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(worker.__name__, timeout or 0.0)
        return self.process.exitcode


def _serve(line: Connection, log: Connection, environment: dict[str, str], preload: list[str]) -> None:
    os.setpgid(0, 0)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    log.close()
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.dup(line.fileno())
    line.close()
    worker.main(descriptor, os.getppid(), preload)


def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the workers of this process's pools start warm (see Warm). One of each command starts cold: those that tests run
    as a user does."""
    like = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
    monkeypatch.setattr(pool, "subprocess", SimpleNamespace(Popen=Warm, **like))

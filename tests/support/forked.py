"""Processes that are forked from one that has imported javisc, where a fresh interpreter would import it first.

They are real: children of this process, with descriptors, an environment and a folder of their own, killed and waited for like
others; what is saved is the third of a second in which each imports the same. conftest.py has every pool of this process start
its workers so. What is about a process's beginning (its modules, its threads, its memory, how it looks to `ps`), and each
command at least once, starts cold: `cold_workers`, or subprocess.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_SERVER = Path(__file__).with_name("forked_server.py")
_PR_SET_CHILD_SUBREAPER = 36
_WORKER = "javisc.compiler.run.worker"
#: What workers and most commands of the compiler import in the end.
COMPILER = (
    "javisc.cli",
    "javisc.commands.build",
    "javisc.commands.build_jav",
    "javisc.commands.build_audio",
    "javisc.commands.verify",
    "javisc.compiler.build",
    "javisc.compiler.check.dataset",
    "javisc.compiler.check.shard",
    "javisc.compiler.inputs.raw",
    "javisc.compiler.media.sound_only",
    "javisc.compiler.media.transcode",
    "javisc.compiler.run.local",
    "javisc.compiler.run.measure",
    "javisc.compiler.run.packing",
    "javisc.compiler.run.unit",
    _WORKER,
)


def _reap(on: bool) -> None:
    """Whether orphans below this process become its children: the forks whose first parent has gone."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(on)) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


class Server:
    """One process of `python` that has imported `modules`. more: its environment beside this process's."""

    def __init__(
        self, modules: Sequence[str] = COMPILER, python: str | Path = sys.executable, **more: str | None
    ) -> None:
        from javisc.compiler.run.pool import _MEMORY, _ONE_THREAD

        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.turn = threading.Lock()
        given = {**_MEMORY, **os.environ, **_ONE_THREAD, **more}
        self.process = subprocess.Popen(
            [python, "-P", _SERVER, str(theirs.fileno()), *modules],
            env={name: value for name, value in given.items() if value is not None},
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        atexit.register(self.close)

    def close(self) -> None:
        self.line.close()
        self.process.wait()
        atexit.unregister(self.close)

    def start(
        self,
        words: Sequence[str],
        descriptors: Sequence[int],
        *,
        environment: Mapping[str, str] | None = None,
        folder: str | Path | None = None,
        group: bool = False,
    ) -> int:
        """Fork one that runs `words`; descriptors: its input, output and errors, and others that its words count. Its id."""
        asked = {
            "words": list(words),
            "environment": dict(os.environ if environment is None else environment),
            "folder": str(folder or Path.cwd()),
            "group": group,
        }
        with self.turn:
            _reap(True)
            try:
                socket.send_fds(self.line, [json.dumps(asked).encode()], list(descriptors))
                told = self.line.recv(100)
                assert told, "the server of forks has ended"
                _adopted(int(told))
            finally:
                _reap(False)
        return int(told)


def _adopted(pid: int) -> None:
    """Wait until a fork is this process's child."""
    until = time.monotonic() + 60
    while True:
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            return
        except ChildProcessError:
            assert time.monotonic() < until, f"{pid} was not handed on"
            time.sleep(0.0005)


#: By the process that asks them. A server looks like its forks to `ps`, and is none.
_SERVERS: dict[int, Server] = {}


def server() -> Server:
    """This process's server of the compiler's modules."""
    if os.getpid() not in _SERVERS:
        _SERVERS[os.getpid()] = Server()
    return _SERVERS[os.getpid()]


def servers() -> set[int]:
    return {one.process.pid for one in _SERVERS.values()}


class Fork:
    """A process of a server, with what `Pool` asks of subprocess.Popen."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._end = os.pidfd_open(pid)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._end], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            os.close(self._end)
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)


def _worker(command: Sequence[str], *, env: Mapping[str, str], **more: Any) -> Any:
    """As subprocess.Popen, for a worker of a pool: forked if it imports nothing but the compiler's modules."""
    words = [str(word) for word in command]
    at = words.index(_WORKER) if _WORKER in words else None
    preload = [] if at is None else [word for word in words[at + 3 :] if not word.startswith("-")]
    places = env.get("PYTHONPATH", "").split(os.pathsep)
    if (
        at is None
        or not all(name.startswith(("javisc.compiler.", "javisc.manifests.", "support.faults")) for name in preload)
        or any(Path(place, "javisc").exists() for place in places if place)
    ):
        return subprocess.Popen(command, env=env, **more)
    with Path(os.devnull).open("rb") as nothing:
        given = [nothing.fileno(), more["stdout"].fileno(), more["stderr"].fileno(), *more["pass_fds"]]
        return Fork(server().start(words[at:], given, environment=env, group=True))


def fork_workers() -> None:
    """From now on, the workers of this process's pools are forks."""
    from javisc.compiler.run import pool

    like = {name: getattr(subprocess, name) for name in ("DEVNULL", "TimeoutExpired")}
    pool.subprocess = SimpleNamespace(Popen=_worker, **like)  # type: ignore[assignment]


def javisc(
    *words: object, at: Server | None = None, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`javisc WORDS` in a process of its own, as subprocess.run with capture_output and text."""
    line = ["javisc", *map(str, words)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, Path(os.devnull).open("rb") as nothing:
        given = [nothing.fileno(), out.fileno(), err.fileno()]
        code = Fork((at or server()).start(line, given, environment=env, folder=cwd)).wait(600)
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess(line, code, *said)

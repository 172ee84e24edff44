"""Stages of a benchmark, each in a process of its own and all within a budget. Standard library alone: whatever a device, a
driver or a kernel does, this process lives on, notes it, and goes to what comes next.

A cell that crashes its process or does not answer is noted as "not measured", and its stage goes on with the next cell in a new
process. What all import, they import once, in the server that their processes are forked from (multiprocessing's forkserver),
which imports the module `preload`.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any

from cells import Log


@dataclass(frozen=True)
class Stage:
    """name: as the report calls it. function: "module:name", called with (log, tiny, *arguments) in the stage's process. share:
    of what is left of the budget when it starts, at most. patience: seconds for one cell (None: as long as the stage has)."""

    name: str
    function: str
    arguments: tuple[Any, ...] = ()
    share: float = 1.0
    patience: float | None = None


SILENT = "no answer"


class Spent(Exception):
    """The budget ended while a process was being started."""


def enter(stage: Stage, path: str, on: str, tiny: bool, words: str, to: Connection) -> None:
    """What a stage's process does. What it prints goes to the file `words`, whose end tells why it failed."""
    os.setsid()  # so that whatever it starts ends with it
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    file = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    module, _, name = stage.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    import torch

    if tiny:
        torch.set_num_threads(1)

    def broken() -> bool:
        if not torch.cuda.is_initialized():
            return False
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError:
            return True  # after an illegal access every later call fails
        return False

    function(Log(Path(path), on, to.send, broken), tiny, *stage.arguments)


class Runner:
    """Runs stages until `end` (of time.monotonic), their cells into the log at `path`, for `on` (see Log). tiny: toy sizes.
    interpret: in Triton's interpreter. words: a file for what they print. say: what went wrong, a line each. beat: called every
    few seconds."""

    def __init__(
        self,
        path: Path,
        on: str,
        tiny: bool,
        interpret: bool,
        words: Path,
        end: float,
        say: Callable[[str], None],
        beat: Callable[[], None],
        preload: str = "server",
    ) -> None:
        self.path, self.on, self.tiny, self.words, self.end, self.say, self.beat = path, on, tiny, words, end, say, beat
        for name in ("JAVISC_KERNELS", "TRITON_INTERPRET"):
            os.environ.pop(name, None)
        if interpret:
            os.environ["TRITON_INTERPRET"] = "1"
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([preload])

    def _serve(self) -> None:
        """Start the server, which finds `preload` beside this file, unless it runs."""
        before = os.environ.get("PYTHONPATH", "")
        os.environ["JAVISC_PYTHONPATH"] = before
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parent), before)))
        try:
            ensure_running()
        finally:
            os.environ["PYTHONPATH"] = before

    def run(self, stage: Stage) -> str:
        """ "done", or why it is not, in words for the report."""
        left = self.end - time.monotonic()
        if left < 1:
            return "not started: the budget is spent"
        share, silent = max(left * stage.share, 20.0), 0
        while True:
            try:
                code, doing, why, took = self._once(stage, share)
            except Spent:
                return "stopped: the budget is spent"
            said = " ".join(self.words.read_text(errors="replace").split())[-300:]
            if why.startswith("stopped"):
                return f"{why}, in {doing}" if doing else why
            if doing:
                why = why or f"its process ended with {_ended(code)}" + (f": {said}" if said else "")
                Log(self.path, self.on).write({"cell": doing, "not measured": why})
                self.say(f"{doing}: {why}")
                share, silent = share - took, silent + why.startswith(SILENT)
                if silent == 2:
                    return "stopped: twice there was no answer"
            elif code == 0:
                return "done"
            elif code != Log.BROKEN:
                return f"failed: {_ended(code)}: {said}"

    def _once(self, stage: Stage, share: float) -> tuple[int | None, str, str, float]:
        """One process of the stage: its exit code, the cell that it was at ("": none), why it was ended ("": it was not),
        and for how many seconds it ran."""
        self.words.write_bytes(b"")
        ours, theirs = self.context.Pipe(duplex=False)
        process = self.context.Process(
            target=enter,
            args=(stage, str(self.path), self.on, self.tiny, str(self.words), theirs),
            name=stage.name,
        )
        with _alarm(self.end):
            self._serve()
            process.start()
        theirs.close()
        began = time.monotonic()  # the server has imported what it imports
        stop = min(began + share, self.end)
        doing, why, patience = "", "killed", stop
        try:
            while True:
                beat = min(stop, patience, time.monotonic() + 2.0)
                ready = wait([ours, process.sentinel], max(0.0, beat - time.monotonic()))
                if ours in ready:
                    try:
                        message = ours.recv()
                    except EOFError:
                        why = ""
                        break
                    doing = message
                    patience = time.monotonic() + stage.patience if doing and stage.patience else stop
                elif ready:
                    why = ""
                    break
                self.beat()
                now = time.monotonic()
                if now >= stop:
                    why = f"stopped: {'the' if stop >= self.end else 'its share of the'} budget is spent"
                    break
                if now >= patience:
                    why = f"{SILENT} within {stage.patience:.0f} s"
                    break
        finally:
            if not why:
                process.join(5.0)  # it closed its end: it is about to end
            if process.exitcode is None and process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.join(5.0)
            ours.close()
        return process.exitcode, doing, why, time.monotonic() - began


def _ended(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


@contextlib.contextmanager
def _alarm(end: float) -> Iterator[None]:
    """Raise Spent inside the block when the time comes: starting a process waits for PyTorch's import."""

    def ring(*_: Any) -> None:
        raise Spent

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.1, end - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""A pool of supervised worker processes: calls with a time limit that survive crashes, kills and hangs."""

from __future__ import annotations

import heapq
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType

from javisc.compiler.run.calls import Call, Outcome, take
from javisc.compiler.run.effort import MAX_SECONDS, Meter, resident
from javisc.manifests.environment import patience, pause
from javisc.manifests.errors import UserError

#: A worker that cannot even start so many times in a row says that the installation is at fault, not a file.
_MAX_FALSE_STARTS = 5
_START_LIMIT = 120.0
#: Seconds between looks at the memory of workers that have a bound.
_LOOK = 0.05
#: Short calls that a worker is told of ahead.
_AHEAD = 4
#: glibc keeps freed memory rather than giving it back to the system after every clip, whose pages cost more than short sounds do.
_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_TOP_PAD_": str(4 << 20),
}
#: There is a process for every core: threads of a matrix product would wait for one another spinning, which doubled the CPU of a
#: short sound. Sums of many threads depend on how many there are, too.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class _Worker:
    """One process and what it is doing."""

    def __init__(self, logs: Path | None, alone: bool, preload: Sequence[str], slot: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        self.slot = slot
        self.alone = alone
        #: What it says. The file has no name: it goes with the last who has it open.
        self.log = tempfile.TemporaryFile(dir=logs)  # noqa: SIM115 (closed with the process)
        # Named by its role so that `ps` and tests can tell a worker that retries from the others.
        role = ["--retry"] if alone else []
        command = [
            sys.executable,
            "-P",
            "-m",
            __name__.replace("pool", "worker"),
            str(theirs.fileno()),
            str(os.getpid()),
        ]
        self.process = subprocess.Popen(
            [*command, *preload, *role],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            process_group=0,  # Ctrl-C reaches the parent alone, which decides
            env={**_MEMORY, **os.environ, **_ONE_THREAD, **slot},
        )
        theirs.close()
        self.connection = Connection(ours.detach())
        self.call: Call | None = None
        self.run: str | None = None
        self.ahead: deque[Call] = deque()
        self.ready = False
        self.since = time.monotonic()
        self.meter = Meter(self.process.pid)
        self.granted = 0.0

    @property
    def overdue(self) -> str | None:
        """Why its time is over, or None."""
        if self.call is None and self.ready:
            return None
        self.meter.update()
        return self.meter.exceeded(_START_LIMIT if self.call is None else self.call.step.limit, self.granted)

    def begin(self, call: Call) -> None:
        self._charge(call)
        self._send(call)

    def announce(self, call: Call) -> None:
        """Tell it of a call that it makes when it has answered what it was told before."""
        self._send(call)
        self.ahead.append(call)

    def go_on(self) -> None:
        """It has answered its call, and makes the next one that it was told of, if any."""
        self.call = None
        if self.ahead:
            self._charge(self.ahead.popleft())

    def _charge(self, call: Call) -> None:
        self.call, self.run = call, call.run or self.run
        self.since = time.monotonic()
        self.meter, self.granted = Meter(self.process.pid), 0.0

    def _send(self, call: Call) -> None:
        message = {"call": call.step.function, "arguments": call.step.arguments}
        self.connection.send_bytes(json.dumps(message).encode())

    def end(self) -> None:
        """Kill the process and wait for it."""
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self.log.close()

    def last_words(self) -> str:
        """How it died, and the last line it wrote to its error stream."""
        try:
            code = self.process.wait(10)
        except subprocess.TimeoutExpired:  # it closed its socket and lives on
            self.process.kill()
            code = self.process.wait()
        try:
            self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 4096))
            lines = self.log.read().decode("utf-8", "replace").split("\n")
        except OSError:
            lines = []
        said = next((line.strip() for line in reversed(lines) if line.strip()), "")
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            how = f"killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
        else:
            how = f"ended with code {code}"
        return how + (f": {said[:200]}" if said else "")


class Pool:
    """At most `workers` processes. Calls start in the order they were submitted; those with `first` go before all others.

    A call whose worker dies or exceeds its limit is tried again in a fresh worker that does nothing else; the last (second)
    time it ends as "crashed" or "timeout". One that meets storage which does not answer is tried again later, for `patience()`
    seconds from the first time. preload: modules that workers import before they take calls. slots: environment variables of
    each of the workers, as the GPU that it alone has; one that replaces another takes its slot. logs: see keep_logs. bound: bytes
    of memory that a worker may take; a call that needs more is as good as crashed.
    """

    def __init__(
        self,
        workers: int,
        logs: Path | None,
        preload: Sequence[str] = (),
        slots: Sequence[Mapping[str, str]] = (),
        *,
        bound: int | None = None,
    ) -> None:
        self.size, self.bound = workers, bound
        self.slots = list(slots or [{}] * workers)
        self.preload = preload
        self.keep_logs(logs)
        self.waiting: deque[Call] = deque()
        self.retries: deque[Call] = deque()
        self.later: list[tuple[float, int, Call]] = []
        self.order = itertools.count()
        self.workers: list[_Worker] = []
        self.finished: list[Outcome] = []
        self.false_starts = 0
        self._asked: list[int] = []
        self._poll = select.poll()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def keep_logs(self, folder: Path | None) -> None:
        """Where what workers say is kept from now on, as long as they live: a folder, which is made, or the system's."""
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.logs = folder

    def warm(self, workers: int = 1) -> None:
        """Start so many workers before there is a call for them, so that they have begun when there is."""
        for _ in range(min(workers, self.size) - len(self.workers)):
            self._start(alone=False)

    def submit(self, call: Call, *, first: bool = False) -> None:
        """Queue a call."""
        (self.waiting.appendleft if first else self.waiting.append)(call)

    @property
    def hungry(self) -> bool:
        """True while fewer calls wait than there are workers: time to submit more."""
        return len(self.waiting) + len(self.retries) + len(self.later) < self.size

    @property
    def busy(self) -> bool:
        """True while a call waits or runs."""
        return bool(self.waiting or self.retries or self.later or any(worker.call for worker in self.workers))

    @property
    def connections(self) -> list[Connection]:
        """What tells that a call ended."""
        return [worker.connection for worker in self.workers]

    def wait(self, timeout: float = 0.5, also: Sequence[Connection] = ()) -> list[Outcome]:
        """Give work to idle workers, wait up to `timeout` seconds, or until one of `also` tells; return the calls that ended.

        Raises UserError if workers cannot be started.
        """
        self._dispatch()
        now = time.monotonic()
        until = min(
            [timeout if self.bound is None else _LOOK, *(max(0.0, when - now) for when, _, _ in self.later[:1])]
        )
        if not self.workers and self.later:
            time.sleep(until)
        if self.workers:
            ready = self._told((*self.connections, *also), until)
            for worker in list(self.workers):
                if worker.connection.fileno() in ready:
                    self._read(worker)
                elif words := worker.overdue:
                    self._fail(worker, "timeout", words)
                elif self.bound is not None and (held := resident(worker.process.pid)) > self.bound:
                    said = f"took {held / 1e9:.2g} GB of memory where its shard asks a node for {self.bound / 1e9:.2g}"
                    self._fail(worker, "crashed", said)
        self._dispatch()
        finished, self.finished = self.finished, []
        return finished

    def _told(self, connections: Sequence[Connection], timeout: float) -> set[int]:
        """Wait up to `timeout` seconds for one of them; the descriptors of those that tell something, or have ended.

        What is asked stays registered: `multiprocessing.connection.wait` begins anew for each short file.
        """
        asked = [connection.fileno() for connection in connections]
        if asked != self._asked:
            self._asked, self._poll = asked, select.poll()
            for descriptor in asked:
                self._poll.register(descriptor, select.POLLIN)
        return {descriptor for descriptor, _ in self._poll.poll(timeout * 1000)}

    def _dispatch(self) -> None:
        """Start retries in fresh workers first, then give waiting calls to idle workers, then start what is missing."""
        while self.later and self.later[0][0] <= time.monotonic():
            call = heapq.heappop(self.later)[2]
            (self.retries if call.attempts else self.waiting).append(call)
        starting = sum(worker.alone and worker.call is None for worker in self.workers)
        idle = [worker for worker in self.workers if worker.ready and worker.call is None and not worker.alone]
        while len(self.retries) > starting and (len(self.workers) < self.size or idle):
            if len(self.workers) >= self.size:
                self._drop(idle.pop())
            self._start(alone=True)
            starting += 1
        for worker in idle:
            if self.waiting:
                self._begin(
                    worker, take(self.waiting, worker.run, {one.run for one in self.workers if one is not worker})
                )
        self._announce()
        coming = sum(not worker.ready and not worker.alone for worker in self.workers)
        for _ in range(min(self.size - len(self.workers), len(self.waiting) - coming)):
            self._start(alone=False)

    def _announce(self) -> None:
        """Tell workers that make short calls of the next ones, to each in turn."""
        for deep in range(_AHEAD):
            for worker in self.workers:
                if not self.waiting or not self.waiting[0].short or self.waiting[0].before is not None:
                    return
                if worker.call is not None and worker.call.short and not worker.alone and len(worker.ahead) <= deep:
                    try:
                        worker.announce(self.waiting[0])
                    except OSError:  # it died, which reading from it will tell
                        continue
                    self.waiting.popleft()

    def _start(self, alone: bool) -> None:
        taken = [worker.slot for worker in self.workers]
        free = next((slot for slot in self.slots if taken.count(slot) < self.slots.count(slot)), {})
        self.workers.append(_Worker(self.logs, alone, self.preload, free))

    def _begin(self, worker: _Worker, call: Call) -> None:
        try:
            worker.begin(call)
        except OSError:  # it died between two calls: not this call's doing
            worker.call = None
            self._drop(worker)
            (self.retries if worker.alone else self.waiting).appendleft(call)

    def _read(self, worker: _Worker) -> None:
        try:
            answer = json.loads(worker.connection.recv_bytes())
        except (EOFError, OSError):
            self._fail(worker, "crashed")
            return
        if not worker.ready:
            worker.ready = True
            self.false_starts = 0
            if worker.alone:
                if self.retries:
                    self._begin(worker, self.retries.popleft())
                else:
                    self._drop(worker)
            return
        call = worker.call
        assert call is not None
        if "needs" in answer:
            worker.granted = call.step.limit + min(float(answer["needs"]), MAX_SECONDS)
            return
        if answer.get("error") == "memory":
            self._fail(worker, "crashed", answer["message"])
            return
        if call.step is not call and not answer.get("error"):
            call.prepared = True
            self._begin(worker, call)
            return
        outcome = Outcome(call, seconds=time.monotonic() - worker.since, details=answer)
        worker.go_on()
        if answer.get("error") == "unavailable" and not answer["waited"] and self._postpone(call):
            pass
        elif answer.get("error"):
            outcome.error, outcome.message = answer["error"], answer.get("message", "")
            self.finished.append(outcome)
        else:
            outcome.value = answer["value"]
            self.finished.append(outcome)
        if worker.alone:
            self._drop(worker)

    def _fail(self, worker: _Worker, error: str, message: str = "") -> None:
        """The worker died or hangs: its call gets its second attempt, or ends."""
        if error == "timeout" or message:
            worker.process.kill()
        words = message or worker.last_words()
        call, ready = worker.call, worker.ready
        seconds = time.monotonic() - worker.since
        self._drop(worker)
        if not ready:
            self.false_starts += 1
            if self.false_starts >= _MAX_FALSE_STARTS:
                raise UserError(f"worker processes do not start ({words}): check the installation and the memory limit")
            return
        if call is None:
            return
        if call.step is not call:
            if not self._postpone(call):
                message = (
                    f"{call.step.function} {words}: the storage does not answer; run the same command again, it resumes"
                )
                self.finished.append(Outcome(call, error="unavailable", message=message, seconds=seconds))
            return
        call.attempts += 1
        call.prepared = False
        if call.attempts >= call.tries:
            often = {1: "", 2: ", twice"}.get(call.tries, f", {call.tries} times")
            self.finished.append(Outcome(call, error=error, message=words + often, seconds=seconds))
        else:
            self.retries.append(call)

    def _postpone(self, call: Call) -> bool:
        """Try a call again later whose storage does not answer. False if it was given its time."""
        now = time.monotonic()
        if call.refusals == 0:
            call.until = now + patience()
        when = now + pause(call.refusals)
        if when > call.until:
            return False
        call.refusals += 1
        call.prepared = False
        heapq.heappush(self.later, (when, next(self.order), call))
        return True

    def _drop(self, worker: _Worker) -> None:
        worker.end()
        self.workers.remove(worker)
        self.waiting.extendleft(reversed(worker.ahead))  # what it was told ahead, it has not begun

    def close(self) -> None:
        """Kill every worker and forget what waits."""
        for worker in list(self.workers):
            self._drop(worker)
        self.waiting.clear()
        self.retries.clear()
        self.later.clear()

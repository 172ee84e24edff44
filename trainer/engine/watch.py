"""What tells of a run that stands still, or is slow: heartbeats, a watchdog, PyTorch's flight recorder, traces of some steps."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from javisc.manifests.files import published
from javisc.trainer.engine.hooks import Hook, Run

#: The folders of a run with heartbeats, stacks and flight records; and with traces.
FOLDER, TRACES = "heartbeats", "profile"
#: Collectives that the flight recorder remembers; steps before the first that is traced; memory events that are kept.
RECORDS, WARM_UP, EVENTS = 2000, 3, 100_000


def record_flights(folder: Path) -> None:
    """Let NCCL remember its last collectives and write them to RUN/heartbeats/nccl-RANK when one times out; what is set already
    stays. Call it before processes are joined; the folder must be there later."""
    where = str((folder / FOLDER / "nccl-").resolve())
    for name, value in (
        ("TORCH_FR_BUFFER_SIZE", str(RECORDS)),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
        ("TORCH_FR_DUMP_TEMP_FILE", where),
    ):
        os.environ.setdefault(name, value)


class Watchdog(Hook):
    """Each process's heartbeat, RUN/heartbeats/rank-R.json: its step, and when it took it.

    A process that takes no step for `limit` seconds (before the first step, and while it validates, saves or previews: for
    `long` seconds) writes the stacks of all its threads to rank-R.stacks.txt and to standard error, with the names of its last
    batch. It ends nothing: the time limits of collectives do.
    """

    def __init__(self, limit: float, long: float) -> None:
        self.limit, self.long = limit, long
        self.beat, self.told = time.monotonic(), False
        self.stop = threading.Event()
        self.thread: threading.Thread | None = None

    def started(self, run: Run) -> None:
        """Start watching."""
        self.beat = time.monotonic()
        self.thread = threading.Thread(target=self._watch, args=(run, run.step), daemon=True)
        self.thread.start()

    def stepped(self, run: Run) -> None:
        """A sign of life."""
        self.beat, self.told = time.monotonic(), False

    def ended(self, run: Run, why: str) -> None:
        """Stop watching."""
        self.close()

    def close(self) -> None:
        """Stop watching, also where a run fails."""
        self.stop.set()
        if self.thread is not None:
            self.thread.join()

    def _watch(self, run: Run, begin: int) -> None:
        path = run.folder / FOLDER / f"rank-{run.world.rank:05d}.json"
        failed = False
        while True:
            silent = time.monotonic() - self.beat
            state = {"step": run.step, "silent_sec": round(silent, 1), "time": time.time(), "pid": os.getpid()}
            try:
                with published(path) as temporary:
                    temporary.write_text(json.dumps({**state, "host": socket.gethostname()}) + "\n", encoding="utf-8")
                failed = False
            except OSError as error:  # a full disk must not end the watch
                if not failed:
                    print(
                        f"warning: no heartbeat can be written: {error}; the run is watched on",
                        file=sys.stderr,
                        flush=True,
                    )
                failed = True
            limit = self.long if run.step == begin or run.meter.is_paused else self.limit
            if silent > limit and not self.told:
                self.told = True
                self._tell(run, path.with_suffix(".stacks.txt"), silent)
            if self.stop.wait(min(15.0, self.limit / 4)):
                return

    def _tell(self, run: Run, path: Path, silent: float) -> None:
        names = ", ".join(run.keys[:64])
        line = f"process {run.world.rank} has taken no step for {silent:.1f} s, after step {run.step}; its last batch: {names}"
        # faulthandler wants a descriptor; not on the run's disk, which may be what hangs.
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file=file, all_threads=True)
            file.seek(0)
            stacks = file.read()
        print(f"warning: {line}; stacks of its threads, also in {path}:\n{stacks}", file=sys.stderr, flush=True)
        try:
            with path.open("a", encoding="utf-8") as kept:
                kept.write(f"{line}\n{stacks}")
        except OSError as error:
            print(f"warning: {path} cannot be written: {error}", file=sys.stderr, flush=True)


class Profile(Hook):
    """Traces `steps` steps, after the first ones: RUN/profile/rank-R.json.gz opens in Perfetto; on CUDA also
    rank-R.memory.pickle, which opens at pytorch.org/memory_viz."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.begin = 0
        self.running: torch.profiler.profile | None = None

    def started(self, run: Run) -> None:
        """Remember the first step."""
        self.begin = run.step + WARM_UP

    def stepped(self, run: Run) -> None:
        """Start or stop, if it is time."""
        if run.step == self.begin:
            if run.world.device.type == "cuda":
                torch.cuda.memory._record_memory_history(max_entries=EVENTS)
            self.running = torch.profiler.profile(record_shapes=True, acc_events=True)
            self.running.start()
        elif run.step == self.begin + self.steps:
            self._write(run)

    def ended(self, run: Run, why: str) -> None:
        """Write what there is of a run that ended in between."""
        self._write(run)

    def _write(self, run: Run) -> None:
        if self.running is None:
            return
        with run.meter.paused():
            self.running.stop()
            folder = run.folder / TRACES
            folder.mkdir(exist_ok=True)
            name = f"rank-{run.world.rank:05d}"
            self.running.export_chrome_trace(str(folder / f"{name}.json.gz"))
            if run.world.device.type == "cuda":
                torch.cuda.memory._dump_snapshot(str(folder / f"{name}.memory.pickle"))  # type: ignore[no-untyped-call]
                torch.cuda.memory._record_memory_history(enabled=None)
        self.running = None

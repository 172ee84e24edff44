"""Processes that do nothing but load batches and write down what they got, so that a test can kill them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from javisc.trainer.data.bytes.colour import ColourJitter
from javisc.trainer.data.bytes.graph import GraphOptions
from javisc.trainer.data.bytes.loaded import Loaded
from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
from javisc.trainer.data.index.assign import BucketTable, Length, Resolution
from javisc.trainer.data.index.catalog import Catalog
from javisc.trainer.data.index.sampler import Sampler, SamplerOptions
from javisc.trainer.data.sources.sync import SyncBatches, SyncDataOptions
from javisc.trainer.transforms.sync_chain import SyncTransforms
from support.processes import forkserver

TABLE = BucketTable(
    [Resolution("small", 32 * 48, {"0.67": (32, 48), "1.00": (40, 40)}, (Length(17, 2), Length(34, 2)))]
)
EPOCHS = 2


@dataclass(frozen=True)
class Part:
    """One rank's batch as it was written down: where, what (row, digest of its tensors), and the state after it."""

    epoch: int
    step: int
    clips: tuple[tuple[int, str], ...]
    state: dict[str, Any]


def opened(dataset: Path, rank: int, world: int, threads: int) -> Loader:
    """A loader with everything random switched on, over a small bucket table."""
    sampler = Sampler(Catalog.open([dataset]), TABLE, SamplerOptions(mirror=0.5), rank=rank, world=world)
    graph = GraphOptions(colour=ColourJitter(), spectrum="audioldm", threads=threads)
    return Loader(sampler, LoaderOptions(threads=threads, ahead=threads, ready=threads, crop="random", graph=graph))


def part(loaded: Loaded, state: dict[str, Any]) -> Part:
    """What is written down of a batch: its tensors bit for bit."""
    clips = []
    for index, clip in enumerate(loaded.batch.clips):
        digest = hashlib.sha256(json.dumps(loaded.labels[index]).encode())
        for tensor in (loaded.video, loaded.audio, loaded.spectrum):
            assert tensor is not None
            digest.update(tensor[index].contiguous().numpy().tobytes())
        clips.append((clip.row, digest.hexdigest()))
    return Part(loaded.batch.epoch, loaded.batch.step, tuple(clips), json.loads(json.dumps(state)))


def load(
    dataset: Path, rank: int, world: int, threads: int, state: dict[str, Any] | None, log: Path, pause: float
) -> None:
    """Load to the end of the last epoch, a line a batch; `pause` seconds are spent on each, as a training step would."""
    with opened(dataset, rank, world, threads) as loader, log.open("w") as out:
        if state is not None:
            loader.load_state_dict(state)
        while loader.sampler.epoch < EPOCHS:
            for loaded in loader:
                out.write(json.dumps(vars(part(loaded, loader.state_dict()))) + "\n")
                out.flush()
                time.sleep(pause)


def read(log: Path) -> list[Part]:
    """The complete lines of a log."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    found = [json.loads(line) for line in lines]
    return [Part(row["epoch"], row["step"], tuple(map(tuple, row["clips"])), row["state"]) for row in found]


class Life:
    """The processes of one run of `world` ranks, from a state until they end or are killed."""

    def __init__(self, dataset: Path, folder: Path, world: int, threads: int, state: dict[str, Any] | None) -> None:
        context = forkserver()
        folder.mkdir(parents=True)
        self.logs = [folder / f"{rank}.jsonl" for rank in range(world)]
        self.processes = [
            context.Process(target=load, args=(dataset, rank, world, threads, state, self.logs[rank], 0.02))
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def kill(self, after: int, delay: float) -> None:
        """SIGKILL every rank once `after` batches lie in the logs, and `delay` seconds later; none may have ended before."""
        end = time.monotonic() + 120
        while sum(len(read(log)) for log in self.logs) < after:
            assert time.monotonic() < end and all(process.is_alive() for process in self.processes), "no batches came"
            time.sleep(0.005)
        time.sleep(delay)
        for process in self.processes:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)

    def parts(self) -> list[list[Part]]:
        """What each rank got, once all have ended."""
        for process in self.processes:
            process.join(120)
            assert process.exitcode is not None, "a rank hangs"
        return [read(log) for log in self.logs]

    @property
    def codes(self) -> list[int | None]:
        """The exit codes."""
        return [process.exitcode for process in self.processes]


class Odd(Exception):
    """An error that pickle cannot make again from its arguments."""

    def __init__(self, what: str, number: int) -> None:
        super().__init__(f"{what}, {number} times")


def stumble(*_: object) -> None:
    """A transform with a mistake in it."""
    raise Odd("stumbled", 3)


def workers_of(source: SyncBatches) -> set[int]:
    """The processes that decode for a source now."""
    workers = source.loader.workers
    pool = None if workers is None else workers.pool
    return set() if pool is None else set(pool._processes)


def sync_and_sleep(dataset: Path, transforms: SyncTransforms, told: Connection) -> None:
    """Take one batch that processes decode, tell which they are, and stay."""
    options = SyncDataOptions(batch_size=2, split=None, processes=True)
    source = SyncBatches([dataset], transforms, options)
    for _ in source:
        told.send(sorted(workers_of(source)))
        time.sleep(600)

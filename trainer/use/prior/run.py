"""Making a pool: parts that are not published yet go to processes, here or on a cluster, then the tables are merged."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.engine import EngineOptions, check_engine
from javisc.compiler.run.parts import ITEMS, Wanted, publish
from javisc.compiler.run.spread import Job, Resources
from javisc.compiler.run.stopping import stoppable
from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.compiler.store.present import intact
from javisc.compiler.store.tables import Merged, publish_tables
from javisc.manifests.errors import UserError
from javisc.manifests.io import absolute
from javisc.trainer.use.devices import TORCH, Devices, devices_of
from javisc.trainer.use.prior.networks import bytes_of
from javisc.trainer.use.prior.settings import everywhere
from javisc.trainer.use.prior.stage import Stage, parts_of, stage_of

#: Which stage a folder belongs to, in its working folder.
BEGUN = "prior.json"
_WORKER = "javisc.trainer.use.prior.worker"
#: Bytes of memory of a process without networks.
_PLAIN = 500_000_000
#: Seconds between lines of progress.
_EVERY = 10.0


@dataclass(frozen=True)
class RunOptions:
    """How parts are made.

    part_size: items of a part, which is a shard and what a kill can cost. workers: processes, None for one a GPU, or a core where
    there is no network; on a cluster for as many as fit. device: auto, cuda or cpu. engine, address: see EngineOptions. Only
    part_size has a say in the bytes, and the kind of the device.
    """

    part_size: int = 64
    workers: int | None = None
    device: str = "auto"
    engine: str = "local"
    address: str | None = None


def run(
    name: str,
    settings: Mapping[str, Any],
    out: str,
    options: RunOptions | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Merged:
    """Make the pool `out` by the stage `name`; killed, the same call goes on. Raises UserError.

    settings: the stage's, as JSON can say them, since they travel to the processes.
    """
    options = options or RunOptions()
    if options.part_size < 1:
        raise UserError(f"--part-size {options.part_size}: 1 or more is allowed")
    stage = stage_of(name, settings)
    check_engine(options.engine, EngineOptions(address=options.address))
    devices = _devices(options, bool(stage.networks))
    with tempfile.TemporaryDirectory(prefix="javisc-prior-") as folder:
        scratch = Path(folder)
        store = Store(out, scratch / "uploads")
        with stoppable(), locked(store):
            _begin(store, name)
            return _Run(stage, everywhere(name, settings), store, scratch, options, devices, say).run()


def _devices(options: RunOptions, networks: bool) -> Devices:
    """Where a stage runs; without networks on every core. Raises UserError if there is no such device."""
    if networks:
        return devices_of(options.device, options.workers, engine=options.engine, address=options.address)
    return Devices("cpu", [], options.workers or (usable_cores() if options.engine == "local" else None))


def _begin(store: Store, name: str) -> None:
    """Mark the folder as the stage's. Raises UserError if it holds something else; one where nothing was made is free."""
    begun = json.loads(store.read(BUILD, BEGUN)).get("stage") if store.exists(BUILD, BEGUN) else None
    if begun == name:
        return
    if store.exists("dataset.json") or store.names("shards"):
        maker = (
            "is a dataset that something else made" if begun is None else f"was begun by `javisc build prior {begun}`"
        )
        raise UserError(f"--out {store.root} {maker}: give another folder")
    store.write((json.dumps({"stage": name}) + "\n").encode(), BUILD, BEGUN)


class _Run:
    def __init__(
        self,
        stage: Stage,
        settings: Mapping[str, Any],
        store: Store,
        scratch: Path,
        options: RunOptions,
        devices: Devices,
        say: Callable[[str], None],
    ) -> None:
        self.stage, self.store, self.scratch = stage, store, scratch
        self.options, self.devices, self.say = options, devices, say
        self.kept = self.total = self.done = 0
        self.began = self.told = time.monotonic()
        gpus = int(devices.kind == "cuda")
        memory = (TORCH if stage.networks else _PLAIN) + sum(bytes_of(path) for path in stage.networks)
        self.job = Job(f"{_WORKER}:make", Resources(gpus=gpus, memory=memory), items=ITEMS)
        self.common = {
            "stage": stage.name,
            "settings": dict(settings),
            "out": absolute(store.root),
            "device": devices.torch if stage.networks else None,
            # On another machine a process has a folder of its own, which goes with it.
            "folder": str(scratch) if options.engine == "local" else None,
        }

    def run(self) -> Merged:
        """Make what is missing and publish the tables, dataset.json last."""
        published = publish(
            self.job, self._missing(), workers=self.devices.workers, devices=self.devices.gpus, engine=self.options.engine,
            address=self.options.address, smaller="--part-size",
        )  # fmt: skip
        for _ in published:
            self.done += 1
            self._tell()
        if self.total == 0:
            raise UserError(f"nothing to do: {self.stage.name} found no input at all")
        self.say(f"{self.total} parts, {self.kept} of them were there already")
        made = {"stage": self.stage.name, **self.stage.header(), "weights": self.stage.weights() or None}
        header: dict[str, Any] = {"recipe": self.stage.recipe, "prior": made}
        return publish_tables(self.store, range(self.total), header)

    def _missing(self) -> Iterator[Wanted]:
        """The parts that are not published as they should be."""
        there = {number: commit.get("part") for number, commit in intact(self.store).items()}
        for part in parts_of(self.stage, self.stage.items(self.scratch), self.options.part_size, self.devices.kind):
            self.total += 1
            if there.get(part.number) == part.header:
                self.kept += 1
                continue
            self.store.remove("dataset.json")  # what it says is true no more
            arguments = {**self.common, "number": part.number, "header": part.header}
            yield Wanted(part.number, arguments, part.items)

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self.told >= _EVERY:
            self.told = now
            self.say(
                f"{self.done} parts made, {self.kept} were there, {self.done / (now - self.began) * 60:.2g} a minute"
            )

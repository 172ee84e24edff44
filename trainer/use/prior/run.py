"""Making a pool: parts that are not published yet go to processes, here or on a cluster, then the tables are merged."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.engine import EngineOptions, check_engine
from javisc.compiler.run.spread import Job, Resources, spread, visible_gpus
from javisc.compiler.run.stopping import stoppable
from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.compiler.store.present import intact
from javisc.compiler.store.tables import Merged, publish_tables
from javisc.manifests.errors import UserError
from javisc.manifests.io import absolute
from javisc.trainer.use.prior.networks import bytes_of
from javisc.trainer.use.prior.settings import everywhere
from javisc.trainer.use.prior.stage import Part, Stage, parts_of, stage_of

#: Which stage a folder belongs to, in its working folder.
BEGUN = "prior.json"
_WORKER = "javisc.trainer.use.prior.worker"
#: CPU seconds that a process may take to load networks, and for an item: a diffusion of some hundred steps on a slow core.
_START, _ITEM = 1800.0, 1800.0
#: Bytes of memory of a process, and with torch; its networks come on top.
_PLAIN, _TORCH = 500_000_000, 1_000_000_000
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


@dataclass
class _Open:
    """A part on its way; `lost` are items that kill their process, with how."""

    part: Part
    lost: dict[str, str] = field(default_factory=dict)


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
    devices = devices_of(options, bool(stage.networks))
    with tempfile.TemporaryDirectory(prefix="javisc-prior-") as folder:
        scratch = Path(folder)
        store = Store(out, scratch / "uploads")
        with stoppable(), locked(store):
            _begin(store, name)
            return _Run(stage, everywhere(name, settings), store, scratch, options, devices, say).run()


@dataclass(frozen=True)
class Devices:
    """What processes compute on: cuda or cpu, the names of this machine's GPUs, one for each process, and how many processes
    there are, None for as many as fit."""

    kind: str
    gpus: list[str]
    workers: int | None


def devices_of(options: RunOptions, networks: bool) -> Devices:
    """Where networks run. Raises UserError if there is no such device."""
    wanted = options.workers
    if options.engine != "local":
        there = networks and options.device != "cpu" and _cluster_has_gpus(options.address)
        if networks and options.device == "cuda" and not there:
            raise UserError("--device cuda: no node of the cluster has a GPU; take --device cpu")
        return Devices("cuda" if there else "cpu", [], wanted)
    if not networks:
        return Devices("cpu", [], wanted or usable_cores())
    import torch

    gpus = visible_gpus() if options.device != "cpu" and torch.cuda.is_available() else []
    if options.device == "cuda" and not gpus:
        raise UserError("--device cuda: this machine has no CUDA device; take --device cpu")
    if gpus:
        return Devices("cuda", [gpus[number % len(gpus)] for number in range(wanted or len(gpus))], None)
    return Devices("cpu", [], wanted or 1)


def _cluster_has_gpus(address: str | None) -> bool:
    if address == "local":
        return bool(visible_gpus())
    from javisc.compiler.run.ray import connected

    with connected(address or "auto") as ray:
        return any(node["Alive"] and node["Resources"].get("GPU", 0) >= 1 for node in ray.nodes())


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
        memory = (_TORCH if stage.networks else _PLAIN) + sum(bytes_of(path) for path in stage.networks)
        self.job = Job(f"{_WORKER}:make", Resources(gpus=gpus, memory=memory), items="items")
        self.common = {
            "stage": stage.name,
            "settings": dict(settings),
            "out": absolute(store.root),
            "device": devices.kind if stage.networks else None,
            # On another machine a process has a folder of its own, which goes with it.
            "folder": str(scratch) if options.engine == "local" else None,
        }

    def run(self) -> Merged:
        """Make what is missing and publish the tables, dataset.json last."""
        broken = self._round(self._missing())
        while broken:
            for opened in broken:
                if not opened.lost:
                    raise UserError(
                        f"part {opened.part.number} kills its process, none of its items alone does: give it a smaller "
                        "--part-size, or more memory",
                        exit_code=1,
                    )
            before = {opened.part.number: len(opened.lost) for opened in broken}
            broken = self._round(iter(broken))
            if any(len(opened.lost) == before[opened.part.number] for opened in broken):
                raise UserError(f"part {broken[0].part.number} kills its process without its deadly items", exit_code=1)
        if self.total == 0:
            raise UserError(f"nothing to do: {self.stage.name} found no input at all")
        self.say(f"{self.total} parts, {self.kept} of them were there already")
        made = {"stage": self.stage.name, **self.stage.header(), "weights": self.stage.weights() or None}
        header: dict[str, Any] = {"recipe": self.stage.recipe, "prior": made}
        return publish_tables(self.store, range(self.total), header)

    def _missing(self) -> Iterator[_Open]:
        """The parts that are not published as they should be."""
        there = {number: commit.get("part") for number, commit in intact(self.store).items()}
        for part in parts_of(self.stage, self.stage.items(self.scratch), self.options.part_size, self.devices.kind):
            self.total += 1
            if there.get(part.number) == part.header:
                self.kept += 1
                continue
            self.store.remove("dataset.json")  # what it says is true no more
            yield _Open(part)

    def _round(self, wanted: Iterable[_Open]) -> list[_Open]:
        """Have parts made; returns those that are not published, since items of theirs kill processes."""
        calls = ((opened, self._arguments(opened), _START + _ITEM * len(opened.part.items)) for opened in wanted)
        broken: dict[int, _Open] = {}
        options = EngineOptions(address=self.options.address)
        outcomes = spread(
            self.job, calls, workers=self.devices.workers, engine=self.options.engine, options=options,
            devices=self.devices.gpus,
        )  # fmt: skip
        with closing(outcomes):  # type: ignore[type-var]
            for outcome in outcomes:
                opened = outcome.call.tag
                if outcome.error in ("crashed", "timeout"):
                    [item] = outcome.call.arguments["items"]
                    opened.lost[item["key"]] = f"{outcome.error}: {outcome.message}"
                elif outcome.error is not None:
                    raise UserError(
                        f"part {opened.part.number}: {outcome.message}; what is published stays, the same command goes on "
                        "from here",
                        exit_code=outcome.details.get("code", 1),
                    )
                if outcome.error is None and outcome.value["published"]:
                    self.done += 1
                else:
                    broken[opened.part.number] = opened
                self._tell()
        return list(broken.values())

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self.told >= _EVERY:
            self.told = now
            self.say(
                f"{self.done} parts made, {self.kept} were there, {self.done / (now - self.began) * 60:.2g} a minute"
            )

    def _arguments(self, opened: _Open) -> dict[str, Any]:
        part = asdict(opened.part)
        items = part.pop("items")
        return {**self.common, **part, "items": items, "whole": len(items), "lost": opened.lost}

"""Making a pool: parts that are not published yet go to worker processes, then the tables are merged."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.pool import Call, Outcome, Pool
from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.compiler.store.present import intact
from javisc.compiler.store.tables import Merged, publish_tables
from javisc.manifests.errors import UserError
from javisc.trainer.use.prior.stage import Part, Stage, parts_of, stage_of

#: Which stage a folder belongs to, in its working folder.
BEGUN = "prior.json"
_WORKER = "javisc.trainer.use.prior.worker"
#: CPU seconds that a worker may take to load networks, and for an item: a diffusion of some hundred steps on a slow core.
_START, _ITEM = 1800.0, 1800.0
#: Seconds between lines of progress.
_EVERY = 10.0


@dataclass(frozen=True)
class RunOptions:
    """How parts are made.

    part_size: items of a part, which is a shard and what a kill can cost. workers: processes, None for one a GPU, or a core where
    there is no network. device: auto, cuda or cpu. Only part_size has a say in the bytes, and the device.
    """

    part_size: int = 64
    workers: int | None = None
    device: str = "auto"


@dataclass
class _Open:
    """A part on its way; `lost` are items that kill their worker, `asked` those that are tried alone."""

    part: Part
    lost: dict[str, str] = field(default_factory=dict)
    asked: int = 0


def run(
    name: str,
    settings: Mapping[str, Any],
    out: str,
    options: RunOptions | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Merged:
    """Make the pool `out` by the stage `name`; killed, the same call goes on. Raises UserError.

    settings: the stage's, as JSON can say them, since they travel to the workers.
    """
    options = options or RunOptions()
    if options.part_size < 1:
        raise UserError(f"--part-size {options.part_size}: 1 or more is allowed")
    stage = stage_of(name, settings)
    devices = devices_of(options, bool(stage.weights()))
    with tempfile.TemporaryDirectory(prefix="javisc-prior-") as folder:
        scratch = Path(folder)
        store = Store(out, scratch / "uploads")
        with locked(store):
            _begin(store, name)
            return _Run(stage, settings, store, scratch, options, devices, say).run()


def devices_of(options: RunOptions, networks: bool) -> list[str]:
    """A device for each worker. Raises UserError if there is no such device."""
    if not networks:
        return ["cpu"] * (options.workers or usable_cores())
    import torch

    gpus = torch.cuda.device_count()
    if options.device == "cuda" and not gpus:
        raise UserError("--device cuda: this machine has no CUDA device; take --device cpu")
    if gpus and options.device != "cpu":
        return [f"cuda:{number % gpus}" for number in range(options.workers or gpus)]
    return ["cpu"] * (options.workers or 1)


def _begin(store: Store, name: str) -> None:
    """Mark the folder as the stage's. Raises UserError if it holds something else."""
    if store.exists(BUILD, BEGUN):
        found = json.loads(store.read(BUILD, BEGUN)).get("stage")
        if found != name:
            raise UserError(f"--out {store.root} was begun by `javisc build prior {found}`: give another folder")
    elif store.exists("dataset.json") or store.names("shards"):
        raise UserError(f"--out {store.root} is a dataset that something else made: give another folder")
    else:
        store.write((json.dumps({"stage": name}) + "\n").encode(), BUILD, BEGUN)


class _Run:
    def __init__(
        self,
        stage: Stage,
        settings: Mapping[str, Any],
        store: Store,
        scratch: Path,
        options: RunOptions,
        devices: list[str],
        say: Callable[[str], None],
    ) -> None:
        self.stage, self.settings, self.store, self.scratch = stage, settings, store, scratch
        self.options, self.devices, self.say = options, devices, say
        self.common = {
            "stage": stage.name,
            "settings": dict(settings),
            "out": store.root,
            "folder": str(scratch),
            "devices": devices,
            "networks": bool(stage.weights()),
        }

    def run(self) -> Merged:
        """Make what is missing and publish the tables, dataset.json last."""
        kind = self.devices[0].partition(":")[0]
        parts = parts_of(self.stage, self.stage.items(self.scratch), self.options.part_size, kind)
        there = {number: commit.get("part") for number, commit in intact(self.store).items()}
        began = told = time.monotonic()
        total = kept = done = 0
        exhausted = False
        with Pool(len(self.devices), self.scratch / "logs", (_WORKER,)) as pool:
            while not exhausted or pool.busy:
                while not exhausted and pool.hungry:
                    part = next(parts, None)
                    exhausted = part is None
                    if part is not None:
                        total += 1
                        if there.get(part.number) == part.header:
                            kept += 1
                            continue
                        self.store.remove("dataset.json")  # what it says is true no more
                        pool.submit(self._call(_Open(part)))
                for outcome in pool.wait():
                    done += self._take(outcome, pool)
                if time.monotonic() - told >= _EVERY:
                    told = time.monotonic()
                    self.say(f"{done} parts made, {kept} were there, {done / (told - began) * 60:.2g} a minute")
        if total == 0:
            raise UserError(f"nothing to do: {self.stage.name} found no input at all")
        self.say(f"{total} parts, {kept} of them were there already")
        made = {"stage": self.stage.name, **self.stage.header(), "weights": self.stage.weights() or None}
        header: dict[str, Any] = {"recipe": self.stage.recipe, "prior": made}
        return publish_tables(self.store, range(total), header)

    def _call(self, opened: _Open, item: int | None = None) -> Call:
        part = opened.part
        arguments: dict[str, Any] = {**self.common, "part": asdict(part), "lost": opened.lost}
        if item is not None:  # alone, to see whether it is the one that kills workers
            arguments |= {"part": asdict(Part(part.number, [part.items[item]], part.header)), "publish": False}
        limit = _START + _ITEM * len(part.items)
        return Call((opened, item), f"{_WORKER}:make", arguments, limit, attempts=0 if item is None else 1)

    def _take(self, outcome: Outcome, pool: Pool) -> int:
        """1 if a part is published now. A part that kills its worker is looked through item by item."""
        opened, item = outcome.call.tag
        outcome.stop_if_unavailable()
        killed = outcome.error in ("crashed", "timeout")
        if outcome.error is not None and not killed:
            raise UserError(
                f"part {opened.part.number}: {outcome.message}; what is published stays, the same command goes on from here",
                exit_code=outcome.details.get("code", 1),
            )
        if item is None:
            if not killed:
                return 1
            if opened.lost:
                raise UserError(f"part {opened.part.number} kills its worker: {outcome.message}", exit_code=1)
            opened.asked = len(opened.part.items)
            for number in range(opened.asked):
                pool.submit(self._call(opened, number), first=True)
            return 0
        opened.asked -= 1
        if killed:
            opened.lost[opened.part.items[item]["key"]] = f"{outcome.error}: {outcome.message}"
        if opened.asked == 0:
            if not opened.lost:
                raise UserError(
                    f"part {opened.part.number} kills its worker, none of its items alone does", exit_code=1
                )
            pool.submit(self._call(opened), first=True)
        return 0

"""`javisc encode`: what the frozen networks give, computed once and stored in shards that every stage trains from.

A pass is an epoch of the recipe, row for row as training on the clips would draw it: bucket, window, posterior and, for the
prior, negatives. So a row trained from the store is the row trained from the clips, and several passes store several draws.

A part is a stretch of a pass's batches: it becomes a shard, published whole, and is what a resumed run skips.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import nn

from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.engine import EngineOptions, check_engine
from javisc.compiler.run.parts import ITEMS, Wanted, publish
from javisc.compiler.run.spread import Job, Resources
from javisc.compiler.run.stopping import stoppable
from javisc.compiler.store.commits import BUILD, Parts
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.compiler.store.present import intact, refuse_strangers
from javisc.compiler.store.tables import Merged, publish_tables
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset, absolute, scan_many
from javisc.manifests.schema import REJECTED_SCHEMA
from javisc.trainer.data.sources.clips import ClipSource
from javisc.trainer.data.sources.encoded import is_encoded
from javisc.trainer.engine.config import as_dict, differences
from javisc.trainer.tasks.prior import PriorTask
from javisc.trainer.tasks.registry import load, stored
from javisc.trainer.use.devices import TORCH, devices_of
from javisc.trainer.use.encode_part import Part, RecipeClips, everywhere, make, stand

#: What was asked for, in the dataset's working folder: a resumed run must ask for the same.
PLAN = "encode.json"
#: And beside it, of the first run: threads of a process.
THREADS, MOST_THREADS = "threads", 4096
#: Settings that change what is stored.
_SHAPING = ("task", "seed", "data", "encoders", "negatives", "pools")
_NOT_SHAPING = ("latents", "threads", "ahead", "decoder", "shards_together")


@dataclass(frozen=True)
class EncodeOptions:
    """`passes` over the clips, each with draws of its own; `batches` in a shard; `workers` processes, 0 one for each GPU, or on a
    cluster as many as fit. engine, address: see compiler.run.engine."""

    passes: int = 1
    batches: int = 64
    workers: int = 0
    engine: str = "local"
    address: str | None = None


def encode(
    recipe: str, overrides: list[str], out: str, options: EncodeOptions, say: Callable[[str], None] = lambda line: None
) -> int:
    """Encode the recipe's clips (`data.paths`) into the dataset `out` and return its rows. Run again after a kill, it goes on.

    Raises UserError: no clips, `out` was begun with other settings, networks are missing.
    """
    check_engine(options.engine, EngineOptions(address=options.address))
    with tempfile.TemporaryDirectory(prefix="javisc-encode-") as folder, stoppable():
        store = Store(out, Path(folder) / "uploads")
        with locked(store):
            work = Work(recipe, overrides, options)
            plan = work.plan()
            threads: Any = None
            if store.exists(BUILD, PLAN):
                begun = json.loads(store.read(BUILD, PLAN))
                threads = begun.pop(THREADS, None)
                if changed := differences(begun, plan):
                    raise UserError(
                        f"{out} was begun with other settings ({changed[0]}): set them back, or give another --out"
                    )
            elif store.exists("dataset.json"):
                raise UserError(f"{out} is a dataset of another kind: give another --out")
            else:
                refuse_strangers(store)
            parts = work.parts()
            done = intact(store)
            left = [part for part in parts if part.number not in done]
            workers = work.workers(len(left))
            threads = work.threads(workers, threads)
            store.write(json.dumps({**plan, THREADS: threads}, indent=1, sort_keys=True).encode(), BUILD, PLAN)
            say(f"{len(parts)} shards, {len(left)} to make")
            for number in work.made(left, store, folder, workers, threads):
                say(f"shard {number}")
            merged = work.merge(store, parts, plan)
            for reason, count in sorted(merged.rejected.items()):
                say(f"{count} clips refused: {reason}, see {out}/rejected.parquet")
            return merged.samples


class Work(RecipeClips):
    """The driver's side: what there is to do, and the tables when it is done."""

    def __init__(self, recipe: str, overrides: list[str], options: EncodeOptions) -> None:
        loaded, task = load(recipe, overrides)
        self.options = options
        if loaded.task not in ("prior", "audio", "jav"):
            raise UserError(
                f"recipe {recipe}: task {loaded.task} learns from clips themselves; encode for prior, audio or jav"
            )
        if options.passes < 1 or options.batches < 1:
            raise UserError("--passes and --batches are at least 1")
        super().__init__(loaded, task)
        if is_encoded(self.data.paths):
            raise UserError(f"{', '.join(self.data.paths)}: encoded already; give the dataset of clips")
        self.devices = devices_of("auto", options.workers or None, engine=options.engine, address=options.address)
        self.bytes = 0

    def plan(self) -> dict[str, Any]:
        """Everything that decides the bytes: settings, datasets, and the networks' own digests."""
        settings = {name: value for name, value in as_dict(self.recipe).items() if name in _SHAPING}
        settings["data"] = {name: value for name, value in settings["data"].items() if name not in _NOT_SHAPING}
        if isinstance(self.task, PriorTask):
            settings["pools"]["digest"] = self.task.pools().fingerprint()
        # Of a task of its own, which goes: the processes that make parts load theirs.
        encoders = stored(as_dict(self.recipe), "javisc encode")[1].encoders(torch.device("cpu"))  # type: ignore[attr-defined]
        networks = self._networks(encoders)
        self.bytes = sum(x.nbytes for module in networks.values() for x in module.state_dict().values())
        plan = {
            **settings,
            "caption_length": encoders.caption_length,
            "passes": self.options.passes,
            "batches": self.options.batches,
            "sources": {str(path): Dataset.open(path).header.get("digest") for path in self.data.paths},
            "networks": {name: weights_digest(module) for name, module in networks.items()},
        }
        plain: dict[str, Any] = json.loads(json.dumps(plan))  # as it will be read again: without tuples
        return plain

    def _networks(self, e: Any) -> dict[str, nn.Module]:
        prior = self.recipe.task == "prior" or self.task.config.has_prior
        found = {"audio_vae": e.audio.vae}
        if self.recipe.task != "audio":
            found["video_vae"] = e.video if isinstance(e.video, nn.Module) else e.video.vae
        if self.recipe.task != "prior":
            found["t5"] = e.text.model
        return {**found, **({"imagebind": e.prior_text.tower} if prior else {})}

    def parts(self) -> list[Part]:
        """The parts in order: a function of the datasets and the settings alone."""
        out: list[Part] = []
        for split, train in self.splits():
            source = self.source(split, train)
            for turn in range(self.options.passes if train else 1):
                out += self.stretches(source, Part(len(out), split, train, turn, 0, 0, 0))
            source.close()
        return out

    def splits(self) -> list[tuple[str | None, bool]]:
        """What is encoded: in every pass the split that is trained on (True), in the first the held-out one, too, if any."""
        _, frame = scan_many(self.data.paths)
        held = set(frame.select(pl.col("split").unique()).collect(engine="streaming")["split"].to_list())
        valid = self.data.valid_split
        return [(self.data.train_split, True), *([(valid, False)] if valid is not None and valid in held else [])]

    def stretches(self, source: ClipSource, begin: Part) -> list[Part]:
        """The parts of a pass over a split, numbered from `begin` on; the source stands at its first batch afterwards."""
        stand(source, begin.turn, 0)
        plan, _ = source.loader.sampler.plan()
        counts = (plan.stop - plan.start)[:, 0]
        bounds = [
            (at, min(at + self.options.batches, len(counts))) for at in range(0, len(counts), self.options.batches)
        ]
        return [
            replace(begin, number=begin.number + n, first=first, last=last, clips=int(counts[first:last].sum()))
            for n, (first, last) in enumerate(bounds)
        ]

    def workers(self, parts: int) -> int:
        """How many processes make so many parts, at most."""
        return max(1, min(self.devices.workers or len(self.devices.gpus) or parts, parts))

    def threads(self, workers: int, begun: Any = None) -> int:
        """Threads of a process. They have a say in the last bits of sums, so a run that goes on takes what it was `begun` with,
        however many processes it has then."""
        if begun in range(1, MOST_THREADS):
            return int(begun)
        if self.options.engine != "local":
            return 1
        return torch.get_num_threads() if workers == 1 else max(1, usable_cores() // workers)

    def made(
        self,
        parts: list[Part],
        store: Store,
        folder: str,
        workers: int,
        threads: int,
        only: Mapping[int, Sequence[int]] | None = None,
    ) -> Iterator[int]:
        """Have parts made, here or on a cluster; their numbers as they are published. Raises UserError.

        only: by part, the numbers of the clips that are wanted; None: all.
        """
        if not parts:
            return
        here = self.options.engine == "local"
        common = {
            "settings": everywhere(self.recipe),
            "out": absolute(store.root),
            "device": self.devices.torch,
            "threads": threads,
            "folder": folder if here else None,
        }
        needs = Resources(gpus=int(self.devices.kind == "cuda"), memory=TORCH + self.bytes)
        job = Job(f"{make.__module__}:{make.__name__}", needs, items=ITEMS)
        wanted = (
            Wanted(
                part.number, {**common, "part": asdict(part)}, range(part.clips) if only is None else only[part.number]
            )
            for part in parts
        )
        published = publish(
            job, wanted, workers=workers, devices=self.devices.gpus[:workers], engine=self.options.engine,
            address=self.options.address, smaller="--batches",
        )  # fmt: skip
        for part in published:
            yield part.number

    def merge(self, store: Store, parts: list[Part], plan: Mapping[str, Any]) -> Merged:
        """Publish the tables and, last, dataset.json."""
        done = Parts(store)
        numbers = [part.number for part in parts]
        held = [number for number in numbers if done.commits[number]["samples"]]
        if not held:
            raise UserError("no clip could be read: run `javisc verify` on the dataset")
        encoded = done.manifest(held).select(key="clip_key").unique()
        source = Dataset.open(self.data.paths[0]).header
        header = {
            "recipe": source.get("recipe"),
            "recipe_digest": source.get("recipe_digest"),
            "encoded": dict(plan),
            "tools": {"torch": torch.__version__},
        }
        return publish_tables(
            store,
            numbers,
            header,
            rejected=lambda found, folder: self._refused(found, encoded),
        )

    def _refused(self, unread: pl.LazyFrame, encoded: pl.LazyFrame) -> pl.LazyFrame:
        """The clips of the recipe's splits without a row: they could not be read in any pass, or no bucket took them."""
        splits = [self.data.train_split, self.data.valid_split]
        _, frame = scan_many(self.data.paths)
        clips = frame if None in splits else frame.filter(pl.col("split").is_in(splits))
        told = {"reason": pl.lit("filtered"), "message": pl.lit("no bucket of the recipe takes it")}
        columns = [told.get(name, pl.col(name)).cast(dtype).alias(name) for name, dtype in REJECTED_SCHEMA.items()]
        left = clips.join(encoded, on="key", how="anti").select(columns)
        # Of a clip that several passes could not read, the first says why.
        failed = unread.unique("key", keep="first", maintain_order=True).select(
            "key", pl.struct(REJECTED_SCHEMA.names()).alias("failed")
        )
        both = left.join(failed, on="key", how="left")
        said = [
            pl.when(pl.col("failed").is_not_null())
            .then(pl.col("failed").struct.field(name))
            .otherwise(name)
            .alias(name)
            for name in REJECTED_SCHEMA
        ]
        return both.select(said).sort("key")


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, types and bytes of a network's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

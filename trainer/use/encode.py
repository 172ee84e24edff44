"""`javisc encode`: what the frozen networks give, computed once and stored in shards that every stage trains from.

A pass is an epoch of the recipe, row for row as training on the clips would draw it: bucket, window, posterior and, for the
prior, negatives. So a row trained from the store is the row trained from the clips, and several passes store several draws.

A part is a stretch of a pass's batches: it becomes a shard, published whole, and is what a resumed run skips.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

from javisc.compiler.run.cores import usable_cores
from javisc.compiler.store.commits import BUILD, Parts
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.compiler.store.present import intact
from javisc.compiler.store.rows import rejected_row
from javisc.compiler.store.tables import publish_tables
from javisc.compiler.store.writer import commit_shard
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset, scan_many
from javisc.manifests.schema import LATENTS_SCHEMA, MANIFEST_SCHEMA, REJECTED_SCHEMA
from javisc.trainer.data.index.sampler import Batch
from javisc.trainer.data.sources.clips import Clips, ClipSource
from javisc.trainer.data.sources.encoded import is_encoded, pack
from javisc.trainer.engine.config import as_dict, differences
from javisc.trainer.models.encoders import Encoders
from javisc.trainer.tasks.latents import encode as latents
from javisc.trainer.tasks.prior import PriorTask
from javisc.trainer.tasks.registry import load

#: What was asked for, in the dataset's working folder: a resumed run must ask for the same.
PLAN = "encode.json"
#: Settings that change what is stored.
_SHAPING = ("task", "seed", "data", "encoders", "negatives", "pools")
_NOT_SHAPING = ("threads", "ahead", "decoder", "shards_together")


@dataclass(frozen=True)
class EncodeOptions:
    """`passes` over the clips, each with draws of its own; `batches` in a shard; `workers` processes, 0 one for each GPU."""

    passes: int = 1
    batches: int = 64
    workers: int = 0


@dataclass(frozen=True)
class Part:
    """Batches first … last − 1 of a pass over a split; `train` windows are drawn, the others are from the middle."""

    number: int
    split: str | None
    train: bool
    turn: int
    first: int
    last: int


def encode(
    recipe: str, overrides: list[str], out: str, options: EncodeOptions, say: Callable[[str], None] = lambda line: None
) -> int:
    """Encode the recipe's clips (`data.paths`) into the dataset `out` and return its rows. Run again after a kill, it goes on.

    Raises UserError: no clips, `out` was begun with other settings, networks are missing.
    """
    with tempfile.TemporaryDirectory(prefix="javisc-encode-") as folder:
        store = Store(out, Path(folder))
        with locked(store):
            work = _Work(recipe, overrides, store, options)
            plan = work.plan()
            if store.exists(BUILD, PLAN):
                if changed := differences(json.loads(store.read(BUILD, PLAN)), plan):
                    raise UserError(
                        f"{out} was begun with other settings ({changed[0]}): set them back, or give another --out"
                    )
            elif store.exists("dataset.json"):
                raise UserError(f"{out} is a dataset of another kind: give another --out")
            store.write(json.dumps(plan, indent=1, sort_keys=True).encode(), BUILD, PLAN)
            parts = work.parts()
            done = intact(store)
            left = [part for part in parts if part.number not in done]
            say(f"{len(parts)} shards, {len(left)} to make")
            workers = min(options.workers or max(1, torch.cuda.device_count()), max(1, len(left)))
            if workers > 1:
                _spread(workers, (recipe, overrides, out, options))
            else:
                for part in left:
                    work.make(part)
                    say(f"shard {part.number}")
            return work.merge(parts, plan)


def _spread(workers: int, arguments: tuple[str, list[str], str, EncodeOptions]) -> None:
    """Every process its share. Raises UserError if one fails: what the others published stays."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_worker, args=(index, workers, *arguments)) for index in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise UserError(f"{len(failed)} of {workers} processes failed, see above; the same command goes on from here")


def _worker(index: int, workers: int, recipe: str, overrides: list[str], out: str, options: EncodeOptions) -> None:
    """One process's share of the parts; on a GPU of its own where there are any."""
    torch.set_num_threads(max(1, usable_cores() // workers))
    with tempfile.TemporaryDirectory(prefix="javisc-encode-") as folder:
        store = Store(out, Path(folder))
        work = _Work(recipe, overrides, store, options, index)
        done = intact(store)
        for part in itertools.islice(work.parts(), index, None, workers):
            if part.number not in done:
                work.make(part)


class _Work:
    def __init__(
        self, recipe: str, overrides: list[str], store: Store, options: EncodeOptions, device: int = 0
    ) -> None:
        loaded, task = load(recipe, overrides)
        self.recipe, self.task, self.store, self.options = loaded, task, store, options
        if loaded.task not in ("prior", "audio", "jav"):
            raise UserError(
                f"recipe {recipe}: task {loaded.task} learns from clips themselves; encode for prior, audio or jav"
            )
        if options.passes < 1 or options.batches < 1:
            raise UserError("--passes and --batches are at least 1")
        self.data = loaded.data  # type: ignore[attr-defined]
        if is_encoded(self.data.paths):
            raise UserError(f"{', '.join(self.data.paths)}: encoded already; give the dataset of clips")
        gpus = torch.cuda.device_count()
        self.device = torch.device("cuda", device % gpus) if gpus else torch.device("cpu")
        self.encoders: Encoders = task.encoders(self.device)  # type: ignore[attr-defined]

    def plan(self) -> dict[str, Any]:
        """Everything that decides the bytes: settings, datasets, and the networks' own digests."""
        settings = {name: value for name, value in as_dict(self.recipe).items() if name in _SHAPING}
        settings["data"] = {name: value for name, value in settings["data"].items() if name not in _NOT_SHAPING}
        if isinstance(self.task, PriorTask):
            settings["pools"]["digest"] = self.task.pools().fingerprint()
        plan = {
            **settings,
            "caption_length": self.encoders.caption_length,
            "passes": self.options.passes,
            "batches": self.options.batches,
            "sources": {str(path): Dataset.open(path).header.get("digest") for path in self.data.paths},
            "networks": {name: weights_digest(module) for name, module in self._networks().items()},
        }
        plain: dict[str, Any] = json.loads(json.dumps(plan))  # as it will be read again: without tuples
        return plain

    def _networks(self) -> dict[str, nn.Module]:
        e: Any = self.encoders
        prior = self.recipe.task == "prior" or self.task.config.has_prior  # type: ignore[attr-defined]
        found = {"audio_vae": e.audio.vae}
        if self.recipe.task != "audio":
            found["video_vae"] = e.video if isinstance(e.video, nn.Module) else e.video.vae
        if self.recipe.task != "prior":
            found["t5"] = e.text.model
        return {**found, **({"imagebind": e.prior_text.tower} if prior else {})}

    def _source(self, split: str | None, train: bool) -> ClipSource:
        if isinstance(self.task, PriorTask):
            return self.task.clips(split, 0, 1, train=train)
        return ClipSource(self.data, split, seed=self.recipe.seed, train=train, with_video=self.recipe.task == "jav")

    def parts(self) -> list[Part]:
        """The parts in order: a function of the datasets and the settings alone."""
        out: list[Part] = []
        _, frame = scan_many(self.data.paths)
        held = set(frame.select(pl.col("split").unique()).collect(engine="streaming")["split"].to_list())
        for split, train in ((self.data.train_split, True), (self.data.valid_split, False)):
            if not train and (split is None or split not in held):
                continue
            source = self._source(split, train)
            for turn in range(self.options.passes if train else 1):
                _stand(source, turn, 0)
                steps = len(source)
                for first in range(0, steps, self.options.batches):
                    out.append(Part(len(out), split, train, turn, first, min(first + self.options.batches, steps)))
            source.close()
        return out

    def make(self, part: Part) -> None:
        """Encode a part and publish it: shard, index, tables, and last the commit."""
        source = self._source(part.split, part.train)
        rows, rejects, contents = [], [], {}
        scratch = self.store.scratch / f"part-{part.number}"
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            _stand(source, part.turn, part.first)
            wanted = list(itertools.islice(source.loader.sampler.upcoming(), part.last - part.first))
            names = source.catalog.strings["key"]
            known = self._manifest([str(names[clip.row]) for asked in wanted for clip in asked.clips])
            for asked, clips in zip(wanted, source, strict=False):
                lost = dict(clips.loaded.replaced)
                tensors = features(self.task, clips, self.device)
                for place, clip in enumerate(asked.clips):
                    found = known[str(names[clip.row])]
                    if clip.row in lost:  # another clip stands in for it, which has a row of its own
                        rejects.append(rejected_row(found, "corrupt", lost[clip.row]))
                        continue
                    row = _row(found, clips, asked, place, part)
                    rows.append(row)
                    contents[row["key"]] = scratch / f"{row['key']}.safetensors"
                    contents[row["key"]].write_bytes(pack({name: x[place] for name, x in tensors.items()}))
                if asked.step + 1 == part.last:
                    break
            samples = [(row, {"safetensors": contents[row["key"]]}) for row in rows]
            commit_shard(self.store, part.number, samples, rejects, schema=LATENTS_SCHEMA)
        finally:
            source.close()
            for path in contents.values():
                path.unlink(missing_ok=True)

    def _manifest(self, keys: list[str]) -> dict[str, dict[str, Any]]:
        """The clips' own rows."""
        _, frame = scan_many(self.data.paths)
        found = frame.filter(pl.col("key").is_in(keys)).collect(engine="streaming")
        if found["key"].is_duplicated().any():
            raise UserError(
                "several of the datasets hold the same clip: encode them one by one, or a view without duplicates"
            )
        return {str(row["key"]): row for row in found.iter_rows(named=True)}

    def merge(self, parts: list[Part], plan: Mapping[str, Any]) -> int:
        """Publish the tables and, last, dataset.json."""
        done = Parts(self.store)
        numbers = [part.number for part in parts]
        held = [number for number in numbers if done.commits[number]["samples"]]
        if not held:
            raise UserError("no clip could be read: run `javisc verify` on the dataset")
        encoded = set(done.manifest(held).select("clip_key").collect()["clip_key"].to_list())
        source = Dataset.open(self.data.paths[0]).header
        header = {
            "recipe": source.get("recipe"),
            "recipe_digest": source.get("recipe_digest"),
            "encoded": dict(plan),
            "tools": {"torch": torch.__version__},
        }
        return publish_tables(
            self.store,
            numbers,
            header,
            rejected=lambda found: self._refused(found.unique("key", maintain_order=True), encoded),
        ).samples

    def _refused(self, unread: pl.DataFrame, encoded: set[str]) -> pl.DataFrame:
        """The clips of the recipe's splits without a row: they could not be read in any pass, or no bucket took them."""
        splits = [self.data.train_split, self.data.valid_split]
        _, frame = scan_many(self.data.paths)
        clips = frame if None in splits else frame.filter(pl.col("split").is_in(splits))
        failed = {str(row["key"]): row for row in unread.iter_rows(named=True)}
        rows = [
            failed.get(row["key"]) or rejected_row(row, "filtered", "no bucket of the recipe takes it")
            for row in clips.collect(engine="streaming").iter_rows(named=True)
            if row["key"] not in encoded
        ]
        return pl.DataFrame(rows, schema=REJECTED_SCHEMA).sort("key")


def _stand(source: ClipSource, turn: int, step: int) -> None:
    """Put a source at a step of a pass."""
    sampler = source.loader.sampler
    sampler.epoch, sampler.history = turn, []
    if step:
        sampler.load_state_dict({**sampler.state_dict(), "segments": [[1, step]]})


def _row(found: Mapping[str, Any], clips: Clips, asked: Batch, place: int, part: Part) -> dict[str, Any]:
    """The manifest's row of a window."""
    clip = asked.clips[place]
    row = {name: found.get(name) for name in MANIFEST_SCHEMA}
    row |= {name: None for name in MANIFEST_SCHEMA if name.startswith(("mp4_", "flac_", "json_"))}
    return row | {
        "key": f"{found['key']}_p{part.turn}",
        "num_frames": clips.frames,
        "height": clips.height,
        "width": clips.width,
        "aspect_ratio": clips.height / clips.width,
        "resolution": clips.height * clips.width,
        "fps": clips.fps,
        "num_samples": clip.window.audio_count,
        "duration": clips.frames / clips.fps,
        "encoded_pass": part.turn,
        "clip_key": found["key"],
        "clip_first": clip.window.first,
        "clip_seed": clip.seed,
    }


@torch.no_grad()
def features(task: Any, clips: Clips, device: torch.device) -> dict[str, Tensor]:
    """What the task's networks make of a batch, by the names that training reads them by."""
    if isinstance(task, PriorTask):
        return task.stored(clips, device)
    made = latents(task.encoders(device), clips, prior_text=task.config.has_prior)
    named = {name: getattr(made, name) for name in ("audio", "video", "text", "mask", "prior_text")}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, types and bytes of a network's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""`javisc encode` in a worker process: a part of the clips becomes a shard of what the frozen networks make of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from javisc.compiler.run.parts import split as split_items
from javisc.compiler.store.files import Store
from javisc.compiler.store.rows import rejected_row
from javisc.compiler.store.writer import commit_shard
from javisc.manifests.errors import UserError
from javisc.manifests.io import absolute, scan_many
from javisc.manifests.schema import LATENTS_SCHEMA, MANIFEST_SCHEMA
from javisc.trainer.data.index.sampler import Batch
from javisc.trainer.data.sources.clips import Clips, ClipSource
from javisc.trainer.data.sources.encoded import pack
from javisc.trainer.engine.config import Recipe, as_dict
from javisc.trainer.models.encoders import EncodersConfig
from javisc.trainer.tasks.latents import encode as latents
from javisc.trainer.tasks.prior import PriorTask
from javisc.trainer.tasks.registry import stored

#: Settings of the networks that are no places.
_NO_PLACE = ("precision",)


@dataclass(frozen=True)
class Part:
    """Batches first … last − 1 of a pass over a split: `clips` of them. `train` windows are drawn, others from the middle."""

    number: int
    split: str | None
    train: bool
    turn: int
    first: int
    last: int
    clips: int


class RecipeClips:
    """The clips that a recipe trains on."""

    def __init__(self, recipe: Recipe, task: Any) -> None:
        self.recipe, self.task = recipe, task
        self.data = recipe.data  # type: ignore[attr-defined]

    def source(self, split: str | None, train: bool) -> ClipSource:
        """Batches as training on the clips would draw them."""
        if isinstance(self.task, PriorTask):
            return self.task.clips(split, 0, 1, train=train)
        return ClipSource(self.data, split, seed=self.recipe.seed, train=train, with_video=self.recipe.task == "jav")

    def rows(self, keys: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The clips' own rows of their manifest, by key. Raises UserError if a key is not one clip's alone."""
        _, frame = scan_many(self.data.paths)
        found = frame.filter(pl.col("key").is_in(keys)).collect(engine="streaming")
        if found["key"].is_duplicated().any():
            raise UserError(
                "several of the datasets hold the same clip: encode them one by one, or a view without duplicates"
            )
        return {str(row["key"]): row for row in found.iter_rows(named=True)}


def networks_places() -> list[str]:
    """The settings `encoders.*` that say where networks lie."""
    return [field.name for field in fields(EncodersConfig) if field.type == "str" and field.name not in _NO_PLACE]


def everywhere(recipe: Recipe) -> dict[str, Any]:
    """A recipe's settings as another process, or another machine that sees the same places, takes them: no path is relative."""
    settings: dict[str, Any] = json.loads(json.dumps(as_dict(recipe)))
    settings["data"]["paths"] = [absolute(path) for path in settings["data"]["paths"]]
    for section, names in (("encoders", networks_places()), ("pools", list(settings.get("pools", {})))):
        for name in names:
            if place := settings[section][name]:
                settings[section][name] = absolute(place)
    return settings


def stand(source: ClipSource, turn: int, step: int) -> None:
    """Put a source at a step of a pass."""
    sampler = source.loader.sampler
    sampler.epoch, sampler.history = turn, []
    if step:
        sampler.load_state_dict({**sampler.state_dict(), "segments": [[1, step]]})


def make(
    settings: dict[str, Any],
    out: str,
    part: dict[str, Any],
    items: Sequence[tuple[int, int]],
    whole: int,
    lost: Sequence[tuple[int, str, str]],
    device: str,
    threads: int,
    folder: str | None = None,
) -> bool:
    """Encode a part and publish it: shard, index, tables, and last the commit. See `parts.publish`; items are the numbers
    of those of its clips that are wanted.

    settings: the recipe's. device: by torch's name. threads: torch's. folder: for what is temporary. Raises UserError.
    """
    clips = _loaded(settings, threads)
    chosen, gone = split_items(items, lost)
    numbers = dict(items)
    left = {numbers[place]: how for place, how in gone.items()}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        try:
            samples, rejects = _encoded(
                clips, Part(**part), set(chosen.values()), left, torch.device(device), Path(scratch)
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{device} has too little memory for a batch: make data.buckets' batches smaller, with another --out"
            ) from error
        if published := len(items) == whole:
            store = Store(out, Path(scratch) / "uploads")
            commit_shard(store, part["number"], samples, rejects, schema=LATENTS_SCHEMA)
    return published


def _encoded(
    clips: RecipeClips,
    part: Part,
    chosen: set[int],
    gone: Mapping[int, tuple[str, str]],
    device: torch.device,
    scratch: Path,
) -> tuple[list[tuple[dict[str, Any], dict[str, Path]]], list[dict[str, Any]]]:
    """Samples (manifest row, members) of the `chosen` of a part's clips, and rows of those that cannot be read or are `gone`."""
    source = clips.source(part.split, part.train)
    source.loader.away_ends = True
    samples, rejects = [], []
    try:
        stand(source, part.turn, part.first)
        names = source.catalog.strings["key"]
        whole = list(islice(source.loader.sampler.upcoming(), part.last - part.first))
        known = clips.rows([str(names[clip.row]) for batch in whole for clip in batch.clips])
        rejects = [
            rejected_row(known[str(names[clip.row])], *gone[place])
            for place, clip in enumerate(clip for batch in whole for clip in batch.clips)
            if place in gone
        ]
        wanted = _only(whole, chosen)
        for asked, batch in zip(wanted, source.taking(wanted), strict=True):
            unread = dict(batch.loaded.replaced)
            tensors = features(clips.task, batch, device)
            for place, clip in enumerate(asked.clips):
                found = known[str(names[clip.row])]
                if clip.row in unread:  # another clip stands in for it, which has a row of its own
                    rejects.append(rejected_row(found, "corrupt", unread[clip.row]))
                    continue
                row = _row(found, batch, asked, place, part)
                member = scratch / f"{row['key']}.safetensors"
                member.write_bytes(pack({name: x[place] for name, x in tensors.items()}))
                samples.append((row, {"safetensors": member}))
    finally:
        source.close()
    return samples, rejects


def _only(batches: Sequence[Batch], chosen: set[int]) -> list[Batch]:
    """Batches with the clips of the chosen places alone, counted through all of them; those that are left with none go."""
    found, first = [], 0
    for batch in batches:
        clips = tuple(clip for place, clip in enumerate(batch.clips, first) if place in chosen)
        first += len(batch.clips)
        if clips:
            found.append(replace(batch, clips=clips))
    return found


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


_clips: tuple[dict[str, Any], RecipeClips] | None = None


def _loaded(settings: dict[str, Any], threads: int) -> RecipeClips:
    """The recipe's clips and its task, which keeps its networks from part to part."""
    global _clips
    if _clips is None or _clips[0] != settings:
        torch.set_num_threads(threads)
        _clips = settings, RecipeClips(*stored(settings, "javisc encode"))
    return _clips[1]

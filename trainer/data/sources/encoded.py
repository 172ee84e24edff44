"""Batches of what `javisc encode` made: latents and text states of windows, as the frozen networks gave them.

A row is a window of a clip, with whatever a recipe's task reads. Rows of one pass are an epoch; later epochs go round the passes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import polars as pl
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.data.bytes.loader import Loader, LoaderOptions, Room
from javisc.trainer.data.bytes.reader import CorruptSample
from javisc.trainer.data.index import draws
from javisc.trainer.data.index.assign import Bucket, BucketTable
from javisc.trainer.data.index.catalog import Catalog, split_of
from javisc.trainer.data.index.latents import LatentCatalog
from javisc.trainer.data.index.sampler import Batch, Clip, Sampler, SamplerOptions
from javisc.trainer.data.sources.clips import ClipData, full_steps
from javisc.trainer.data.sources.loading import LoaderSource

Made = TypeVar("Made")


@dataclass(frozen=True)
class Encoded:
    """A batch: tensors by name [B, …], names, this epoch's seeds, and the windows' size. `drawn_from` are the seeds that the
    stored draws were made from."""

    tensors: dict[str, Tensor]
    keys: list[str]
    seeds: list[int]
    drawn_from: list[int]
    frames: int
    height: int
    width: int
    fps: float


def is_encoded(paths: Sequence[str | os.PathLike[str]]) -> bool:
    """True if the datasets hold latents. Raises UserError if some do and some do not."""
    found = {bool("safetensors_offset" in Dataset.open(path).manifest().collect_schema()) for path in paths}
    if len(found) > 1:
        raise UserError("data.paths: some datasets hold latents and some hold clips; train on one kind at a time")
    return found == {True}


def stores_latents(data: ClipData) -> bool:
    """True if training reads latents: of a field (`data.latents`), or of datasets that hold nothing else. Raises UserError."""
    return bool(data.latents) or is_encoded(data.paths)


def pack(row: Mapping[str, Tensor]) -> bytes:
    """Tensors as a KEY.safetensors: the same bytes for the same tensors. Of `text` [1, L, C] only what its `mask` [L] keeps."""
    kept = {name: tensor.detach().cpu() for name, tensor in row.items()}
    if "mask" in kept:
        kept["text"] = kept["text"][:, : int(kept["mask"].sum())]
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in kept.items()})


def unpack(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a KEY.safetensors. Raises CorruptSample."""
    try:
        tensors = safetensors.torch.load(content)
        if "mask" in tensors:
            missing = len(tensors["mask"]) - tensors["text"].shape[1]
            tensors["text"] = torch.nn.functional.pad(tensors["text"], (0, 0, 0, missing))
        return tensors
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CorruptSample(f"{where}: no safetensors ({error})") from error


def tensors_of(content: bytes, row: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a manifest row's latents. Raises CorruptSample."""
    return unpack(content, str(row["key"]))


class _Sizes(BucketTable):
    """The windows' own sizes, with the recipe's batch sizes."""

    def __init__(self, recipe: BucketTable, catalog: Catalog) -> None:
        numbers, known = catalog.numbers, {(b.frames, b.height, b.width): b for b in recipe.buckets}
        sizes, self.of_row = np.unique(
            np.stack([numbers[name] for name in ("num_frames", "height", "width")], axis=1), axis=0, return_inverse=True
        )
        self.buckets: list[Bucket] = []
        for frames, height, width in sizes.tolist():
            if (frames, height, width) not in known:
                raise UserError(
                    f"the dataset was encoded with windows of {frames} frames of {height}x{width}, which data.buckets does not "
                    "name: train with the buckets it was encoded with"
                )
            self.buckets.append(known[frames, height, width])
        self.passes = numbers["encoded_pass"]

    def assign(
        self,
        numbers: Mapping[str, NDArray[np.int64]],
        fits: Callable[[int], NDArray[np.bool_]],
        *,
        seed: int,
        epoch: int,
    ) -> NDArray[np.int32]:
        """A bucket number per row of the epoch's pass, -1 for the others."""
        current = epoch % (int(self.passes.max()) + 1)
        return np.where(self.passes == current, self.of_row.reshape(-1), -1).astype(np.int32)


class _Reading(Loader):
    """The loader's threads, order and replacements, for members that need no decoding."""

    def _bytes(self, batch: Batch, clip: Clip) -> dict[str, bytes]:
        url, members, digest = self.catalog.place(clip.row, ["safetensors"])
        data = self.reader.read(url, members, digest)
        if "safetensors" not in data:
            raise CorruptSample(f"{url}: the sample has no .safetensors")
        return data

    def _made(self, batch: Batch, clip: Clip, room: Room | None, at: int, read: Future[dict[str, bytes]] | None) -> Any:
        data = self._bytes(batch, clip) if read is None else read.result()
        return unpack(data["safetensors"], self.catalog.place(clip.row, ())[0])

    def _substitute(self, batch: Batch, clip: Clip, attempt: int) -> Clip | None:
        """Another row of the same size, a function of the first one's seed; None if there is none."""
        table = self.sampler.table
        assert isinstance(table, _Sizes)
        rows = np.flatnonzero(table.of_row.reshape(-1) == table.of_row.reshape(-1)[clip.row])
        rows = rows[rows != clip.row]
        if not len(rows):
            return None
        chosen = rows[draws.integers(len(rows), clip.seed, "substitute", attempt)]
        return self.sampler.batch(batch.epoch, batch.step, batch.bucket, chosen).clips[0]


class EncodedSource(LoaderSource, Generic[Made]):
    """A source for the training loop, as `ClipSource` is one; `make` turns a batch into what the task takes.

    `needs`: names of tensors that every row must hold. Raises UserError: some do not, or windows have no bucket in the recipe.
    """

    def __init__(
        self,
        data: ClipData,
        split: str | None,
        make: Callable[[Encoded], Made],
        *,
        needs: Sequence[str],
        seed: int,
        rank: int = 0,
        world: int = 1,
        train: bool = True,
    ) -> None:
        where = {"stored latents": pl.col("safetensors_size") > 0}
        where |= {} if train else {"the first pass": pl.col("encoded_pass") == 0}
        chosen = split_of(split, train, rank)
        if data.latents:
            self.catalog: Catalog = LatentCatalog.of_fields(data.paths, data.latents, where, split=chosen)
        else:
            self.catalog = Catalog.open(data.paths, where, split=chosen)
        self.make, self.needs, self.paths = make, needs, data.paths
        options = SamplerOptions(
            seed=seed,
            shards_together=data.shards_together,
            tail="drop" if train else "split",
            renditions=False,
        )
        sampler = Sampler(self.catalog, _Sizes(data.table(), self.catalog), options, rank=rank, world=world)
        self.train, self._full = train, full_steps(sampler, split)
        self.loader = _Reading(
            sampler,
            LoaderOptions(threads=data.threads, ahead=data.ahead, ready=data.ready, reader=data.reader.options()),
            transform=lambda *_: None,
        )

    def __iter__(self) -> Iterator[Made]:
        """The rest of the epoch."""
        for loaded in self.loader:
            if not (self.train or self._full[loaded.batch.step]):
                continue
            if missing := [name for name in self.needs if any(name not in item for item in loaded.items)]:
                raise UserError(
                    f"{', '.join(self.paths)}: the dataset holds no {missing[0]!r}: encode it with this task's recipe"
                )
            bucket, rows = loaded.batch.bucket, [clip.row for clip in loaded.batch.clips]
            yield self.make(
                Encoded(
                    {name: torch.stack([item[name] for item in loaded.items]) for name in loaded.items[0]},
                    [str(label["key"]) for label in loaded.labels],
                    [clip.seed for clip in loaded.batch.clips],
                    self.catalog.numbers["clip_seed"][rows].tolist(),
                    bucket.frames,
                    bucket.height,
                    bucket.width,
                    float(self.catalog.reals["fps"][rows[0]]),
                )
            )

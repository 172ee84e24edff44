"""JavisDiT's own bucketing and batch order, draw for draw: what its runs saw, for who must repeat or compare them.

New trainings compose batches by `assign` and `compose` instead, whose draws do not depend on the order of rows and whose resume
is exact. Seeds, generators and the order of draws here are the reference's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from javisc.manifests.errors import UserError
from javisc.trainer.data.index.aspects import aspect_table
from javisc.trainer.data.index.assign import Length, Resolution

#: {resolution: {frames: (probability or (of the resolution, of the length), batch size)}}
BucketConfig = Mapping[str, Mapping[int | str, Sequence[object]]]


_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Assigned:
    """A clip's bucket: resolution, frames and ratio key, and what it stands for."""

    resolution: str
    frames: int
    ratio: str
    height: int
    width: int
    batch_size: int


@dataclass(frozen=True)
class _Entry:
    number: int
    frames: int
    batch_size: int
    keep: float
    keep_length: float | None


class ReferenceBuckets:
    """The reference's bucket table: `assign` for one clip, `batches` for an epoch."""

    def __init__(self, config: BucketConfig) -> None:
        self._tables = {name: aspect_table(name) for name in config}
        self._entries: dict[str, list[_Entry]] = {}
        number = 0
        for name in sorted(config, key=lambda name: self._tables[name].pixels, reverse=True):
            rows = {int(frames): value for frames, value in config[name].items()}
            self._entries[name] = []
            for frames in sorted(rows, reverse=True):
                probability, batch_size = rows[frames]
                keep, length = probability if isinstance(probability, list | tuple) else (probability, None)
                entry = _Entry(
                    number, frames, int(str(batch_size)), float(str(keep)), None if length is None else float(length)
                )
                self._entries[name].append(entry)
                number += 1

    @property
    def count(self) -> int:
        """Buckets: (resolution, frames, ratio) triples."""
        return sum(len(rows) * len(self._tables[name].sizes) for name, rows in self._entries.items())

    def resolutions(self) -> list[Resolution]:
        """The same table for `assign.BucketTable`."""
        return [
            Resolution(
                name,
                self._tables[name].pixels,
                self._tables[name].sizes,
                tuple(
                    Length(e.frames, e.batch_size, e.keep, 1.0 if e.keep_length is None else e.keep_length)
                    for e in entries
                ),
            )
            for name, entries in self._entries.items()
        ]

    def assign(self, frames: int, height: int, width: int, interval: int, seed: int) -> Assigned | None:
        """The bucket of one clip, or None if none takes it; `seed` = global seed + epoch + row · count."""
        for name, entries in self._entries.items():
            table = self._tables[name]
            if height * width < 0.8 * table.pixels:
                continue
            entry = self._accepting(entries, frames, interval, seed)
            if entry is not None:
                ratio = table.closest(height, width)
                return Assigned(name, entry.frames, ratio, *table.sizes[ratio], entry.batch_size)
        return None

    @staticmethod
    def _accepting(entries: list[_Entry], frames: int, interval: int, seed: int) -> _Entry | None:
        """The entry of one resolution that takes the clip. The coins of an entry come from one generator, length first."""
        for entry in entries:
            if (frames == 1) != (entry.frames == 1):
                continue
            rng = np.random.default_rng(seed + entry.number)
            if entry.frames > 1:
                if entry.keep_length is not None and rng.random() > entry.keep_length:
                    continue
                if frames < entry.frames * interval:
                    continue
            if entry.keep >= 1 or rng.random() < entry.keep:
                return entry
            return None
        return None


def epoch_batches(
    rows: Sequence[tuple[int, int, int]],
    buckets: ReferenceBuckets,
    *,
    seed: int,
    epoch: int,
    world_size: int,
    shuffle: bool = True,
    drop_last: bool = True,
    last_micro_batch_access_index: int = 0,
    interval: int = 1,
) -> list[list[list[str]]]:
    """Every rank's batches of an epoch, items as "row-frames-height-width"; rows are (frames, height, width).

    `last_micro_batch_access_index` skips what a resumed epoch had done. Remainders are dropped or, without `drop_last`, filled:
    a bucket's from its own beginning; the epoch's by further visits, which find their bucket used up and give empty batches.
    """
    if world_size < 1:
        raise UserError(f"world_size is {world_size}; it must be at least 1")
    members: dict[Assigned, list[int]] = {}
    for row, (frames, height, width) in enumerate(rows):
        bucket = buckets.assign(frames, height, width, interval, seed + epoch + row * buckets.count)
        if bucket is not None:
            members.setdefault(bucket, []).append(row)
    generator = torch.Generator()
    generator.manual_seed(seed + epoch)
    visits: list[Assigned] = []
    for bucket, own in list(members.items()):
        rest = len(own) % bucket.batch_size
        if rest and drop_last:
            own = own[:-rest]
        elif rest:
            own = own + _wrapped(own, bucket.batch_size - rest)
        if shuffle:
            own = [own[i] for i in torch.randperm(len(own), generator=generator).tolist()]
        members[bucket] = own
        visits += [bucket] * (len(own) // bucket.batch_size)
    if shuffle:
        visits = [visits[i] for i in torch.randperm(len(visits), generator=generator).tolist()]
    rest = len(visits) % world_size
    if rest and drop_last:
        visits = visits[:-rest]
    elif rest:
        visits = visits + _wrapped(visits, world_size - rest)
    ranks: list[list[list[str]]] = [[] for _ in range(world_size)]
    skipped = last_micro_batch_access_index // world_size * world_size
    for number, batch in enumerate(_consume(visits, members)):
        if number >= skipped:
            ranks[number % world_size].append(batch)
    return ranks


def _wrapped(items: list[_Item], missing: int) -> list[_Item]:
    repeats = missing // len(items) + 1
    return (items * repeats)[:missing]


def _consume(visits: list[Assigned], members: Mapping[Assigned, list[int]]) -> Iterator[list[str]]:
    taken = dict.fromkeys(members, 0)
    for bucket in visits:
        own, start = members[bucket], taken[bucket]
        taken[bucket] = start + bucket.batch_size
        shape = f"{bucket.frames}-{bucket.height}-{bucket.width}"
        yield [f"{row}-{shape}" for row in own[start : start + bucket.batch_size]]


def feature_bin_indices(bins: int, per_bin: int, world_size: int, rank: int, start_index: int = 0) -> list[int]:
    """Which pre-extracted batches a rank reads: a contiguous block of whole bins, never shuffled; left-over bins are unused."""
    share = bins // world_size * per_bin
    return list(range(rank * share + start_index, (rank + 1) * share))

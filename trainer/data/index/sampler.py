"""The sampler: from metadata alone, every batch of every epoch. Its position is the whole state of a loader.

A batch is a pure function of (manifests, options, seed, epoch, world size, rank, step): which clips, which window of each, how
it is mirrored and the seed of its augmentations. No worker, thread or generator state is involved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.trainer.data.index import draws
from javisc.trainer.data.index.assign import Bucket, BucketTable
from javisc.trainer.data.index.catalog import Catalog
from javisc.trainer.data.index.compose import (
    MicroBatches,
    Remainder,
    Segment,
    Steps,
    Tail,
    micro_batches,
    replay,
    shard_windows,
)
from javisc.trainer.data.index.windows import RandomWindow, Window, WindowPolicy


def pixel_cost(bucket: Bucket) -> float:
    """Predicted time of one sample, up to a factor: its pixels. Models bring their own from token counts."""
    return float(bucket.frames * bucket.height * bucket.width)


@dataclass(frozen=True)
class SamplerOptions:
    """What shapes an epoch.

    `stride`: source frames per taken frame. `mirror`: share of clips flipped left to right. `renditions`: pictures come from the
    smallest rendition that loses nothing at the bucket's size. `remainder`: what becomes of a
    bucket's rows that do not fill a micro-batch; `tail`: of micro-batches that do not fill a step.
    `shards_together` > 0 reads so many shards at a time, each once an epoch, for slow disks and whole-shard caches: less
    mixing for less seeking; 0 mixes the whole dataset.
    """

    seed: int = 42
    stride: int = 1
    mirror: float = 0.0
    renditions: bool = True
    remainder: Remainder = "keep"
    shards_together: int = 0
    tail: Tail = "split"
    windows: WindowPolicy = field(default_factory=RandomWindow)
    cost: Callable[[Bucket], float] = pixel_cost


@dataclass(frozen=True)
class Clip:
    """One sample of a batch: its catalog row, its window, and what was decided for it."""

    row: int
    window: Window
    mirror: bool
    seed: int


@dataclass(frozen=True)
class Batch:
    """One rank's micro-batch of one step; `clips` is empty only in a split tail with fewer rows than ranks. `rows` says how many
    clips every rank has in the step: the plan is everybody's."""

    epoch: int
    step: int
    bucket: Bucket
    clips: tuple[Clip, ...]
    rows: tuple[int, ...] = ()


class Sampler:
    """The batches of one rank, from where its state stands.

        sampler = Sampler(catalog, table, SamplerOptions(seed=1), rank=0, world=8)
        for batch in sampler:      # one epoch; the next loop is the next epoch
            ...

    `state_dict()` after k batches, loaded into any sampler over the same catalog and options, continues with batch k + 1; at a
    step boundary the world size may be another.
    """

    def __init__(
        self,
        catalog: Catalog,
        table: BucketTable,
        options: SamplerOptions | None = None,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}: ranks count from 0 to world size - 1")
        self.catalog = catalog
        self.table = table
        self.options = options or SamplerOptions()
        self.rank = rank
        self.world = world
        self.epoch = 0
        self.history: list[Segment] = []
        self.fingerprint = catalog.fingerprint()
        self._planned: tuple[tuple[int, int], MicroBatches] | None = None
        self._grouped: tuple[tuple[int, tuple[Segment, ...]], Steps] | None = None

    def _batches(self, epoch: int) -> MicroBatches:
        key = (self.options.seed, epoch)
        if self._planned is None or self._planned[0] != key:
            policy, stride = self.options.windows, self.options.stride
            buckets = self.table.assign(
                self.catalog.numbers,
                lambda frames: policy.feasible(self.catalog.numbers, frames, stride),
                seed=self.options.seed,
                epoch=epoch,
            )
            made = micro_batches(
                buckets,
                [bucket.batch_size for bucket in self.table.buckets],
                [self.options.cost(bucket) for bucket in self.table.buckets],
                seed=self.options.seed,
                epoch=epoch,
                remainder=self.options.remainder,
                window_of_row=self._shard_windows(epoch),
            )
            if len(made) == 0:
                raise UserError(
                    f"no clip of {len(self.catalog)} fits any bucket: the shortest wants "
                    f"{min(bucket.frames for bucket in self.table.buckets)} frames; use shorter or smaller buckets"
                )
            self._planned = (key, made)
        return self._planned[1]

    def _shard_windows(self, epoch: int) -> NDArray[np.int32] | None:
        together = self.options.shards_together
        if together <= 0:
            return None
        shard = self.catalog.dataset.astype(np.int64) << 32 | self.catalog.numbers["shard"]
        return shard_windows(shard, together, seed=self.options.seed, epoch=epoch)

    def plan(self) -> tuple[Steps, int]:
        """The steps of the current segment of the current epoch, and how many have been taken."""
        # Only the last segment's count moves from step to step; what it was grouped from stays.
        current = self.history[-1].steps if self.history and self.history[-1].world == self.world else 0
        before = self.history[:-1] if current else self.history
        key = (self.epoch, tuple(before))
        if self._grouped is None or self._grouped[0] != key:
            batches = self._batches(self.epoch)
            steps, _ = replay(
                batches,
                [*before, Segment(self.world, 0)],
                self.world,
                seed=self.options.seed,
                epoch=self.epoch,
                tail=self.options.tail,
            )
            self._grouped = (key, replace(steps, pictures=self._pictures(batches)))
        return self._grouped[1], current

    def _pictures(self, batches: MicroBatches) -> dict[str, dict[str, int]]:
        """By bucket, how many rows' pictures are read from which rendition; nothing where none is looked for."""
        if not self.options.renditions:
            return {}
        counts = batches.stop - batches.start
        begin = np.repeat(batches.start - (np.cumsum(counts) - counts), counts)
        rows, buckets = batches.rows[begin + np.arange(len(begin))], np.repeat(batches.bucket, counts)
        found = {}
        for number, bucket in enumerate(self.table.buckets):
            mine = rows[buckets == number]
            if len(mine):
                found[bucket.name] = self.catalog.drawn_from(mine, bucket.height, bucket.width)
        return found

    def rows(self, first: int, last: int) -> NDArray[np.int64]:
        """The catalog's rows of this rank's steps first … last − 1 of the epoch, in the order of their batches."""
        steps, _ = self.plan()
        bounds = zip(steps.start[first:last, self.rank], steps.stop[first:last, self.rank], strict=True)
        every = self._batches(self.epoch).rows
        return np.concatenate([every[:0], *(every[start:stop] for start, stop in bounds)])

    def __len__(self) -> int:
        """Steps left in the epoch."""
        steps, taken = self.plan()
        return len(steps) - taken

    def __iter__(self) -> Iterator[Batch]:
        """Yield the rest of the epoch; the next loop is the next epoch. A batch counts as taken once it has been yielded."""
        for batch in self.upcoming():
            self.advance()
            yield batch

    def upcoming(self) -> Iterator[Batch]:
        """The rest of the epoch without moving the position: for loaders that prefetch and call `advance` themselves."""
        steps, taken = self.plan()
        batches = self._batches(self.epoch)
        epoch = self.epoch
        for step in range(taken, len(steps)):
            number = int(steps.index[step, self.rank])
            rows = batches.rows[int(steps.start[step, self.rank]) : int(steps.stop[step, self.rank])]
            every = tuple((steps.stop[step] - steps.start[step]).tolist())
            yield replace(self.batch(epoch, step, self.table.buckets[int(batches.bucket[number])], rows), rows=every)

    def batch(self, epoch: int, step: int, bucket: Bucket, rows: NDArray[np.int64]) -> Batch:
        """The batch of some rows in a bucket, with everything decided."""
        if len(rows) == 0:
            return Batch(epoch, step, bucket, ())
        words = (self.options.seed, epoch)
        windows = self.options.windows.windows(
            rows, self.catalog.numbers, self.catalog.reals, words, bucket.frames, self.options.stride
        )
        mirrored = draws.uniform(*words, "mirror", rows) < self.options.mirror
        seeds = draws.bits(*words, "augment", rows) >> np.uint64(1)
        return Batch(
            epoch,
            step,
            bucket,
            tuple(
                Clip(int(row), window, bool(mirror), int(seed))
                for row, window, mirror, seed in zip(rows, windows, mirrored, seeds, strict=True)
            ),
        )

    def advance(self) -> None:
        """Count one step as taken; after the last one, go to the next epoch."""
        steps, taken = self.plan()
        if taken + 1 >= len(steps):
            self.epoch, self.history = self.epoch + 1, []
        elif self.history and self.history[-1].world == self.world:
            self.history[-1] = Segment(self.world, taken + 1)
        else:
            self.history.append(Segment(self.world, taken + 1))

    def state_dict(self) -> dict[str, Any]:
        """A few integers: epoch, seed, and how many steps were taken with which world size."""
        return {
            "epoch": self.epoch,
            "seed": self.options.seed,
            "segments": [[segment.world, segment.steps] for segment in self.history],
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another sampler stood. Raises UserError if the dataset or the seed is another."""
        if state["fingerprint"] != self.fingerprint:
            raise UserError(
                "the checkpoint's sampler saw another dataset (or another filter): resume with the same manifests, "
                "or start a new run from its weights"
            )
        if state["seed"] != self.options.seed:
            raise UserError(
                f"the checkpoint's sampler has seed={state['seed']}, this run seed={self.options.seed}: set it back"
            )
        self.epoch = int(state["epoch"])
        self.history = [Segment(int(world), int(steps)) for world, steps in state["segments"]]

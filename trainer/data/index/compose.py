"""From bucketed rows to the steps of an epoch: micro-batches, then groups of one micro-batch per rank of nearly equal cost.

The micro-batches of an epoch do not depend on the number of ranks. A step of W ranks consumes W of them. What has been
consumed is told by a short history of (world size, steps) pairs, so a run may continue with another world size at any step
boundary: the history is replayed, the rest is grouped anew, and nothing is lost or repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from javisc.trainer.data.index import draws

Remainder = Literal["keep", "drop"]
Tail = Literal["split", "drop"]


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of an epoch, as slices of one array of rows.

    `rows[start[i]:stop[i]]` are the row numbers of micro-batch i, all in bucket `bucket[i]`; `cost[i]` is its predicted time
    in arbitrary units. `window[i]` is the stretch of the epoch it belongs to. `dropped` counts rows that remainders left unused.
    """

    rows: NDArray[np.int64]
    bucket: NDArray[np.int32]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    cost: NDArray[np.float64]
    window: NDArray[np.int32]
    dropped: int

    def __len__(self) -> int:
        return len(self.bucket)


def micro_batches(
    bucket_of_row: NDArray[np.int32],
    batch_size: Sequence[int],
    cost_of_sample: Sequence[float],
    *,
    seed: int,
    epoch: int,
    remainder: Remainder = "keep",
    window_of_row: NDArray[np.int32] | None = None,
) -> MicroBatches:
    """Permute every bucket's rows and cut them into micro-batches.

    `bucket_of_row` holds a bucket number per manifest row, -1 for rows unused this epoch; `batch_size` and `cost_of_sample`
    are per bucket. With `remainder="drop"` a bucket's last, smaller micro-batch is left out, as the reference does.
    `window_of_row` (from `shard_windows`) keeps rows of a window together; without it the whole epoch is one window.

    The permutation sorts by 64 bits drawn per (seed, epoch, row): equal for any number of processes, and adding rows does
    not change the relative order of the others.
    """
    used = np.flatnonzero(bucket_of_row >= 0)
    buckets = bucket_of_row[used]
    keys = draws.bits(seed, epoch, "permute", used)
    windows = np.zeros(len(used), np.int32) if window_of_row is None else window_of_row[used]
    order = np.lexsort((keys, buckets) if window_of_row is None else (keys, windows, buckets))
    rows = used[order].astype(np.int64)
    counts = np.bincount(buckets, minlength=len(batch_size))
    first = np.concatenate(([0], np.cumsum(counts)))
    bucket_parts, start_parts, stop_parts = [], [], []
    dropped = 0
    for number, (count, size) in enumerate(zip(counts, batch_size, strict=True)):
        whole, rest = divmod(int(count), size)
        if remainder == "drop":
            dropped += rest
        starts = first[number] + size * np.arange(whole + (remainder == "keep" and rest > 0), dtype=np.int64)
        bucket_parts.append(np.full(len(starts), number, dtype=np.int32))
        start_parts.append(starts)
        stop_parts.append(np.minimum(starts + size, first[number + 1]))
    bucket = np.concatenate(bucket_parts) if bucket_parts else np.zeros(0, np.int32)
    start = np.concatenate(start_parts) if start_parts else np.zeros(0, np.int64)
    stop = np.concatenate(stop_parts) if stop_parts else np.zeros(0, np.int64)
    cost = np.asarray(cost_of_sample, dtype=np.float64)[bucket] * (stop - start)
    # A micro-batch that straddles two windows comes with the later one, when all its rows are at hand.
    window = windows[order][stop - 1] if len(stop) else np.zeros(0, np.int32)
    return MicroBatches(rows, bucket, start, stop, cost, window, dropped)


def shard_windows(shard_of_row: NDArray[np.int64], together: int, *, seed: int, epoch: int) -> NDArray[np.int32]:
    """A window number per row, for disks and stores that dislike jumping: rows of `together` shards at a time, in random order.

    An epoch then reads each shard within one stretch, so a cache of two windows' shards fetches every shard once.
    """
    shards, inverse = np.unique(shard_of_row, return_inverse=True)
    place = np.empty(len(shards), np.int64)
    place[draws.order(len(shards), seed, epoch, "shards")] = np.arange(len(shards))
    return (place[inverse] // together).astype(np.int32)


@dataclass(frozen=True)
class Steps:
    """Steps of a run of ranks: `index[s, r]` is the micro-batch of rank r in step s, cut to [start, stop) of its rows.

    `imbalance` is the mean over steps of (slowest rank's cost / mean cost - 1): the share of time that ranks would wait.
    `pictures`: by bucket, how many rows' pictures come from which rendition of their dataset, "base" for their own.
    """

    index: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    imbalance: float
    dropped: int
    pictures: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def pictures_said(self) -> str:
        """`pictures` in words, over all buckets."""
        total: Counter[str] = Counter()
        for of in self.pictures.values():
            total.update(of)
        return ", ".join(f"{count} clips from {name}" for name, count in sorted(total.items()))


def group(
    batches: MicroBatches, unused: NDArray[np.int64], world: int, *, words: tuple[draws.Word, ...], tail: Tail = "split"
) -> Steps:
    """Group micro-batches `unused` into steps of `world` micro-batches of nearly equal cost, in a random order.

    Micro-batches are sorted by cost, equal costs in random order, and neighbours form a step: a step's ranks then see the same
    bucket wherever possible. Which rank gets which, and the order of the steps, is random. When the number is no multiple of
    `world`, the last group's largest micro-batches are cut in two until every rank has one (`tail="split"`; a rank may get
    an empty one only if the group has fewer rows than ranks), or left out (`tail="drop"`).
    """
    if world < 1:
        raise ValueError(f"world size {world}: a step has at least 1 rank")
    windows = batches.window[unused]
    parts: list[NDArray[np.int64]] = []
    odd = np.zeros(0, dtype=np.int64)
    for number in np.unique(windows):
        full, odd = _full_steps(batches, odd, unused[windows == number], world, (*words, int(number)))
        parts.append(full)
    index = np.concatenate([np.zeros((0, world), np.int64), *parts])
    last = len(parts[-1]) if parts else 0
    spare = len(odd)
    start, stop = batches.start[index], batches.stop[index]
    dropped = 0
    if spare and tail == "split":
        pieces = [(int(batches.start[i]), int(batches.stop[i]), int(i)) for i in odd]
        while len(pieces) < world:
            pieces.sort(key=lambda piece: (piece[0] - piece[1], piece))
            low, high, number = pieces.pop(0)
            middle = (low + high + 1) // 2
            pieces += [(low, middle, number), (middle, high, number)]
        row = np.asarray([[number for _, _, number in pieces]], dtype=np.int64)
        index = np.concatenate([index, row])
        last += 1
        start = np.concatenate([start, np.asarray([[low for low, _, _ in pieces]], dtype=np.int64)])
        stop = np.concatenate([stop, np.asarray([[high for _, high, _ in pieces]], dtype=np.int64)])
    elif spare:
        dropped = int((batches.stop[odd] - batches.start[odd]).sum())
    cost = batches.cost[index] * (stop - start) / np.maximum(batches.stop[index] - batches.start[index], 1)
    mean = cost.mean(axis=1) if len(cost) else np.zeros(0)
    imbalance = float(np.mean(cost.max(axis=1) / np.maximum(mean, 1e-300) - 1)) if len(cost) else 0.0
    sizes = [len(part) for part in parts[:-1]] + [last]
    begin = 0
    turns = [np.zeros(0, np.int64)]
    for number, size in enumerate(sizes):
        turns.append(begin + draws.order(size, *words, "steps", number))
        begin += size
    turn = np.concatenate(turns)
    seats = np.argsort(draws.bits(*words, "ranks", np.arange(index.size).reshape(index.shape)), axis=1, kind="stable")
    index, start, stop = (np.take_along_axis(a, seats, axis=1)[turn] for a in (index, start, stop))
    return Steps(index, start, stop, imbalance, dropped)


def _full_steps(
    batches: MicroBatches, old: NDArray[np.int64], new: NDArray[np.int64], world: int, words: tuple[draws.Word, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(steps, world) micro-batches of neighbouring cost, and the ones left over.

    Left over are the cheapest (a short last step then costs least), and new ones where possible, so that none waits for long.
    """
    shuffled = new[draws.order(len(new), *words, "ties")]
    ranked = shuffled[np.argsort(batches.cost[shuffled], kind="stable")]
    spare = (len(old) + len(new)) % world
    if spare > len(ranked):
        return np.zeros((0, world), np.int64), np.concatenate([old, ranked])
    pool = np.concatenate([old, ranked[spare:]])
    return pool[np.argsort(batches.cost[pool], kind="stable")].reshape(-1, world), ranked[:spare]


@dataclass(frozen=True)
class Segment:
    """`steps` steps were taken by `world` ranks."""

    world: int
    steps: int


def replay(
    batches: MicroBatches, history: Sequence[Segment], world: int, *, seed: int, epoch: int, tail: Tail = "split"
) -> tuple[Steps, int]:
    """Return the steps of the current segment for `world` ranks, and how many of them the history has already taken.

    A segment that had its own world size consumed the first `steps` steps of its own grouping; the next segment groups what
    was left. Continuing with the world size of the last segment continues that very grouping.

    Raises ValueError if the history claims more steps than there were, or if a tail step that was cut for another world
    size is only partly taken (a step is taken whole, so this cannot arise from a run).
    """
    unused = np.arange(len(batches), dtype=np.int64)
    segments = [*history]
    if not segments or segments[-1].world != world:
        segments.append(Segment(world, 0))
    for number, segment in enumerate(segments):
        steps = group(batches, unused, segment.world, words=(seed, epoch, "group", number), tail=tail)
        if segment.steps > len(steps):
            raise ValueError(
                f"the sampler's state tells of {segment.steps} steps in epoch {epoch}, which has {len(steps)}"
            )
        if number == len(segments) - 1:
            return steps, segment.steps
        unused = np.setdiff1d(unused, steps.index[: segment.steps])
    raise AssertionError("the last segment returns")

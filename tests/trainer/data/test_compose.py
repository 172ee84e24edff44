"""The algebra of an epoch: every row once, whatever the ranks, wherever it is interrupted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.trainer.data.index import draws
from javisc.trainer.data.index.compose import MicroBatches, Segment, Steps, group, micro_batches, replay, shard_windows

SIZES = (4, 3, 1)
COSTS = (1.0, 2.5, 9.0)


def epoch_of(buckets: list[int], seed: int = 1, epoch: int = 0) -> MicroBatches:
    return micro_batches(np.asarray(buckets, dtype=np.int32), SIZES, COSTS, seed=seed, epoch=epoch)


def rows_of(batches: MicroBatches, steps: Steps, first: int, last: int) -> list[int]:
    return [
        int(row)
        for step in range(first, last)
        for low, high in zip(steps.start[step], steps.stop[step])
        for row in batches.rows[low:high]
    ]


buckets_of_rows = st.lists(st.integers(-1, 2), max_size=120)


@settings(deadline=None)
@given(buckets_of_rows, st.integers(1, 5), st.integers(0, 3))
def test_every_row_once(buckets: list[int], world: int, epoch: int) -> None:
    batches = epoch_of(buckets, epoch=epoch)
    steps, taken = replay(batches, [], world, seed=1, epoch=epoch)
    assert taken == 0
    used = [row for row, bucket in enumerate(buckets) if bucket >= 0]
    assert sorted(rows_of(batches, steps, 0, len(steps))) == used
    for index, low, high in zip(steps.index.ravel(), steps.start.ravel(), steps.stop.ravel()):
        assert high - low <= SIZES[batches.bucket[index]]
        assert all(buckets[row] == batches.bucket[index] for row in batches.rows[low:high])


@settings(deadline=None)
@given(buckets_of_rows, st.lists(st.tuples(st.integers(1, 4), st.integers(0, 6)), max_size=4), st.integers(1, 4))
def test_changing_the_world_loses_and_repeats_nothing(
    buckets: list[int], runs: list[tuple[int, int]], last: int
) -> None:
    batches = epoch_of(buckets)
    history: list[Segment] = []
    seen: list[int] = []
    for world, wanted in [*runs, (last, 10**6)]:
        steps, taken = replay(batches, history, world, seed=1, epoch=0)
        stop = min(taken + wanted, len(steps))
        seen += rows_of(batches, steps, taken, stop)
        if history and history[-1].world == world:
            history[-1] = Segment(world, stop)
        else:
            history.append(Segment(world, stop))
    assert sorted(seen) == [row for row, bucket in enumerate(buckets) if bucket >= 0]


def test_ranks_of_a_step_cost_nearly_the_same() -> None:
    generator = np.random.default_rng(0)
    batches = epoch_of(generator.integers(0, 3, 4000).tolist())
    balanced, _ = replay(batches, [], 4, seed=1, epoch=0)
    plain = batches.cost[draws.order(len(batches), 1)][: len(batches) // 4 * 4].reshape(-1, 4)
    unbalanced = float(np.mean(plain.max(axis=1) / plain.mean(axis=1) - 1))
    assert balanced.imbalance < 0.02 < unbalanced


def test_epochs_and_seeds_differ_and_repeat() -> None:
    buckets = [0] * 40
    assert np.array_equal(epoch_of(buckets).rows, epoch_of(buckets).rows)
    assert not np.array_equal(epoch_of(buckets).rows, epoch_of(buckets, epoch=1).rows)
    assert not np.array_equal(epoch_of(buckets).rows, epoch_of(buckets, seed=2).rows)


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 5))
def test_sequential_mode_reads_each_shard_in_one_stretch(world: int, together: int, epoch: int) -> None:
    generator = np.random.default_rng(epoch)
    buckets = generator.integers(-1, 3, 1200).astype(np.int32)
    shards = np.sort(generator.integers(0, 12, 1200))
    windows = shard_windows(shards, together, seed=1, epoch=epoch)
    assert [len(set(shards[windows == number])) for number in range(12 // together)] == [together] * (12 // together)
    batches = micro_batches(buckets, SIZES, COSTS, seed=1, epoch=epoch, window_of_row=windows)
    steps, _ = replay(batches, [], world, seed=1, epoch=epoch)
    rows = rows_of(batches, steps, 0, len(steps))
    assert sorted(rows) == np.flatnonzero(buckets >= 0).tolist()
    # A row may lag behind its window: once in a micro-batch that straddles two, once in a step that does.
    assert (np.maximum.accumulate(windows[rows]) - windows[rows]).max() <= (1 if world == 1 else 2)


def test_drop_leaves_out_what_does_not_fill_a_batch_or_a_step() -> None:
    batches = micro_batches(np.zeros(22, np.int32), SIZES, COSTS, seed=1, epoch=0, remainder="drop")
    assert (len(batches), batches.dropped) == (5, 2)
    steps = group(batches, np.arange(5), 2, words=(0,), tail="drop")
    assert (len(steps), steps.dropped) == (2, 4)


def test_a_history_longer_than_the_epoch_is_refused() -> None:
    batches = epoch_of([0] * 8)
    with pytest.raises(ValueError, match="tells of 9 steps"):
        replay(batches, [Segment(2, 9)], 2, seed=1, epoch=0)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 1000))
def test_draws_are_functions_of_their_words(seed: int, high: int) -> None:
    rows = np.arange(50)
    together = draws.integers(high, seed, "crop", rows)
    assert [int(draws.integers(high, seed, "crop", int(row))[0]) for row in rows] == together.tolist()
    assert together.min() >= 0 and together.max() < high
    assert sorted(draws.order(50, seed)) == list(range(50))


def test_draws_are_uniform_and_uncorrelated() -> None:
    rows = np.arange(200_000)
    a, b = draws.uniform(7, 0, "a", rows), draws.uniform(7, 0, "b", rows)
    neighbours = draws.uniform(7, 1, "a", rows)
    for sample in (a, b, neighbours):
        assert abs(sample.mean() - 0.5) < 0.003 and abs(sample.var() - 1 / 12) < 0.001
    for other in (b, neighbours, np.roll(a, 1)):
        assert abs(np.corrcoef(a, other)[0, 1]) < 0.01


def test_the_imbalance_is_the_time_that_ranks_wait() -> None:
    batches = epoch_of(np.random.default_rng(1).integers(0, 3, 90).tolist())
    steps, _ = replay(batches, [], 4, seed=1, epoch=0)
    waits = []
    for index, low, high in zip(steps.index, steps.start, steps.stop):
        costs = [COSTS[batches.bucket[number]] * (b - a) for number, a, b in zip(index, low, high)]
        waits.append(max(costs) / (sum(costs) / 4) - 1)
    assert steps.imbalance == pytest.approx(sum(waits) / len(waits)) and steps.imbalance > 0

"""The sampler: a pure function of metadata, exact to resume at any step and in any world."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.manifests.errors import UserError
from javisc.trainer.data.index.assign import Bucket, BucketTable, Length, Resolution, single_bucket
from javisc.trainer.data.index.catalog import Catalog
from javisc.trainer.data.index.compose import Tail
from javisc.trainer.data.index.sampler import Batch, Sampler, SamplerOptions
from javisc.trainer.data.index.windows import RandomWindow, samples_of
from javisc.trainer.data.sources.sync import SyncWindow
from javisc.trainer.transforms.sync_chain import SyncTransforms
from support import tables

TABLE = BucketTable(
    [
        Resolution(
            "240p", 240 * 426, {"0.56": (240, 426), "1.78": (426, 240)}, (Length(51, 4), Length(102, 2, 1.0, 0.5))
        ),
        Resolution("144p", 144 * 256, {"0.56": (144, 256), "1.78": (256, 144)}, (Length(17, 8), Length(51, 6, 0.7))),
    ]
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    generator = np.random.default_rng(3)
    count = 400
    frame = tables.rows(count).with_columns(
        num_frames=pl.Series(generator.integers(10, 200, count), dtype=pl.Int32),
        height=pl.Series(generator.choice([144, 240, 360], count), dtype=pl.Int32),
        width=pl.Series(generator.choice([144, 256, 426, 640], count), dtype=pl.Int32),
        audio_fps=pl.lit(16000, pl.Int32),
    )
    return Catalog.open([tables.dataset(tmp_path_factory.mktemp("ds"), frame)])


def seen(batches: list[Batch]) -> list[int]:
    return [clip.row for batch in batches for clip in batch.clips]


def test_windows_and_buckets_are_legal(catalog: Catalog) -> None:
    batches = list(Sampler(catalog, TABLE))
    rows = seen(batches)
    assert len(rows) == len(set(rows)) > 200
    for batch in batches:
        assert 1 <= len(batch.clips) <= batch.bucket.batch_size
        for clip in batch.clips:
            frames, height, width = (catalog.numbers[n][clip.row] for n in ("num_frames", "height", "width"))
            assert 0 <= clip.window.first <= clip.window.first + clip.window.count <= frames
            assert height * width >= 0.8 * batch.bucket.height * batch.bucket.width * 0.98
            assert (height > width) == (batch.bucket.height > batch.bucket.width) or height == width
            assert clip.window.audio_first == round(clip.window.first * 16000 / 24)
            assert clip.window.audio_count == round(batch.bucket.frames * 16000 / 24)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 12)), min_size=1, max_size=5), st.integers(1, 3))
def test_first_k_and_the_rest_are_all(catalog: Catalog, runs: list[tuple[int, int]], last: int) -> None:
    """Killed after any number of steps, resumed with any world size: every sample of the epoch once."""
    state = json.loads(json.dumps(Sampler(catalog, TABLE).state_dict()))
    everything = sorted(seen(list(Sampler(catalog, TABLE))))
    got: list[int] = []
    for world, steps in [*runs, (last, 10**6)]:
        ranks = [Sampler(catalog, TABLE, rank=rank, world=world) for rank in range(world)]
        after = state
        for sampler in ranks:
            sampler.load_state_dict(state)
            if sampler.epoch == 0:
                for _, batch in zip(range(steps), sampler):
                    got += [clip.row for clip in batch.clips]
                    after = sampler.state_dict()
        assert len({json.dumps(sampler.state_dict()) for sampler in ranks}) == 1
        state = json.loads(json.dumps(after))
    assert sorted(got) == everything


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 60), st.integers(1, 3))
def test_a_resumed_run_sees_the_very_same_batches(catalog: Catalog, kill: int, world: int) -> None:
    def run(sampler: Sampler, steps: int) -> list[Batch]:
        out: list[Batch] = []
        while len(out) < steps:
            for batch in sampler:
                out.append(batch)
                if len(out) == steps:
                    break
        return out

    whole = run(Sampler(catalog, TABLE, rank=world - 1, world=world), 80)
    first = Sampler(catalog, TABLE, rank=world - 1, world=world)
    head = run(first, kill)
    second = Sampler(catalog, TABLE, rank=world - 1, world=world)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert head + run(second, 80 - kill) == whole


@pytest.mark.parametrize(("world", "tail"), [(1, "split"), (3, "split"), (5, "drop")])
def test_every_rank_knows_how_many_clips_the_others_have(catalog: Catalog, world: int, tail: Tail) -> None:
    options = SamplerOptions(seed=3, tail=tail)
    steps = zip(*(Sampler(catalog, TABLE, options, rank=rank, world=world) for rank in range(world)), strict=True)
    for step in steps:
        assert {batch.rows for batch in step} == {tuple(len(batch.clips) for batch in step)}


def test_another_dataset_or_seed_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    state = Sampler(catalog, TABLE).state_dict()
    with pytest.raises(UserError, match="seed=42"):
        Sampler(catalog, TABLE, SamplerOptions(seed=1)).load_state_dict(state)
    fewer = Catalog.open([tables.dataset(tmp_path / "ds", tables.rows(30))])
    with pytest.raises(UserError, match="another dataset"):
        Sampler(fewer, TABLE).load_state_dict(state)


def test_nothing_that_fits_is_said(catalog: Catalog) -> None:
    with pytest.raises(UserError, match="wants 5000 frames"):
        list(Sampler(catalog, single_bucket(5000, 64, 64, 2)))


@given(st.integers(0, 10_000), st.integers(1, 500))
def test_three_frames_are_two_thousand_samples(first: int, frames: int) -> None:
    start, count = samples_of(first * 3, frames * 3, Fraction(24), 16000)
    assert (start, count) == (first * 2000, frames * 2000)
    start, _ = samples_of(first, frames, Fraction(24), 16000)
    assert abs(start - first * 16000 / 24) <= 0.5


def test_starts_are_uniform() -> None:
    numbers = {"num_frames": np.full(60_000, 20), "audio_fps": np.full(60_000, 16000)}
    windows = RandomWindow().windows(np.arange(60_000), numbers, {}, (1, 2), 9, 1)
    counts = np.bincount([window.first for window in windows])
    assert len(counts) == 12 and abs(counts / 5000 - 1).max() < 0.06


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(3, 41), st.integers(0, 1000))
def test_offset_crops_lie_inside_the_clip(spare: int, classes: int, row_seed: int) -> None:
    policy = SyncWindow(SyncTransforms(classes=classes, audio_jitter_sec=0.0))
    frames = 125 + 50 + spare
    numbers = {name: np.full(64, value) for name, value in lengths(frames).items()}
    assert policy.feasible(numbers, 125, 1).all()
    for window in policy.windows(np.arange(64), numbers, {}, (row_seed,), 125, 1):
        assert window.offset is not None
        assert window.first >= 0 and window.first + 125 <= frames
        assert window.audio_first >= 0 and window.audio_first + window.audio_count <= frames * 640
        assert abs(window.audio_first / 16000 - window.first / 25 - window.offset) <= 1 / 16000 + 1e-9


def test_fixed_offsets_come_from_the_manifest() -> None:
    numbers = {name: np.full(2, value) for name, value in lengths(250).items()}
    reals = {"offset_sec": np.asarray([1.4, np.nan]), "vstart_sec": np.asarray([0.4, np.nan])}
    fixed, drawn = SyncWindow(SyncTransforms(), fixed=True).windows(np.arange(2), numbers, reals, (0,), 125, 1)
    # One sample early, as the published evaluation: it truncates 1.7999999999999998 s * 16000.
    assert (fixed.first, fixed.audio_first, fixed.offset) == (10, 28799, 1.4)
    assert drawn.first + 125 <= 250


def lengths(frames: int) -> dict[str, int]:
    return {"num_frames": frames, "num_samples": frames * 640, "audio_fps": 16000}


def test_assignment_is_the_reference_rule_without_coins() -> None:
    table = BucketTable(
        [Resolution("240p", 100_000, {"0.56": (240, 426), "1.00": (316, 316)}, (Length(51, 4), Length(102, 2)))]
    )
    numbers = {"height": np.asarray([240, 300, 320, 100, 240]), "width": np.asarray([426, 300, 320, 100, 426])}
    frames = np.asarray([60, 102, 50, 500, 51])
    got = table.assign(numbers, lambda wanted: frames >= wanted, seed=0, epoch=0)
    names = [table.buckets[number].name if number >= 0 else None for number in got]
    assert names == ["240p/51/0.56", "240p/102/1.00", None, None, "240p/51/0.56"]


def test_coins_have_their_odds() -> None:
    count = 40_000
    numbers = {"height": np.full(count, 240), "width": np.full(count, 426)}
    got = TABLE.assign(numbers, lambda wanted: np.full(count, True), seed=5, epoch=1)
    lengths = np.asarray([TABLE.buckets[number].frames for number in got])
    heights = np.asarray([TABLE.buckets[number].height for number in got])
    assert set(heights) == {240} and abs((lengths == 102).mean() - 0.5) < 0.01
    small = {"height": np.full(count, 144), "width": np.full(count, 256)}
    lengths = np.asarray(
        [
            TABLE.buckets[n].frames if n >= 0 else 0
            for n in TABLE.assign(small, lambda w: np.full(count, True), seed=5, epoch=1)
        ]
    )
    assert abs((lengths == 51).mean() - 0.7) < 0.01 and (lengths == 17).sum() == 0
    assert isinstance(TABLE.buckets[0], Bucket)


def test_seeds_and_epochs_draw_anew(catalog: Catalog) -> None:
    """Another seed, and another epoch, means other batches, windows, mirrors and seeds; the same ones mean the same."""
    table = single_bucket(frames=9, height=32, width=32, batch_size=4)

    def drawn(seed: int, epoch: int) -> tuple[set[frozenset[int]], list[int], dict[int, tuple[int, bool, int]]]:
        sampler = Sampler(catalog, table, SamplerOptions(seed=seed, mirror=0.5))
        for _ in range(epoch):
            sampler.epoch += 1
        batches = list(sampler)
        clips = {clip.row: (clip.window.first, clip.mirror, clip.seed) for batch in batches for clip in batch.clips}
        return {frozenset(clip.row for clip in batch.clips) for batch in batches}, seen(batches), clips

    first = drawn(1, 0)
    assert drawn(1, 0) == first
    for other in (drawn(2, 0), drawn(1, 1)):
        assert other[0] != first[0] and other[1] != first[1]
        pairs = [(first[2][row], other[2][row]) for row in first[2]]
        for part in range(3):
            assert sum(a[part] == b[part] for a, b in pairs) < 0.7 * len(pairs), part


def test_an_epoch_follows_the_one_before(catalog: Catalog) -> None:
    """The batches themselves are others, not only their order."""
    sampler = Sampler(catalog, single_bucket(frames=9, height=32, width=32, batch_size=4))
    assert len(sampler) == 100
    first, second = ({frozenset(seen([batch])) for batch in sampler} for _ in range(2))
    assert len(first & second) < 0.1 * len(first)


@pytest.mark.parametrize("together", [1, 2])
def test_shards_come_one_window_after_the_other(catalog: Catalog, together: int) -> None:
    """Four shards of a hundred clips: a window's clips come before the next one's, but for a batch between them."""
    options = SamplerOptions(shards_together=together)
    sampler = Sampler(catalog, single_bucket(frames=9, height=32, width=32, batch_size=4), options)
    shards = [int(catalog.numbers["shard"][row]) for row in seen(list(sampler))]
    size = 100 * together
    assert len(shards) == 400 and len(set(shards)) == 4
    for start in range(0, 400, size):
        assert len(set(shards[start + 4 : start + size - 4])) == together, start

"""SparseSync's batches from compiled shards: the offset asked for is in the tensors, and a resume changes no byte."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.data.bytes.decode import frames
from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
from javisc.trainer.data.bytes.reader import ReaderOptions
from javisc.trainer.data.index.assign import single_bucket
from javisc.trainer.data.index.catalog import Catalog
from javisc.trainer.data.index.sampler import Sampler
from javisc.trainer.data.sources.sync import SyncBatch, SyncBatches, SyncDataOptions
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.transforms.sync_chain import SyncTransforms
from javisc.trainer.transforms.sync_video import IMAGENET_MEAN, IMAGENET_STD
from support import compiled, loading
from support.loading import workers_of
from support.processes import alive, forkserver

TRANSFORMS = SyncTransforms(
    crop_len_sec=1.0, max_off_sec=0.4, classes=5, input_size=32, p_audio_aug=0.5, p_color_jitter=0.5
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled.write(tmp_path_factory.mktemp("sync") / "ds", [40, 50, 36, 45, 60, 30, 38], fps=25)


def options(**changes: object) -> SyncDataOptions:
    return SyncDataOptions(**{"batch_size": 2, "split": None, **changes})  # type: ignore[arg-type]


def test_shapes_and_targets(dataset: Path) -> None:
    source = SyncBatches([dataset], TRANSFORMS, options())
    batches = list(source)
    source.close()
    # The clip of 30 frames is too short for 1 s shifted by 0.4 s.
    assert sorted(key for batch in batches for key in batch.keys) == [f"{n:08d}" for n in (0, 1, 2, 3, 4, 6)]
    for batch in batches:
        assert batch.vis.shape[1:] == (25, 3, 32, 32) and batch.aud.shape[1:] == (1, 257, 126)
        assert ((batch.target >= 0) & (batch.target < 5)).all()
        assert torch.isfinite(batch.vis).all() and torch.isfinite(batch.aud).all()


def test_a_resume_changes_no_byte(dataset: Path) -> None:
    def run(state: dict | None, count: int, threads: int) -> tuple[list[SyncBatch], dict]:
        source = SyncBatches([dataset], TRANSFORMS, options(threads=threads))
        if state is not None:
            source.load_state_dict(state)
        out: list[SyncBatch] = []
        while len(out) < count:
            for batch in source:
                out.append(batch)
                if len(out) == count:
                    break
        state = json.loads(json.dumps(source.state_dict()))
        source.close()
        return out, state

    whole, _ = run(None, 5, 2)
    for kill in (1, 4):
        head, state = run(None, kill, 1)
        tail, _ = run(state, 5 - kill, 3)
        for got, expected in zip(head + tail, whole, strict=True):
            assert torch.equal(got.vis, expected.vis) and torch.equal(got.aud, expected.aud)
            assert torch.equal(got.target, expected.target)


def test_fixed_offsets_are_obeyed(dataset: Path, tmp_path: Path) -> None:
    rows = pl.read_parquet(dataset / "manifest.parquet").with_columns(
        offset_sec=pl.lit(-0.2), vstart_sec=pl.lit(0.28), dataset=pl.lit(str(dataset))
    )
    rows.write_parquet(tmp_path / "view.parquet")
    source = SyncBatches([tmp_path / "view.parquet"], TRANSFORMS, options(train=False, fixed=True))
    targets = torch.cat([batch.target for batch in source])
    source.close()
    assert targets.tolist() == [1] * len(targets)


def test_pictures_too_small_for_the_crop_are_said(dataset: Path) -> None:
    with pytest.raises(UserError, match="--short-side 224"):
        SyncBatches([dataset], SyncTransforms(), options())


@pytest.mark.parametrize(("offset", "start"), [(-0.2, None), (float("inf"), 0.0), (0.4, 1e300), (0.4, 5.0)])
def test_fixed_crops_that_cannot_be_are_told_in_a_line(
    dataset: Path, tmp_path: Path, offset: float, start: float | None
) -> None:
    rows = pl.read_parquet(dataset / "manifest.parquet").with_columns(
        offset_sec=pl.lit(offset, pl.Float64), vstart_sec=pl.lit(start, pl.Float64), dataset=pl.lit(str(dataset))
    )
    rows.write_parquet(tmp_path / "view.parquet")
    source = SyncBatches([tmp_path / "view.parquet"], TRANSFORMS, options(train=False, fixed=True))
    with pytest.raises(UserError, match="mend its offset_sec and vstart_sec"):
        list(source)
    source.close()


def test_a_cache_changes_no_byte_whether_all_some_or_no_clips_fit(dataset: Path) -> None:
    def run(**changes: int) -> tuple[list[SyncBatch], SyncBatches]:
        source = SyncBatches([dataset], TRANSFORMS, options(**changes))
        out = [batch for _ in range(2) for batch in source]
        source.close()
        return out, source

    plain, _ = run()
    whole = 0
    for share, kept in ((None, range(6, 7)), (2, range(1, 6)), (10**6, range(1))):
        limit = 100_000_000 if share is None else whole // share
        cached, source = run(cache_bytes=max(limit, 1))
        assert source.loader.cache is not None and source.loader.cache.bytes <= max(limit, 1)
        whole = whole or source.loader.cache.bytes
        assert len(source.loader.cache.clips) in kept
        for a, b in zip(plain, cached, strict=True):
            assert a.keys == b.keys and torch.equal(a.vis, b.vis) and torch.equal(a.aud, b.aud)


def test_several_sounds_share_a_picture_and_differ_in_their_offset(dataset: Path) -> None:
    source = SyncBatches([dataset], TRANSFORMS, options(offsets_per_clip=3))
    batch = next(iter(source))
    source.close()
    clips = len(batch.keys)
    assert batch.vis.shape[0] == clips and batch.aud.shape[0] == 3 * clips == len(batch.target) == len(batch.shift)
    for targets in batch.target.view(clips, 3).tolist():
        assert len(set(targets)) == 3
    # The grid is 0.2 s wide from -0.4 s on; a frame's truncation and the jitter move the sound a little.
    assert ((batch.target - 2) * 0.2 - batch.shift).abs().max() <= TRANSFORMS.audio_jitter_sec + 0.04 + 1e-6


def test_pictures_travel_as_bytes_and_are_the_chains_own_on_the_device(dataset: Path) -> None:
    source = SyncBatches([dataset], TRANSFORMS, options())
    batch = next(iter(source))
    source.close()
    assert batch.vis.dtype == torch.uint8
    first = next(Sampler(source.catalog, source.loader.sampler.table, source.loader.sampler.options).upcoming())
    clip = first.clips[0]
    assert int(batch.keys[0]) == clip.row
    content = Dataset.open(dataset).read(batch.keys[0])
    picture = frames(content["mp4"], clip.window.first, clip.window.count, fps=Fraction(25))
    wanted = TRANSFORMS.pictures(torch.from_numpy(picture).permute(0, 3, 1, 2), SeededDraws(clip.seed), train=True)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    made = batch.pictures(torch.device("cpu"))
    assert made.dtype == torch.float32 and torch.equal(made[0], wanted)
    assert torch.equal(made, (batch.vis.float() / 255 - mean) / std), "to the last bit what was computed on the host"


def test_processes_give_the_bytes_of_threads_replace_what_is_broken_and_leave_nobody(tmp_path: Path) -> None:
    folder = compiled.write(tmp_path / "ds", [40, 50, 36, 45, 60, 38], fps=25)
    numbers = Catalog.open([folder]).numbers
    shard = bytearray((folder / "shards" / "000000.tar").read_bytes())
    shard[int(numbers["mp4_offset"][2]) + 900] ^= 0xFF
    (folder / "shards" / "000000.tar").write_bytes(shard)
    reader = ReaderOptions(verify=False)  # the damage reaches the decoder, in its process

    def run(processes: bool) -> tuple[list[SyncBatch], set[int]]:
        source = SyncBatches([folder], TRANSFORMS, options(processes=processes, reader=reader), report=lambda *_: None)
        out, seen = [], set()
        for batch in source:
            out.append(batch)
            seen |= workers_of(source)
        assert not workers_of(source), "an epoch's processes end with it"
        source.close()
        return out, seen

    (threads, none), (made, some) = run(False), run(True)
    assert not none and 1 <= len(some) <= 2 and not any(map(alive, some))
    assert len(threads) == len(made) == 3
    for a, b in zip(threads, made, strict=True):
        assert a.keys == b.keys and [row for row, _ in a.replaced] == [row for row, _ in b.replaced]
        assert torch.equal(a.vis, b.vis) and torch.equal(a.aud, b.aud) and torch.equal(a.target, b.target)


def test_a_killed_process_is_told_and_a_killed_run_leaves_none(dataset: Path) -> None:
    source = SyncBatches([dataset], TRANSFORMS, options(processes=True, threads=1))
    with pytest.raises(UserError, match="data.processes=false"):
        for number, _ in enumerate(source):
            assert number < 2
            for pid in workers_of(source):
                os.kill(pid, signal.SIGKILL)
    source.close()
    ours, theirs = multiprocessing.Pipe()
    run = forkserver().Process(target=loading.sync_and_sleep, args=(dataset, TRANSFORMS, theirs))
    run.start()
    assert ours.poll(120), "no batch came"
    pids = ours.recv()
    assert pids and run.pid is not None
    os.kill(run.pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while any(map(alive, pids)):
        assert time.monotonic() < end, "its workers live on"
        time.sleep(0.05)


def test_a_process_that_is_killed_while_all_rest_is_told(dataset: Path) -> None:
    source = SyncBatches([dataset], TRANSFORMS, options(processes=True, threads=1))
    workers, clip = source.loader.workers, next(source.loader.sampler.upcoming()).clips[0]
    assert workers is not None
    content = Dataset.open(dataset).read(f"{clip.row:08d}")
    workers.made(content["mp4"], content["flac"], clip)
    (pid,) = workers_of(source)
    os.kill(pid, signal.SIGKILL)
    for _ in range(2):  # while it is found out, and after
        with pytest.raises(UserError, match="data.processes=false"):
            workers.made(content["mp4"], content["flac"], clip)
    source.close()


def test_an_error_that_cannot_leave_its_process_is_told_and_is_no_killed_process(dataset: Path) -> None:
    catalog = Catalog.open([dataset])
    sampler = Sampler(catalog, single_bucket(8, 32, 32, 1))
    with (
        Loader(sampler, LoaderOptions(fps=Fraction(25), processes=True), transform=loading.stumble) as loader,
        pytest.raises(RuntimeError, match="Odd: stumbled, 3 times"),
    ):
        list(loader)


def test_an_epoch_that_is_left_starts_no_process_behind_itself(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SyncBatches([dataset], TRANSFORMS, options(processes=True))
    read = source.loader.reader.read

    def slowly(*arguments: Any) -> dict[str, bytes]:
        time.sleep(0.3)
        return read(*arguments)

    monkeypatch.setattr(source.loader.reader, "read", slowly)
    for _ in source:
        break
    monkeypatch.undo()
    for done in [source.loader.pool.submit(time.sleep, 0.1) for _ in range(2)]:
        done.result()
    assert not workers_of(source)
    source.close()

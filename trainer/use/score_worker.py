"""In a worker process: clips become scores. Threads decode ahead of the model, which sees batches of crops."""

from __future__ import annotations

import fcntl
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.manifests.schema import SCORES_SCHEMA
from javisc.trainer.data.reader import Reader
from javisc.trainer.engine.distributed import PRECISIONS
from javisc.trainer.models.sync.model import AVSync, to_channels_last
from javisc.trainer.transforms.sync_chain import SyncTransforms
from javisc.trainer.transforms.sync_video import normalise
from javisc.trainer.transforms.sync_window import ClassGrid
from javisc.trainer.use.score_clip import CropOptions, NoScore, crops_of
from javisc.trainer.use.selector import load_selector


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker needs beside its clips. `devices` are shared out through lock files in `folder`, one slot a process."""

    checkpoint: str
    folder: str
    devices: list[str]
    batch_size: int
    threads: int
    precision: str
    crops: int
    fps: int
    short_side: int


def score_rows(rows: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Scores of located rows, in their order: sync_offset, sync_confidence, sync_margin, crops, reason and message.

    The batches depend on the rows alone, so the same rows give the same scores in every run. Raises UserError if memory does
    not suffice.
    """
    settings = WorkerOptions(**options)
    model, transforms, device = _loaded(settings)
    told: list[dict[str, Any]] = [{} for _ in rows]
    sums: dict[int, tuple[Tensor, int]] = {}
    crops = _decoded(rows, transforms, settings, told)
    try:
        while batch := list(islice(crops, settings.batch_size)):
            chances = _chances(model, [vis for _, vis, _ in batch], [aud for _, _, aud in batch], device, settings)
            for (number, _, _), chance in zip(batch, chances, strict=True):
                total, count = sums.get(number, (torch.zeros_like(chance), 0))
                sums[number] = (total + chance, count + 1)
    except torch.OutOfMemoryError as error:
        raise UserError(f"{device} has too little memory for --batch-size {settings.batch_size}: lower it") from error
    grid = ClassGrid(transforms.max_off_sec, transforms.classes).values
    for number, (total, count) in sums.items():
        told[number] = rating(total / count, grid.tolist()) | {"crops": count}
    return told


def rating(chances: Tensor, grid: Sequence[float]) -> dict[str, Any]:
    """A clip's score from the probabilities (classes,) of the offsets in `grid` (seconds); equal ones rank by class."""
    if not chances.isfinite().all():
        return failure("not finite")
    ranked = chances.argsort(descending=True, stable=True)
    first, second = chances[ranked[:2]].tolist()
    # The grid is float32; its decimals are what was meant, so that `sync_offset <= 0.2` holds for 0.2.
    return {
        "sync_offset": round(grid[int(ranked[0])], 4) + 0.0,
        "sync_confidence": first,
        "sync_margin": first - second,
        "reason": None,
        "message": None,
    }


def failure(reason: str, message: str = "") -> dict[str, Any]:
    """What stands in the place of a score."""
    return {**dict.fromkeys(SCORES_SCHEMA), "crops": 0, "reason": reason, "message": message[:500]}


def _decoded(
    rows: Sequence[Mapping[str, Any]], transforms: SyncTransforms, settings: WorkerOptions, told: list[dict[str, Any]]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(row number, picture, sound) of every crop in order, decoded ahead; failures go to `told`.

    What waits is bounded: a batch's worth of clips, and one for each thread.
    """
    options = CropOptions(settings.crops, settings.fps, settings.short_side)
    ahead = settings.threads + -(-settings.batch_size // settings.crops)
    waiting: deque[tuple[int, Future[list[tuple[Tensor, Tensor]]]]] = deque()
    coming = iter(enumerate(rows))
    with ThreadPoolExecutor(settings.threads, thread_name_prefix="javisc-score") as pool:
        while True:
            for number, row in islice(coming, ahead - len(waiting)):
                waiting.append((number, pool.submit(crops_of, row, _reader(), transforms, options)))
            if not waiting:
                return
            number, future = waiting.popleft()
            try:
                crops = future.result()
            except NoScore as error:
                told[number] = failure(error.reason, str(error))
                continue
            for picture, sound in crops:
                yield number, picture, sound


@torch.no_grad()
def _chances(
    model: AVSync, pictures: list[Tensor], sounds: list[Tensor], device: torch.device, settings: WorkerOptions
) -> Tensor:
    """Probabilities (B, classes), float64, of a batch of crops. Pictures travel to the device as bytes."""
    on_gpu = device.type == "cuda"
    vis = torch.empty((len(pictures), *pictures[0].shape), dtype=torch.uint8, pin_memory=on_gpu)
    torch.stack(pictures, out=vis)
    low = settings.precision != "fp32"
    with torch.autocast(device.type, PRECISIONS[settings.precision]) if low else nullcontext():
        _, logits = model(normalise(vis.to(device, non_blocking=True)), torch.stack(sounds).to(device))
    return logits.double().softmax(1).cpu()


@cache
def _reader() -> Reader:
    return Reader()


_model: tuple[str, AVSync, SyncTransforms, torch.device] | None = None


def _loaded(settings: WorkerOptions) -> tuple[AVSync, SyncTransforms, torch.device]:
    """The selector on this process's device, loaded once."""
    global _model
    if _model is None or _model[0] != settings.checkpoint:
        device = torch.device(claim(Path(settings.folder), settings.devices))
        torch.set_num_threads(1)  # there is a process for every core, or a thread
        model, transforms = load_selector(settings.checkpoint)
        model.to(device)
        _model = settings.checkpoint, to_channels_last(model) if device.type == "cuda" else model, transforms, device
    return _model[1:]


def claim(folder: Path, devices: Sequence[str]) -> str:
    """One of the devices (a slot each; names may repeat) for this process, until it ends: the kernel drops its lock then."""
    for number, device in enumerate(devices):
        descriptor = os.open(folder / f"device-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return device
        except BlockingIOError:
            os.close(descriptor)
    raise UserError(f"all of {', '.join(devices)} are taken by other processes of this run")

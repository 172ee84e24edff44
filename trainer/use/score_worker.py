"""In a worker process: clips become scores. Threads decode ahead of the model, which sees batches of their pieces."""

from __future__ import annotations

import tempfile
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

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.reader import Reader
from javisc.trainer.engine.distributed import PRECISIONS
from javisc.trainer.use.kept_features import Shelf, packed
from javisc.trainer.use.rating import Cut, Rater, failure
from javisc.trainer.use.score_clip import CropOptions, NoScore
from javisc.trainer.use.selector import rater_of


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker needs beside its clips. device: by torch's name. keep: the folder or URL (see `Shelf`) where segments'
    features are left, which the parent takes from there; "" keeps none."""

    checkpoint: str
    device: str
    batch_size: int
    threads: int
    precision: str
    crops: int
    fps: int
    short_side: int
    audio_advance_sec: float
    preset: str
    keep: str = ""


def score_rows(rows: list[dict[str, Any]], options: dict[str, Any]) -> list[dict[str, Any]]:
    """Scores of located rows, in their order: the columns of SCORES_SCHEMA, crops (windows), reason and message.

    The batches depend on the rows alone, so the same rows give the same scores in every run. Raises UserError if memory does
    not suffice.
    """
    settings = WorkerOptions(**options)
    rater, device = _loaded(settings)
    shelf = Shelf(settings.keep, Path(tempfile.gettempdir()))
    told: list[dict[str, Any]] = [{} for _ in rows]
    held: dict[int, tuple[Cut, list[Any]]] = {}
    pieces = _decoded(rows, rater, settings, told, device)
    low = settings.precision != "fp32"
    try:
        with torch.no_grad(), torch.autocast(device.type, PRECISIONS[settings.precision]) if low else nullcontext():
            while batch := list(islice(pieces, settings.batch_size)):
                seen, heard = zip(*(cut.pieces[at] for _, cut, at in batch), strict=True)
                said = rater.see(seen, heard)
                for (number, cut, _), one in zip(batch, said, strict=True):
                    cut, parts = held.setdefault(number, (cut, []))
                    parts.append(one)
                    if len(parts) == len(cut.pieces):
                        told[number] = rater.conclude(parts, cut.windows)
                        if settings.keep and cut.segments and told[number]["reason"] is None:
                            told[number]["features"] = shelf.leave(packed(cut.segments, parts))
                        del held[number]
    except torch.OutOfMemoryError as error:
        raise UserError(f"{device} has too little memory for --batch-size {settings.batch_size}: lower it") from error
    return told


def _decoded(
    rows: Sequence[Mapping[str, Any]],
    rater: Rater,
    settings: WorkerOptions,
    told: list[dict[str, Any]],
    device: torch.device,
) -> Iterator[tuple[int, Cut, int]]:
    """(row number, its cut, number of the piece) of every piece in order, decoded ahead; failures go to `told`, and so do clips
    of whose pieces all is known.

    What waits is bounded: a batch's worth of clips, and one for each thread.
    """
    ahead = settings.threads + -(-settings.batch_size // settings.crops)
    waiting: deque[tuple[int, Future[Cut]]] = deque()
    coming = iter(enumerate(rows))
    with ThreadPoolExecutor(settings.threads, thread_name_prefix="javisc-score") as pool:
        while True:
            for number, row in islice(coming, ahead - len(waiting)):
                waiting.append((number, pool.submit(rater.cut, row, _reader())))
            if not waiting:
                return
            number, future = waiting.popleft()
            try:
                cut = future.result()
            except NoScore as error:
                told[number] = failure(error.reason, str(error))
                continue
            if cut.said:
                told[number] = rater.conclude([_on(one, device) for one in cut.said], cut.windows)
            for at in range(len(cut.pieces)):
                yield number, cut, at


def _on(said: tuple[torch.Tensor, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    return tuple(one.to(device) for one in said)


@cache
def _reader() -> Reader:
    return Reader()


_rater: tuple[WorkerOptions, Rater, torch.device] | None = None


def _loaded(settings: WorkerOptions) -> tuple[Rater, torch.device]:
    """The model on this process's device, loaded once."""
    global _rater
    if _rater is None or _rater[0] != settings:
        device = torch.device(settings.device)
        torch.set_num_threads(1)  # there is a process for every core, or a thread
        cropping = CropOptions(settings.crops, settings.fps, settings.short_side, settings.preset)
        rater = rater_of(settings.checkpoint, cropping, settings.audio_advance_sec)
        _rater = settings, rater.to(device), device
    return _rater[1:]

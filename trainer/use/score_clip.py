"""Stretches of a clip for a sync model, on its own clock: picture and sound from the same moment.

Legend: C seconds of a stretch; T ticks (frames at the model's rate) of it; S pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from javisc.compiler.media.clock import nearest_tick
from javisc.manifests.io import shard_path
from javisc.manifests.kinds import MEDIA, MEMBERS
from javisc.manifests.schema import DATASET_COLUMN
from javisc.trainer.data.bytes.decode import DecodeError, frames, samples
from javisc.trainer.data.bytes.reader import CorruptSample, Reader
from javisc.trainer.data.index.catalog import Member
from javisc.trainer.data.index.windows import samples_of
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.transforms.sync_chain import SyncTransforms, centred, spectrogram

#: What the selector hears: samples per second.
RATE = 16000
#: Seconds read before and after a crop whose sound is resampled: the filter's reach.
_MARGIN = Fraction(1, 20)

#: Columns that a clip is scored from.
NEEDED = (
    DATASET_COLUMN,
    "key",
    "shard",
    "fps",
    "num_frames",
    "num_samples",
    "audio_fps",
    "silent",
    *(column for kind in MEMBERS if kind.extension in MEDIA for column in kind.columns),
)


class NoScore(Exception):
    """A clip that cannot be scored: `reason` is one of a few, the message says more."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class CropOptions:
    """How clips are cropped. `fps` and `short_side` (pixels) are what the selector was trained on, `crops` how many at most.

    `preset`: one of `desync.PRESETS`, whose windows then take the place of `crops`; "" for none.
    """

    crops: int = 3
    fps: int = 25
    short_side: int = 256
    preset: str = ""


def spaced(ticks: int, wanted: int, at_most: int) -> list[int]:
    """First ticks of the crops: spread evenly from the clip's start to its end, overlapping by half at most.

    A clip with room for one only gives its middle. Raises NoScore if there is no room at all.
    """
    room = ticks - wanted
    if room < 0:
        raise NoScore("too short", f"{ticks} frames of the selector's, a crop has {wanted}")
    count = min(at_most, 1 + 2 * room // wanted)
    return [room // 2] if count == 1 else [round(Fraction(number * room, count - 1)) for number in range(count)]


def shown(first: int, count: int, clip: Fraction, fps: int) -> NDArray[np.int64]:
    """The clip's frames that are on show at ticks first … first + count - 1 of another rate.

    As in the compiler: a frame appears at the tick nearest to its time (halfway goes up) and holds until the next one; of
    several at one tick the last is shown. Frame i appears at floor(i·fps/clip + 1/2), so tick k shows ⌈(k + 1/2)·clip/fps⌉ - 1.
    """
    return np.array([math.ceil(Fraction(2 * tick + 1, 2) * clip / fps) - 1 for tick in range(first, first + count)])


@dataclass(frozen=True)
class Stretch:
    """A part of a clip from tick `first` on: video (T,3,S,S) uint8, wave (C·16000,) float32."""

    first: int
    video: Tensor
    wave: Tensor


def ticks_of(row: Mapping[str, Any], transforms: SyncTransforms, fps: int) -> int:
    """Ticks of a located row that have picture and sound. Raises NoScore for one that cannot be looked at."""
    if row["mp4_offset"] is None:
        raise NoScore("no picture")
    if row["flac_offset"] is None or not row["num_samples"]:
        raise NoScore("no sound")
    if row["silent"]:
        raise NoScore("silent")
    if not (1 <= (row["fps"] or 0) <= 1000 and 1 <= (row["audio_fps"] or 0) <= 1_000_000):
        raise NoScore("corrupt", f"{row['fps']} frames and {row['audio_fps']} samples a second")
    clip = Fraction(row["fps"]).limit_denominator(1001)
    heard = row["num_samples"] - round(transforms.audio_advance_sec * row["audio_fps"])
    return min(nearest_tick((row["num_frames"] or 0) / clip, Fraction(fps)), max(heard, 0) * fps // row["audio_fps"])


def stretches(
    row: Mapping[str, Any],
    reader: Reader,
    transforms: SyncTransforms,
    options: CropOptions,
    firsts: Sequence[int],
    wanted: int,
    *,
    silent_too: bool = False,
) -> list[Stretch]:
    """Stretches of `wanted` ticks from the ticks `firsts` on, those in which nothing sounds left out unless asked for.

    Raises NoScore: `silent` if nothing is left, else for bytes that cannot be had or read.
    """
    clip = Fraction(row["fps"]).limit_denominator(1001)
    try:
        data = reader.read(shard_path(row[DATASET_COLUMN], row["shard"]), [_member(row, ext) for ext in MEDIA])
        later = round(transforms.audio_advance_sec * RATE)
        heard = [_wave(data["flac"], first, wanted, row["audio_fps"], options.fps, later) for first in firsts]
        kept = [(first, wave) for first, wave in zip(firsts, heard, strict=True) if silent_too or wave.any()]
        if not kept:
            raise NoScore("silent")
        pictures = _pictures(data["mp4"], [first for first, _ in kept], wanted, clip, transforms, options)
    except (CorruptSample, DecodeError, ValueError) as error:
        # A shard that cannot be had may be there tomorrow; bytes that are not what they should be stay so.
        raise NoScore("unreadable" if isinstance(error.__cause__, OSError) else "corrupt", str(error)) from error
    return [Stretch(first, video, wave) for (first, wave), video in zip(kept, pictures, strict=True)]


def crops_of(
    row: Mapping[str, Any], reader: Reader, transforms: SyncTransforms, options: CropOptions
) -> list[tuple[Tensor, Tensor]]:
    """A located row's crops for SparseSync: (T,3,S,S) uint8 and (1,257,C·16000 // 128 + 1) float32 each. Raises NoScore.

    Crops in which nothing sounds are left out: standardised silence is noise.
    """
    wanted = int(transforms.crop_len_sec * options.fps)
    firsts = spaced(ticks_of(row, transforms, options.fps), wanted, options.crops)
    none = SeededDraws(0)  # nothing is drawn outside training
    return [
        (one.video, spectrogram(one.wave, none, 0.0, 0.0, 0.0)[0].unsqueeze(0))
        for one in stretches(row, reader, transforms, options, firsts, wanted)
    ]


def _member(row: Mapping[str, Any], ext: str) -> Member:
    return Member(ext, row[f"{ext}_offset"], row[f"{ext}_size"] or 0, row[f"{ext}_crc32"])


def _wave(flac: bytes, first: int, wanted: int, rate: int, fps: int, later: int) -> Tensor:
    """The stretch's sound, mono at RATE, from `later` samples after the moment of its first tick on."""
    start, count = samples_of(first, wanted, Fraction(fps), RATE)
    start += later
    if rate == RATE:
        return torch.from_numpy(samples(flac, start, count).mean(axis=1))
    moment = Fraction(first, fps) + Fraction(later, RATE)
    begin = int((moment - min(moment, _MARGIN)) * rate)
    length = math.ceil((moment + Fraction(wanted, fps)) * rate + _MARGIN * rate) - begin
    wave = soxr.resample(samples(flac, begin, length).mean(axis=1), rate, RATE)
    skipped = start - round(Fraction(begin, rate) * RATE)
    return torch.from_numpy(np.ascontiguousarray(wave[skipped : skipped + count]))


def _pictures(
    mp4: bytes, firsts: Sequence[int], wanted: int, clip: Fraction, transforms: SyncTransforms, options: CropOptions
) -> list[Tensor]:
    """The stretches' pictures, each decoded once: those that overlap are cut from one longer stretch."""
    together = len(firsts) > 1 and all(b - a < wanted for a, b in pairwise(firsts))
    out = []
    for stretch in [firsts] if together else [[first] for first in firsts]:
        ticks = shown(stretch[0], stretch[-1] - stretch[0] + wanted, clip, options.fps)
        decoded = frames(mp4, int(ticks[0]), int(ticks[-1] - ticks[0]) + 1, fps=clip, short_side=options.short_side)
        video = centred(transforms, torch.from_numpy(decoded).permute(0, 3, 1, 2))
        where = torch.from_numpy(ticks - ticks[0])
        out += [video[where[first - stretch[0] :][:wanted]] for first in stretch]
    return out

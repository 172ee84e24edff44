"""Which bucket a clip falls into this epoch: resolution × number of frames × aspect ratio, for millions of clips at once.

The rules are JavisDiT's: resolutions from large to small, lengths from long to short; a clip is taken by the first resolution
that it nearly reaches (80 % of the pixels) and the longest length that it fills, if two coins agree. Here the coins are drawn per
(seed, epoch, row, bucket) by `draws`, so that a table of ten million rows takes seconds and adding rows changes nothing for the
others. The reference's own coins, one numpy generator per row, are in `javisc.trainer.data.index.buckets`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.trainer.data.index import draws


@dataclass(frozen=True)
class Bucket:
    """Clips that fit one tensor shape: frames, height and width in pixels, and how many make a micro-batch."""

    frames: int
    height: int
    width: int
    batch_size: int
    name: str = ""


@dataclass(frozen=True)
class Length:
    """A number of frames within a resolution: the share of clips it keeps, and the micro-batch size.

    `keep_resolution` is the chance that a clip which fits is accepted (else a smaller resolution is tried); `keep_length` the
    chance that this length is considered (else a shorter one is).
    """

    frames: int
    batch_size: int
    keep_resolution: float = 1.0
    keep_length: float = 1.0


@dataclass(frozen=True)
class Resolution:
    """A resolution: its name, its pixel count, {aspect ratio key (height/width): (height, width)}, and its lengths."""

    name: str
    pixels: int
    sizes: Mapping[str, tuple[int, int]]
    lengths: tuple[Length, ...]


class BucketTable:
    """All buckets of a configuration, numbered; `assign` maps rows to them."""

    def __init__(self, resolutions: Sequence[Resolution]) -> None:
        if not resolutions or not all(resolution.lengths and resolution.sizes for resolution in resolutions):
            raise UserError("the bucket table is empty: give at least one resolution with one length and one size")
        self.resolutions = sorted(resolutions, key=lambda resolution: -resolution.pixels)
        self.buckets: list[Bucket] = []
        self.first: dict[tuple[int, int], int] = {}
        for r, resolution in enumerate(self.resolutions):
            for k, length in enumerate(self._lengths(resolution)):
                self.first[r, k] = len(self.buckets)
                self.buckets += [
                    Bucket(length.frames, height, width, length.batch_size, f"{resolution.name}/{length.frames}/{key}")
                    for key, (height, width) in resolution.sizes.items()
                ]

    @staticmethod
    def _lengths(resolution: Resolution) -> list[Length]:
        return sorted(resolution.lengths, key=lambda length: -length.frames)

    def assign(
        self,
        numbers: Mapping[str, NDArray[np.int64]],
        fits: Callable[[int], NDArray[np.bool_]],
        *,
        seed: int,
        epoch: int,
    ) -> NDArray[np.int32]:
        """A bucket number per row, -1 for rows unused this epoch.

        `numbers` holds height and width; `fits(frames)` tells which rows have a window of so many frames.
        """
        height, width = numbers["height"], numbers["width"]
        rows = np.arange(len(height), dtype=np.int64)
        out = np.full(len(height), -1, dtype=np.int32)
        pixels = height * width
        ratio = height / np.maximum(width, 1)
        fitting = {frames: fits(frames) for frames in {bucket.frames for bucket in self.buckets}}
        for r, resolution in enumerate(self.resolutions):
            candidates = (out < 0) & (pixels >= 0.8 * resolution.pixels)
            keys = np.asarray([float(key) for key in resolution.sizes])
            considered = candidates.copy()
            for k, length in enumerate(self._lengths(resolution)):
                here = considered & fitting[length.frames]
                if length.keep_length < 1:
                    here &= draws.uniform(seed, epoch, "length", r * 1000 + k, rows) <= length.keep_length
                considered &= ~here
                if length.keep_resolution < 1:
                    here &= draws.uniform(seed, epoch, "resolution", r * 1000 + k, rows) < length.keep_resolution
                chosen = np.flatnonzero(here)
                for part in np.array_split(chosen, max(1, len(chosen) // 500_000)):
                    nearest = np.abs(keys[None] - ratio[part, None]).argmin(axis=1)
                    out[part] = self.first[r, k] + nearest
        return out


def single_bucket(frames: int, height: int, width: int, batch_size: int) -> BucketTable:
    """One shape for every clip that is long enough, whatever its own size (SparseSync, evaluation)."""
    length = Length(frames, batch_size)
    return BucketTable([Resolution(f"{height}x{width}", 0, {f"{height / width:.2f}": (height, width)}, (length,))])

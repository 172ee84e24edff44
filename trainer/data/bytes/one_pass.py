"""From decoded YUV 4:2:0 to the bucket's normalised RGB in one pass: no RGB picture of the clip's own size is ever made.

By definition (`graph`) a picture is converted to 8-bit RGB, resized linearly, moved in colour, cropped, mirrored and normalised.
Resizing and the conversion's matrix are both linear, so here the planes are cut and resized first, and only the bucket's pixels
are converted. The two differ by the definition's rounding to 8 bits, half a level, and by colours that RGB cannot hold, which it
clips before it resizes (`tests/trainer/data/test_one_pass.py`).

Everything is numpy, which computes on the thread that calls it: decoding threads share the cores already.

Legend: H W a clip's pixels, h w the bucket's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from javisc.compiler.media.scaling import Scaler
from javisc.trainer.data.bytes.colour import Colour
from javisc.trainer.data.bytes.framing import Framing

Plane = NDArray[np.float32]

#: BT.601 (ITU-R BT.601-7, 2.5.1): 8-bit limited Y, Cb, Cr to R, G, B in 0..255.
_Y, _C = 255 / 219, 255 / 224
_RV, _BU = 2 * (1 - 0.299), 2 * (1 - 0.114)
TO_RGB = np.asarray([[_Y, 0, _C * _RV], [_Y, -_C * _BU * 0.114 / 0.587, -_C * _RV * 0.299 / 0.587], [_Y, _C * _BU, 0]])
FROM = np.asarray([16.0, 128.0, 128.0])


@dataclass(frozen=True)
class Taps:
    """A linear filter along one axis: output i is the sum over k of `weights[k, i]` times input `places[k, i]`."""

    places: NDArray[np.intp]
    weights: Plane

    @property
    def plain(self) -> slice | None:
        """The stretch of the input that the output is, where nothing is filtered."""
        first = int(self.places[0, 0])
        if len(self.places) > 1 or not np.array_equal(self.places[0], np.arange(first, first + self.places.shape[1])):
            return None
        return slice(first, first + self.places.shape[1])

    @property
    def twice(self) -> int | None:
        """The place in the input, repeated to twice its length, where the output begins; None where it is no stretch of that."""
        first = 2 * int(self.places[0, 0]) + int(self.places.shape[1] > 1 and self.places[0, 1] != self.places[0, 0])
        if len(self.places) > 1 or not np.array_equal(
            self.places[0], np.arange(first, first + self.places.shape[1]) // 2
        ):
            return None
        return first

    def halved(self) -> Taps:
        """The same filter for an axis of half the resolution whose values are repeated."""
        first = self.places.min(axis=0) // 2
        offset = self.places // 2 - first
        weights = np.zeros((int(offset.max()) + 1, len(first)), np.float32)
        for k, row in enumerate(offset):
            weights[row, np.arange(len(first))] += self.weights[k]
        places = np.minimum(first + np.arange(len(weights))[:, None], self.places.max() // 2)
        return Taps(places, weights)


def taps(source: int, scaled: int, first: int, count: int, *, antialias: bool = False, mirror: bool = False) -> Taps:
    """Pixels first … first + count - 1 of an axis of `source` pixels, scaled to `scaled`, linearly between pixel centres.

    `antialias` widens the filter to a triangle of twice the step where it shrinks; beyond the picture its last pixel goes on, as
    in DALI.
    """
    step = source / scaled
    centre = (first + np.arange(count) + 0.5) * step - 0.5
    if antialias and step > 1:
        lowest = np.floor(centre - step).astype(np.intp) + 1
        places = lowest + np.arange(int(np.ceil(2 * step)) + 1)[:, None]
        weights = np.maximum(1 - np.abs(places - centre) / step, 0)
        weights /= weights.sum(axis=0)
    else:
        centre = centre.clip(0, source - 1)
        lowest = np.floor(centre).astype(np.intp)
        places = np.stack([lowest, lowest + 1])
        weights = np.stack([1 - (centre - lowest), centre - lowest])
    used = weights.any(axis=1)
    places, weights = places[used].clip(0, source - 1), weights[used].astype(np.float32)
    if mirror:
        places, weights = places[:, ::-1], weights[:, ::-1]
    return Taps(np.ascontiguousarray(places), np.ascontiguousarray(weights))


class _Resized:
    """One plane's way: the rows that are needed, filtered, then their columns. Its arrays serve every frame of a window."""

    def __init__(self, rows: Taps, columns: Taps) -> None:
        low, high = int(columns.places.min()), int(columns.places.max()) + 1
        self.across = slice(low, high)
        self.rows, self.columns = rows, Taps(columns.places - low, columns.weights)
        self.plain_rows, self.plain_columns = rows.plain, self.columns.plain
        height, width = rows.places.shape[1], columns.places.shape[1]
        self.picked = np.empty((height, high - low), np.uint8)
        #: Where nothing but repeats an unscaled picture's colours: bytes, two a colour, and where the output begins among them.
        self.begin = self.columns.twice if len(rows.places) == 1 and self.plain_columns is None else None
        self.doubled = np.empty((height, high - low) if self.begin is not None else (0, 0), np.uint16)
        self.tall, self.tall_part = (np.empty((height, high - low), np.float32) for _ in range(2))
        self.out, self.part = (np.empty((height, width), np.float32) for _ in range(2))

    def __call__(self, plane: NDArray[np.uint8]) -> Plane:
        """(H, W) uint8 → (h, w) float32, overwritten by the next call."""
        plane = plane[:, self.across]
        if self.begin is not None:
            plane.take(self.rows.places[0], axis=0, out=self.picked, mode="clip")
            np.multiply(self.picked, 257, out=self.doubled, dtype=np.uint16)
            np.copyto(self.out, self.doubled.view(np.uint8)[:, self.begin :][:, : self.out.shape[1]])
            return self.out
        if self.plain_rows is not None:
            np.copyto(self.tall, plane[self.plain_rows])
        else:
            for k, (places, weights) in enumerate(zip(self.rows.places, self.rows.weights, strict=True)):
                plane.take(places, axis=0, out=self.picked, mode="clip")
                into = self.tall_part if k else self.tall
                np.copyto(into, self.picked)  # converted first: numpy is slower at multiplying bytes by floats
                if len(self.rows.places) > 1:
                    into *= weights[:, None]
                if k:
                    self.tall += self.tall_part
        if self.plain_columns is not None:
            return self.tall[:, self.plain_columns]
        for k, (places, weights) in enumerate(zip(self.columns.places, self.columns.weights, strict=True)):
            into = self.part if k else self.out
            self.tall.take(places, axis=1, out=into, mode="clip")
            if len(self.columns.places) > 1:
                into *= weights
            if k:
                self.out += self.part
        return self.out


class OnePass:
    """Frames of one clip, (H, W), as the bucket's pictures.

    `mean` and `std` normalise 0..255 by channel. `colour` is the clip's, None where colours are left alone.
    """

    def __init__(
        self,
        height: int,
        width: int,
        framing: Framing,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        antialias: bool = False,
        colour: Colour | None = None,
    ) -> None:
        self.size = (height, width)
        self.scale = Scaler()
        (top, left), (rows, columns) = framing.corner, framing.crop
        down = taps(height, framing.resize[0], top, rows, antialias=antialias)
        along = taps(width, framing.resize[1], left, columns, antialias=antialias, mirror=framing.mirror)
        small = down.halved(), along.halved()
        self.planes = (_Resized(down, along), _Resized(*small), _Resized(*small))
        matrix, offset = TO_RGB, -TO_RGB @ FROM
        self.first: _Affine | None = None
        if colour is not None:
            self.first = _Affine(matrix, offset, np.zeros(3), np.full(3, 255.0))
            self.rgb = np.empty((3, rows, columns), np.float32)
            moved, shift = colour.affine()
            matrix, offset = moved.astype(np.float64), shift.astype(np.float64)
        scale, zero = 1 / np.asarray(std, np.float64), np.asarray(mean, np.float64)
        self.last = _Affine(matrix * scale[:, None], (offset - zero) * scale, -zero * scale, (255 - zero) * scale)
        self.work = np.empty((3, rows, columns), np.float32)

    def __call__(self, frame: av.VideoFrame, out: NDArray[np.generic]) -> None:
        """Write a frame into `out` (3, h, w), float or uint8, which is rounded to. ValueError if it has another size."""
        if (frame.height, frame.width) != self.size:
            raise ValueError(f"a frame of {frame.height}x{frame.width} in a clip of {self.size[0]}x{self.size[1]}")
        planes: Sequence[Plane] = [
            resized(plane) for resized, plane in zip(self.planes, _planes(frame, self.scale), strict=True)
        ]
        if self.first is not None:
            self.first(planes, self.rgb, self.work)
            planes = list(self.rgb)
        self.last(planes, out, self.work)


class _Affine:
    """out[c] = clip(sum over k of matrix[c, k] · planes[k] + offset[c], low[c], high[c])."""

    def __init__(
        self,
        matrix: NDArray[np.float64],
        offset: NDArray[np.float64],
        low: NDArray[np.float64],
        high: NDArray[np.float64],
    ) -> None:
        self.matrix, self.offset = matrix.astype(np.float32), offset.astype(np.float32)
        self.low, self.high = low.astype(np.float32), high.astype(np.float32)

    def __call__(self, planes: Sequence[Plane], out: NDArray[np.generic], work: Plane) -> None:
        total, part, grey = work
        shared = bool((self.matrix[:, 0] == self.matrix[0, 0]).all())  # luma's share, unless colours are moved
        if shared:
            np.multiply(planes[0], self.matrix[0, 0], out=grey)
        for channel, row in enumerate(self.matrix):
            if not shared:
                np.multiply(planes[0], row[0], out=grey)
            so_far = grey
            for plane, factor in zip(planes[1:], row[1:], strict=True):
                if factor:
                    np.multiply(plane, factor, out=part)
                    so_far = np.add(so_far, part, out=total)
            np.add(so_far, self.offset[channel], out=total)
            if out.dtype == np.uint8:
                np.rint(total, out=total)
            np.clip(total, self.low[channel], self.high[channel], out=out[channel], casting="unsafe")


def _planes(frame: av.VideoFrame, scale: Scaler) -> list[NDArray[np.uint8]]:
    """Y (H, W), Cb and Cr of half the size, of BT.601 and limited range; anything else is converted to it first."""
    if frame.format.name != "yuv420p" or frame.color_range == 2:
        frame = scale(frame, format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
    return [np.frombuffer(memoryview(p), np.uint8).reshape(p.height, p.line_size)[:, : p.width] for p in frame.planes]

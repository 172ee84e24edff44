"""A sample of the luma of decoded pictures, straight from the decoder's buffer: what quality columns are made of."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from javisc.compiler.media.scaling import Scaler

#: A sampled luma plane: 0 is black, 1 is white.
Luma: TypeAlias = NDArray[np.float32]
#: Points of a side.
POINTS = 64
# Ranges as ITU-T H.273 numbers them for FFmpeg.
LIMITED, FULL = 1, 2
#: Formats whose first plane is luma alone.
_LUMA_FIRST = ("yuv4", "yuvj4", "yuva4", "nv12", "nv16", "nv21", "p010", "p210", "gray")


def is_full(frame: VideoFrame) -> bool:
    """True if luma uses 0 to 255 (JPEG) and not 16 to 235 (MPEG)."""
    return int(frame.color_range) == FULL or frame.format.name.startswith("yuvj")


class _Kind(NamedTuple):
    """What depends on a frame's kind alone: how its luma is stored, and which points of it are taken."""

    scaled: bool
    dtype: type[np.generic]
    rows: range
    columns: range
    black: np.float32
    scale: np.float32


class LumaSampler:
    """Samples about 64 x 64 points of one frame after another, scaled so that black is 0 and white is 1."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        self._kind: _Kind | None = None
        self._scaler = Scaler()

    def __call__(self, frame: VideoFrame) -> Luma:
        """The sample of a frame of any format, an array of its own."""
        key = (frame.format.name, frame.width, frame.height, frame.color_range)
        if self._kind is None or key != self._key:
            self._key, self._kind = key, _kind_of(frame)
        kind = self._kind
        if kind.scaled:
            frame = self._scaler(frame, width=min(frame.width, 128), height=min(frame.height, 128), format="gray")
        plane = frame.planes[0]
        line, item = plane.line_size, np.dtype(kind.dtype).itemsize
        # Where lines go upwards, the buffer begins with the last one.
        first = kind.rows.start * line if line >= 0 else (kind.rows.start + 1 - frame.height) * line
        points = np.ndarray(
            (len(kind.rows), len(kind.columns)),
            kind.dtype,
            cast(Any, plane),
            first + kind.columns.start * item,
            (kind.rows.step * line, kind.columns.step * item),
        ).astype(np.float32)
        points -= kind.black
        points *= kind.scale
        return points


def _kind_of(frame: VideoFrame) -> _Kind:
    name, width, height, full = frame.format.name, frame.width, frame.height, is_full(frame)
    component = frame.format.components[0] if name.startswith(_LUMA_FIRST) else None
    if component is None or frame.format.is_big_endian:
        width, height, depth, scaled = min(width, 128), min(height, 128), 8, True
        full = True
    else:
        depth, scaled = component.bits, False
        full = full or name == "gray"
    dtype: type[np.generic] = np.uint16 if depth > 8 else np.uint8
    depth += 16 - depth if name.startswith("p0") and not scaled else 0
    black, span = (0.0, 2.0**depth - 1) if full else (2.0 ** (depth - 4), 219 * 2.0 ** (depth - 8))
    return _Kind(scaled, dtype, _points(height), _points(width), np.float32(black), np.float32(1 / span))


def _points(size: int) -> range:
    """The lines or columns of so many that are taken."""
    step = max(size // POINTS, 1)
    return range(step // 2, size, step)[:POINTS]

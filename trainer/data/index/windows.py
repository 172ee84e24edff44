"""Which part of a clip a batch takes: pure functions of metadata and of the sample's own draws.

Frames and samples share one clock (a compiled clip's audio sample j sounds at j / rate seconds, frame i shows at i / fps), so the
sound of a window of frames is the same stretch of time, to half a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from javisc.trainer.data.index import draws


@dataclass(frozen=True)
class Window:
    """Frames first, first + stride, … (count of them) and samples [audio_first, audio_first + audio_count).

    `offset` is how much later than the picture the sound was taken, in seconds; None where a policy does not shift it. `detail`
    is whatever else a policy has decided.
    """

    first: int
    count: int
    stride: int
    audio_first: int
    audio_count: int
    offset: float | None = None
    detail: Any = None


def samples_of(first: int, frames: int, fps: Fraction, rate: int) -> tuple[int, int]:
    """(first sample, number of samples) of `frames` frames from frame `first`: 3 frames at 24 fps are 2000 at 16 kHz.

    The number depends on the frame count alone, so that a batch is rectangular.
    """
    return round(first * rate / fps), round(frames * rate / fps)


class WindowPolicy(Protocol):
    """Decides windows for a batch's rows."""

    def windows(
        self,
        rows: NDArray[np.int64],
        numbers: Mapping[str, NDArray[np.int64]],
        reals: Mapping[str, NDArray[np.float64]],
        words: tuple[draws.Word, ...],
        count: int,
        stride: int,
    ) -> list[Window]: ...

    def feasible(self, numbers: Mapping[str, NDArray[np.int64]], count: int, stride: int) -> NDArray[np.bool_]: ...


@dataclass(frozen=True)
class RandomWindow:
    """Every legal start is equally likely. `centre=True` takes the middle instead (validation)."""

    fps: Fraction = Fraction(24)
    centre: bool = False

    def feasible(self, numbers: Mapping[str, NDArray[np.int64]], count: int, stride: int) -> NDArray[np.bool_]:
        """Clips that have `count` frames, `stride` apart."""
        return numbers["num_frames"] >= (count - 1) * stride + 1

    def windows(
        self,
        rows: NDArray[np.int64],
        numbers: Mapping[str, NDArray[np.int64]],
        reals: Mapping[str, NDArray[np.float64]],
        words: tuple[draws.Word, ...],
        count: int,
        stride: int,
    ) -> list[Window]:
        """One window per row; `words` name the epoch, the row completes them."""
        room = numbers["num_frames"][rows] - ((count - 1) * stride + 1) + 1
        starts = room // 2 if self.centre else draws.integers(room, *words, "window", rows)
        rates = numbers["audio_fps"][rows]
        return [
            Window(int(start), count, stride, *samples_of(int(start), count * stride, self.fps, int(rate)))
            for start, rate in zip(starts, rates, strict=True)
        ]

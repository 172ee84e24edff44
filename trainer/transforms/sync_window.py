"""Which part of a clip becomes a sample: all of SparseSync's decisions that need no media, only lengths and rates.

Times are seconds, positions whole frames or samples. Seconds become positions by truncation in float64, without rounding aid:
the published test rows depend on it (1.16 s at 25 fps is frame 28).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from javisc.trainer.transforms.draws import Draws


class InfeasibleCrop(ValueError):
    """The clip is too short for what was asked of it."""


def position(seconds: float, rate: float) -> int:
    """Seconds → frames or samples, truncated towards zero."""
    return int(seconds * rate)


@dataclass(frozen=True)
class ClassGrid:
    """A symmetric grid of offsets: `classes` points from -`max_off_sec` to it, or the centres of as many cells (uniform)."""

    max_off_sec: float
    classes: int
    kind: str = "linspace"

    def __post_init__(self) -> None:
        if self.kind not in ("linspace", "uniform"):
            raise ValueError(f"grid kind {self.kind!r}: it may be linspace or uniform")
        # Two points of a line are both extremes; the centres of two cells say early or late.
        least = 3 if self.kind == "linspace" else 2
        if self.classes < least:
            raise ValueError(f"classes={self.classes}: a {self.kind} grid of offsets needs at least {least}")

    @property
    def values(self) -> NDArray[np.float32]:
        """The offsets in seconds, computed in float64 and rounded to float32."""
        if self.kind == "linspace":
            grid = np.linspace(-self.max_off_sec, self.max_off_sec, self.classes)
        else:
            cell = 2 * self.max_off_sec / self.classes
            grid = np.linspace(-self.max_off_sec - cell / 2, self.max_off_sec + cell / 2, self.classes + 2)[1:-1]
        return grid.astype(np.float32)

    def nearest(self, offset_sec: float) -> tuple[float, int]:
        """The grid's value and class nearest to an offset; float32 decides, the first minimum wins."""
        values = self.values
        target = int(np.argmin(np.abs(values - np.float32(offset_sec))))
        return float(values[target]), target

    def check_jitter(self, jitter_sec: float) -> None:
        """Raise ValueError if a jitter could carry the sound over to the next class."""
        half = (self.values[1] - self.values[0]) / np.float32(2)
        # The tolerance lets decimals through that float32 puts a bit above half a step.
        if np.float32(jitter_sec - 1e-6) > half:
            raise ValueError(
                f"audio_jitter_sec={jitter_sec}: at most half of the grid's step, {half:.4g} s, keeps the class true"
            )


@dataclass(frozen=True)
class Lengths:
    """How much a clip holds."""

    frames: int
    samples: int
    fps: float
    rate: int


@dataclass(frozen=True)
class Window:
    """The crop of a clip: which frames and samples, and what is true of them. Without offsets the others are None.

    `sync_target`: 1 where picture and sound can be synchronised, 0 where they are of different moments; None if it is not asked.
    """

    v_first: int
    v_len: int
    a_first: int
    a_len: int
    offset_sec: float | None = None
    v_start_sec: float | None = None
    offset_label: float | None = None
    offset_target: int | None = None
    sync_target: int | None = None


def equalify(clip: Lengths, max_len_sec: float = 10) -> Lengths:
    """Cut both streams on the right to the shorter one's length, and to `max_len_sec`. Both are taken to start together."""
    seconds = min(max_len_sec, clip.samples / clip.rate, clip.frames / clip.fps)
    frames = int(clip.fps * seconds)
    samples = int(clip.rate // clip.fps * frames)
    return Lengths(min(frames, clip.frames), min(samples, clip.samples), clip.fps, clip.rate)


@dataclass(frozen=True)
class CropRule:
    """How windows are cut: `crop_len_sec` of both streams, the sound later by an offset of the grid."""

    grid: ClassGrid
    crop_len_sec: float = 5.0
    jitter_sec: float = 0.0

    def __post_init__(self) -> None:
        self.grid.check_jitter(self.jitter_sec)

    def _sizes(self, clip: Lengths) -> tuple[int, int, int, int]:
        """Whole rates, and the crop's frames and samples."""
        v_fps, a_fps = int(clip.fps), int(clip.rate)
        v_len, a_len = position(self.crop_len_sec, v_fps), position(self.crop_len_sec, a_fps)
        if v_len / v_fps != self.crop_len_sec or a_len / a_fps != self.crop_len_sec:
            raise InfeasibleCrop(
                f"crop_len_sec={self.crop_len_sec} is no whole number of frames at {v_fps} fps and {a_fps} Hz"
            )
        return v_fps, a_fps, v_len, a_len

    def fixed(self, clip: Lengths, offset_sec: float, v_start_sec: float) -> Window:
        """The window of a given offset and start, without jitter: validation, test and prediction.

        The sound starts by the time given, not by the frame it was truncated to. Raises InfeasibleCrop beyond either end.
        """
        v_fps, a_fps, v_len, a_len = self._sizes(clip)
        if not (isfinite(offset_sec) and isfinite(v_start_sec)):
            raise InfeasibleCrop(f"an offset of {offset_sec} s from {v_start_sec} s is nowhere in a clip")
        offset_sec = round(float(offset_sec), 2)
        v_first = position(v_start_sec, v_fps)
        a_first = position(v_start_sec + offset_sec, a_fps)
        return self._window(clip, v_first, v_len, a_first, a_len, offset_sec, v_start_sec)

    def random(self, clip: Lengths, draws: Draws) -> Window:
        """A window of a random offset, start and jitter. Raises InfeasibleCrop if the clip is too short for the offset drawn."""
        return self._random(clip, draws, [draws.choice("offset", [float(value) for value in self.grid.values])], [""])[
            0
        ]

    def synchronizable(self, clip: Lengths, draws: Draws) -> Window:
        """Half of the time a window of a random offset of the grid, else one whose sound is a whole crop earlier or later.

        `sync_target` says which. Raises InfeasibleCrop if the clip is too short for what was drawn.
        """
        together = draws.uniform("synchronizable", 0.0, 1.0) < 0.5
        grid = [float(value) for value in self.grid.values]
        offset = draws.choice("offset", grid if together else [-self.crop_len_sec, self.crop_len_sec])
        return replace(self._random(clip, draws, [offset], [""])[0], sync_target=int(together))

    def several(self, clip: Lengths, draws: Draws, count: int) -> list[Window]:
        """`count` windows of one picture crop, at as many different offsets, each with its own jitter.

        The first offset is any of the grid, the others those that fit into the clip with it: in a short clip, of the same sign.
        """
        if not 1 <= count <= (self.grid.classes + 1) // 2:
            raise ValueError(f"{count} different offsets of a grid of {self.grid.classes}: give at most half of them")
        room = (clip.frames / int(clip.fps)) - self.crop_len_sec + 1e-6
        offsets: list[float] = []
        for index in draws.order("offsets", self.grid.classes):
            wanted = [*offsets, float(self.grid.values[index])]
            if not offsets or max(0.0, *wanted) - min(0.0, *wanted) <= room:
                offsets = wanted
            if len(offsets) == count:
                break
        return self._random(clip, draws, offsets, [f"_{number}" for number in range(len(offsets))])

    def _random(self, clip: Lengths, draws: Draws, offsets: list[float], names: list[str]) -> list[Window]:
        """Windows at the given offsets from one random start that suits all of them."""
        v_fps, a_fps, v_len, a_len = self._sizes(clip)
        offsets = [round(offset, 2) for offset in offsets]
        v_max = (clip.frames - v_len) / v_fps
        low, high = max(0, -min(offsets)), min(v_max, v_max - max(offsets))
        # Offsets that take exactly the room there is may miss it by the last bit.
        if high < low - 1e-6:
            raise InfeasibleCrop(
                f"{clip.frames / v_fps:.2f} s are too short for {self.crop_len_sec} s and an offset of "
                f"{' and '.join(str(offset) for offset in offsets)} s"
            )
        v_first = position(draws.uniform("v_start", low, max(low, high)), v_fps)
        # The start that the frame really has, from which the sound is counted.
        v_start_sec = v_first / v_fps
        if position(v_start_sec + min(offsets), a_fps) < 0 and v_first + 1 + v_len <= clip.frames:
            # An offset between two frames, and the start truncated to the earlier one: the next frame keeps the offset true.
            v_first += 1
            v_start_sec = v_first / v_fps
        windows = []
        for offset_sec, name in zip(offsets, names, strict=True):
            a_first = position(v_start_sec + offset_sec, a_fps)
            jitter = position(self.jitter_sec, a_fps)
            if jitter > 0:
                left, right = min(a_first, jitter), min(clip.samples - a_len - a_first, jitter)
                if right < -left:
                    raise InfeasibleCrop(f"the sound's {clip.samples} samples end before a crop at {a_first}")
                # A start slightly before the sound makes `left` negative: the draw then begins where the sound does.
                a_first += draws.integer(f"jitter{name}", -left, right)
            windows.append(self._window(clip, v_first, v_len, a_first, a_len, offset_sec, v_start_sec))
        return windows

    def unshifted(self, clip: Lengths, draws: Draws | None) -> Window:
        """A window without offset or label: anywhere if there are draws, else in the middle."""
        v_fps, a_fps, v_len, a_len = self._sizes(clip)
        room = clip.frames - v_len
        if room < 0:
            raise InfeasibleCrop(f"{clip.frames} frames are too short for {v_len}")
        v_first = round(room / 2) if draws is None or not room else draws.integer("v_start", 0, room)
        a_first = position(v_first / v_fps, a_fps)
        if a_first + a_len > clip.samples:
            raise InfeasibleCrop(f"samples {a_first} to {a_first + a_len} of {clip.samples}")
        return Window(v_first, v_len, a_first, a_len)

    def _window(
        self, clip: Lengths, v_first: int, v_len: int, a_first: int, a_len: int, offset_sec: float, v_start_sec: float
    ) -> Window:
        # Truncating the picture's start can put the sound's up to a frame before zero; that much is moved, more is refused.
        if -int(clip.rate) // int(clip.fps) <= a_first < 0:
            a_first = 0
        for what, first, length, have in (
            ("frames", v_first, v_len, clip.frames),
            ("samples", a_first, a_len, clip.samples),
        ):
            if first < 0 or first + length > have:
                raise InfeasibleCrop(
                    f"{what} {first} to {first + length} of {have}: offset {offset_sec} s from {v_start_sec:.2f} s"
                )
        label, target = self.grid.nearest(offset_sec)
        return Window(v_first, v_len, a_first, a_len, offset_sec, v_start_sec, label, target)


def kept_part(length: int, rate: float, keep_sec: float, draws: Draws, name: str) -> tuple[int, int]:
    """A random part of `keep_sec` within a crop, as [first, stop): what freezing and corrupting leave alone."""
    keep = position(keep_sec, rate)
    if keep > length:
        raise InfeasibleCrop(f"{keep_sec} s to keep do not fit in a crop of {length / rate:.2f} s")
    first = draws.integer(name, 0, length - keep)
    return first, first + keep

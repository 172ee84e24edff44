"""Runs: decoded frames that follow each other, handled together so that a minute of sound is no thousand small steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from javisc.compiler.media.stamps import Sound

#: Samples that are handled together.
RUN = 8192


def to_float(samples: NDArray[Any]) -> Sound:
    """Decoded samples of any type as float32 in -1 to 1. What is no number becomes silence."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) * np.float32(0.5 ** (8 * samples.dtype.itemsize - 1))
    with np.errstate(over="ignore"):
        floats = samples.astype(np.float32)
    return floats if np.isfinite(floats).all() else np.nan_to_num(floats, nan=0.0, posinf=0.0, neginf=0.0)


class Stamp(NamedTuple):
    """A frame's time stamp as its container has it, `pts` units of `base` seconds: fractions of each cost what decoding does."""

    pts: int
    base: Fraction

    @classmethod
    def of(cls, frame: AudioFrame) -> Stamp | None:
        """The stamp of a frame, None where it has none."""
        stamp, base = frame.pts, frame.time_base  # each look makes a fraction anew
        return None if stamp is None or base is None else cls(stamp, base)

    @property
    def time(self) -> Fraction:
        """Seconds."""
        return self.pts * self.base

    def since(self, other: Stamp) -> float:
        """Seconds from another stamp to this one, rounded once."""
        if self.base != other.base:
            return float(self.time - other.time)
        return (self.pts - other.pts) * self.base.numerator / self.base.denominator


@dataclass
class Run:
    """Decoded frames of one kind that follow each other without a gap. They are converted only where they are heard."""

    kind: tuple[int, str, str]
    stamp: Stamp | None
    planar: bool
    names: tuple[str, ...]
    frames: list[AudioFrame] = field(default_factory=list)
    samples: int = 0

    @property
    def over(self) -> bool:
        """True if it is long enough: the next frame begins another one."""
        return self.samples >= RUN

    @property
    def time(self) -> Fraction | None:
        """Seconds at which it begins, where that is known."""
        return None if self.stamp is None else self.stamp.time

    def continues(self, stamp: Stamp | None) -> bool:
        """True if a frame of that stamp follows the run's last sample, as closely as containers tell times."""
        if stamp is None or self.stamp is None:
            return stamp is None
        return self.follow(stamp.since(self.stamp), self.samples / self.kind[0])

    @staticmethod
    def follow(since: float, length: float) -> bool:
        """True if what begins `since` seconds after a run's begin continues it after its `length` seconds."""
        return abs(since - length) < 0.0015

    def sound(self) -> Sound:
        """All samples (channels, n) in -1 to 1."""
        joined = np.concatenate([frame.to_ndarray() for frame in self.frames], axis=1)
        return to_float(joined if self.planar else joined.reshape(-1, len(self.names)).T)

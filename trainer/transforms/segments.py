"""Where the segments of a clip lie: short pieces of picture and sound, each to be seen and heard alone.

Positions are whole frames and samples, counted from the start of what is cut; seconds become positions by truncation in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

from javisc.trainer.transforms.draws import Draws
from javisc.trainer.transforms.sync_window import InfeasibleCrop, Lengths, position


@dataclass(frozen=True)
class Segments:
    """The segments' first frames and samples, and how many of both each has."""

    v_starts: tuple[int, ...]
    a_starts: tuple[int, ...]
    v_size: int
    a_size: int

    @property
    def covered(self) -> tuple[int, int]:
        """Frames and samples from the first segment's start to the last one's end."""
        return self.v_starts[-1] - self.v_starts[0] + self.v_size, self.a_starts[-1] - self.a_starts[0] + self.a_size


@dataclass(frozen=True)
class SegmentRule:
    """Segments of `frames` frames whose starts are `step` of a segment apart; `count` of them, None for all that fit."""

    frames: int = 16
    step: float = 0.5
    count: int | None = 14

    def sizes(self, fps: float, rate: float) -> tuple[int, int, int, int]:
        """A segment's frames and samples, and the steps between segments in both. The sound's step follows from its size."""
        a_size = position(self.frames / int(fps), int(rate))
        return self.frames, a_size, int(self.step * self.frames), int(self.step * a_size)

    def span(self, count: int) -> int:
        """Frames that `count` segments cover."""
        return int((count * self.step + 1 - self.step) * self.frames)

    def cut(self, clip: Lengths, draws: Draws | None, jitter_sec: float = 0.0) -> Segments:
        """The segments of a clip: from a random frame on if there are draws, else in the middle.

        With draws, a jitter of up to so many seconds moves all sounds together, as far as there is room. Raises InfeasibleCrop.
        """
        fps, rate = int(clip.fps), int(clip.rate)
        v_size, a_size, v_step, a_step = self.sizes(fps, rate)
        room = min((clip.frames - v_size) // v_step, (clip.samples - a_size) // a_step) + 1
        count = room if self.count is None else self.count
        if count < 1 or count > room:
            raise InfeasibleCrop(
                f"{clip.frames} frames and {clip.samples} samples hold {max(room, 0)} segments of {self.frames} frames, "
                f"{max(count, 1)} are needed"
            )
        free = clip.frames - self.span(count)
        start = free // 2 if draws is None else draws.integer("segments", 0, free)
        first = position(start / fps, rate)
        if draws is not None and jitter_sec > 0:
            ending = clip.samples - first - (a_step * (count - 1) + a_size)
            most = min(position(jitter_sec, rate), first, ending)
            first += draws.integer("segments_jitter", -most, most)
        steps = range(count)
        return Segments(
            tuple(start + k * v_step for k in steps), tuple(first + k * a_step for k in steps), v_size, a_size
        )

"""One clock for picture and sound: exact arithmetic on presentation times.

Time zero of a sample is the presentation time of its first video frame. Tick k of the grid lies at k / fps. All times are
`Fraction` seconds; nothing is rounded before the one rounding that a definition below asks for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Generic, TypeVar

Item = TypeVar("Item")


def nearest_tick(time: Fraction, fps: Fraction) -> int:
    """The tick nearest to `time` seconds; halfway goes up. Negative times give negative ticks."""
    ticks, parts = time.numerator * fps.numerator, time.denominator * fps.denominator
    return (2 * ticks + parts) // (
        2 * parts
    )  # floor(time · fps + 1/2) in integers: fractions would cost ten times as much


def samples_for(frames: int, sample_rate: int, fps: Fraction) -> int:
    """Audio samples per channel that belong to `frames` ticks: round(frames * sample_rate / fps), halves to even."""
    return round(Fraction(frames * sample_rate) / fps)


class Hold(Generic[Item]):
    """Sample-and-hold onto the grid: each item appears at its nearest tick and holds until the next one appears.

    Of several items at one tick the last is shown: what happens in the source shows no later than half a tick after it
    happened, which "the nearest item wins" would break. Items must come in order of their times.
    """

    def __init__(self, fps: Fraction) -> None:
        self.fps = fps
        self._item: Item | None = None
        self._tick = 0

    def push(self, item: Item, time: Fraction) -> Iterator[tuple[int, Item]]:
        """Add the item presented at `time` (seconds from zero); yield the (tick, item) pairs that are settled by it.

        The first item takes tick 0 at the latest: a start after zero is held backwards.
        """
        tick = max(nearest_tick(time, self.fps), 0)
        if self._item is None:
            self._tick = 0
        elif tick > self._tick:
            for settled in range(self._tick, tick):
                yield settled, self._item
            self._tick = tick
        self._item = item

    def finish(self, end: Fraction) -> Iterator[tuple[int, Item]]:
        """Yield the last item up to the tick nearest to `end`, once at least."""
        if self._item is not None:
            for settled in range(self._tick, max(nearest_tick(end, self.fps), self._tick + 1)):
                yield settled, self._item
            self._item = None


class Slots:
    """Presentation times for containers that store none (AVI): the n-th picture shown takes the time of the n-th packet.

    FFmpeg guesses such times from the decoder's delay, which is wrong by a frame for H.264 without B-frames.
    """

    #: Packets after which surplus times are forgotten: a decoder that swallowed a picture must not shift all that follow.
    PATIENCE = 8

    def __init__(self) -> None:
        self._times: deque[Fraction] = deque()
        self._surplus = 0

    def add(self, time: Fraction) -> None:
        """A packet with this decoding time goes to the decoder."""
        self._times.append(time)

    def drop(self) -> None:
        """The last packet did not decode."""
        if self._times:
            self._times.pop()

    def next(self) -> Fraction | None:
        """The time of the next picture, in order of presentation; None where the decoder gives more pictures than packets."""
        return self._times.popleft() if self._times else None

    def settle(self, delay: int) -> None:
        """After each packet: the decoder holds back `delay` pictures now."""
        self._surplus = self._surplus + 1 if len(self._times) > delay else 0
        if self._surplus > self.PATIENCE:
            while len(self._times) > delay:
                self._times.popleft()

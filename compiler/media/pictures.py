"""Presentation times of decoded pictures: edits, missing and unordered time stamps, and what was learnt about the rate."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from math import floor
from typing import NamedTuple

import av
from av.video.frame import VideoFrame

from javisc.compiler.media.clock import Slots
from javisc.compiler.media.edits import Edit
from javisc.compiler.reasons import Rejected

#: The edit's end is written in units as coarse as a millisecond.
END_TOLERANCE = Fraction(2, 1000)
#: Containers that store how long a picture stands; elsewhere FFmpeg reckons it from the time stamps around.
STATING = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "nut", "gif")
#: A reckoned duration longer than this, and than any interval before, is no duration.
MAX_RECKONED = Fraction(1)
#: More pictures out of order than this share, and the file is refused.
MAX_UNORDERED = 0.1


class _Scale(NamedTuple):
    """Time stamps in units of `base` seconds as times after an edit: stamp n is presented at (n · factor + shift) / parts.

    last: the last stamp inside of the edit, None where it has no end. Whole numbers: a film has as many stamps as pictures.
    """

    base: Fraction
    factor: int
    shift: int
    parts: int
    last: int | None

    @classmethod
    def of(cls, base: Fraction, edit: Edit) -> _Scale:
        last = None if edit.end is None else floor((edit.end - END_TOLERANCE - edit.shift) / base)
        (up, down), shift = base.as_integer_ratio(), edit.shift
        return cls(base, up * shift.denominator, shift.numerator * down, down * shift.denominator, last)

    def time(self, stamp: int) -> Fraction:
        """Seconds on the container's clock."""
        return Fraction(stamp * self.factor + self.shift, self.parts)


class PictureClock:
    """Gives every decoded picture its time on the container's clock, in order; drops what is not presented.

    A picture stands for `max_hold` seconds at most: two that are further apart have no common clock, nor have two in reverse by
    more than a second.
    """

    def __init__(self, stream: av.VideoStream, edit: Edit, slots: Slots | None, max_hold: Fraction) -> None:
        self.rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.edit = edit
        self.slots = slots
        self.max_hold = max_hold
        self.stated = stream.container.format.name in STATING
        self.first: Fraction | None = None
        self.last = Fraction(0)
        self.count = 0
        self.unordered = 0
        self.past_end = False
        self._early: VideoFrame | None = None
        self._hold = (0, Fraction(0))  # how long the last picture stands by its own duration, and the unit of that
        self._previous: tuple[int, Fraction] | None = None  # time stamp and its unit
        self._clipped = 0
        self._even_from = Fraction(0)
        self._longest = Fraction(0)
        self._shortest: Fraction | None = None
        self._intervals: dict[Fraction, int] = {}
        self._units = 2 * (stream.time_base or Fraction(1, 1000))
        self._scale: _Scale | None = None
        self._stamp: int | None = None  # of the last picture, in units of `_scale`
        self._step: int | None = None  # from the last but one picture to the last, in such units, and its seconds
        self._interval = Fraction(0)
        self._more = 0  # so many intervals like it are still to be counted

    def stamp(self, frame: VideoFrame) -> None:
        """Write the presentation time into `frame.pts`, whatever the decoder left there. Call it in the decoder's order."""
        slot = None if self.slots is None else self.slots.next()
        if slot is None and (stamp := frame.pts) is not None and (unit := frame.time_base) is not None:
            self._previous = stamp, unit
            return
        base = frame.time_base or Fraction(1, 90000)
        if slot is not None:
            frame.pts = round(slot / base)
        elif frame.pts is None and frame.dts is not None:
            frame.pts = frame.dts
        elif frame.pts is None:
            previous = -1 / self.rate if self._previous is None else self._previous[0] * self._previous[1]
            frame.pts = round((previous + 1 / self.rate) / base)
        frame.time_base = base
        self._previous = None if frame.pts is None else (frame.pts, base)

    def place(self, frame: VideoFrame) -> Iterator[tuple[VideoFrame, Fraction]]:
        """Yield (picture, time) for what is presented, in order. Raises `Rejected` where the times leap."""
        stamp, base = frame.pts, frame.time_base
        assert stamp is not None and base is not None
        if self._scale is None or self._scale.base != base:
            self._scale, self._stamp, self._step = _Scale.of(base, self.edit), None, None
        scale = self._scale
        hold = (frame.duration or 0), base
        if scale.last is not None and stamp > scale.last:
            self.past_end = True
            return
        time = scale.time(stamp)
        start = self.edit.start
        if self.first is None and start is not None and time < start:
            self._early, self._hold = frame, hold  # it is on the screen when the edit begins, if nothing later is
            return
        if self._early is not None:
            early, self._early = self._early, None
            if start is not None and time > start:
                yield early, self._accept(start)
                self._clipped = 1  # the interval that follows says nothing of the rate
        step = None if self._stamp is None else stamp - self._stamp
        if (step is None or step <= 0) and self.first is not None and 0 <= self.last - time <= 1:
            self.unordered += 1
            return
        self._hold = hold
        if step is not None and step > 0 and step == self._step:  # as long as the interval before, which was judged
            self._more += 1
            self.last, self._stamp = time, stamp
            self.count += 1
        else:
            self._accept(time)
            self._stamp, self._step = stamp, step if self.count > 2 else None
        yield frame, time

    def _accept(self, time: Fraction) -> Fraction:
        self._settle()
        self._stamp = self._step = None
        if self.first is None:
            self.first = self._even_from = time
        else:
            interval = time - self.last
            if interval > self.max_hold or interval < 0:
                more = f": more than --max-hold {float(self.max_hold):g}" if interval > 0 else ""
                raise Rejected(
                    "timestamps", f"pictures at {float(self.last):.3f} s and then at {float(time):.3f} s{more}"
                )
            if self._clipped and self.count == 1:
                self._even_from = time
            else:
                self._longest = max(self._longest, interval)
                self._shortest = interval if self._shortest is None else min(self._shortest, interval)
                self._interval, self._more = interval, 1
        self.last = time
        self.count += 1
        return time

    def _settle(self) -> None:
        """Count the intervals that are still to be counted."""
        if self._more and (self._interval in self._intervals or len(self._intervals) < 4096):
            self._intervals[self._interval] = self._intervals.get(self._interval, 0) + self._more
        self._more = 0

    def rest(self) -> Iterator[tuple[VideoFrame, Fraction]]:
        """At the end: the picture that was waiting for the edit to begin."""
        if self._early is not None and self.edit.start is not None:
            early, self._early = self._early, None
            yield early, self._accept(self.edit.start)

    @property
    def end(self) -> Fraction:
        """When the last picture goes: after its own duration, `max_hold` at most; after the usual interval if none is known."""
        self._settle()
        usual = (
            max(self._intervals, key=lambda interval: self._intervals[interval]) if self._intervals else 1 / self.rate
        )
        longest = self.max_hold if self.stated else max(self._longest, MAX_RECKONED)
        hold = self._hold[0] * self._hold[1]
        credible = hold > 0 and (self.stated or hold <= longest)
        end = self.last + (min(hold, longest) if credible else usual)
        return end if self.edit.end is None else min(end, max(self.edit.end, self.last))

    @property
    def fps(self) -> float | None:
        """Pictures per second between the first and the last."""
        span, intervals = self.last - self._even_from, self.count - 1 - self._clipped
        return float(intervals / span) if intervals > 0 and span > 0 else None

    @property
    def variable(self) -> bool:
        """True if intervals differ by more than the container's rounding of time stamps."""
        if self._shortest is None:
            return False
        return self._longest - self._shortest > self._units + Fraction(1, 1000)

    def check(self) -> None:
        """Raise `Rejected` if too many pictures came out of order."""
        if self.unordered > MAX_UNORDERED * (self.count + self.unordered):
            raise Rejected(
                "timestamps", f"{self.unordered} of {self.count + self.unordered} pictures come out of order"
            )

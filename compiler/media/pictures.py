"""Presentation times of decoded pictures: edits, missing and unordered time stamps, and what was learnt about the rate."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

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
        self._hold = Fraction(0)
        self._previous: Fraction | None = None
        self._clipped = 0
        self._even_from = Fraction(0)
        self._longest = Fraction(0)
        self._shortest: Fraction | None = None
        self._intervals: dict[Fraction, int] = {}
        self._units = 2 * (stream.time_base or Fraction(1, 1000))

    def stamp(self, frame: VideoFrame) -> None:
        """Write the presentation time into `frame.pts`, whatever the decoder left there. Call it in the decoder's order."""
        slot = None if self.slots is None else self.slots.next()
        base = frame.time_base or Fraction(1, 90000)
        if slot is not None:
            frame.pts = round(slot / base)
        elif frame.pts is None and frame.dts is not None:
            frame.pts = frame.dts
        elif frame.pts is None:
            previous = -1 / self.rate if self._previous is None else self._previous
            frame.pts = round((previous + 1 / self.rate) / base)
        frame.time_base = base
        self._previous = frame.pts * base if frame.pts is not None else None

    def place(self, frame: VideoFrame) -> Iterator[tuple[VideoFrame, Fraction]]:
        """Yield (picture, time) for what is presented, in order. Raises `Rejected` where the times leap."""
        assert frame.pts is not None and frame.time_base is not None
        time = frame.pts * frame.time_base + self.edit.shift
        hold = (frame.duration or 0) * frame.time_base
        if self.edit.end is not None and time > self.edit.end - END_TOLERANCE:
            self.past_end = True
            return
        start = self.edit.start
        if start is not None and time < start and self.first is None:
            self._early, self._hold = frame, hold  # it is on the screen when the edit begins, if nothing later is
            return
        if self._early is not None:
            early, self._early = self._early, None
            if start is not None and time > start:
                yield early, self._accept(start)
                self._clipped = 1  # the interval that follows says nothing of the rate
        if self.first is not None and time - self.last <= 0 and time - self.last >= -1:
            self.unordered += 1
            return
        self._hold = hold
        yield frame, self._accept(time)

    def _accept(self, time: Fraction) -> Fraction:
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
                if interval in self._intervals or len(self._intervals) < 4096:
                    self._intervals[interval] = self._intervals.get(interval, 0) + 1
        self.last = time
        self.count += 1
        return time

    def rest(self) -> Iterator[tuple[VideoFrame, Fraction]]:
        """At the end: the picture that was waiting for the edit to begin."""
        if self._early is not None and self.edit.start is not None:
            early, self._early = self._early, None
            yield early, self._accept(self.edit.start)

    @property
    def end(self) -> Fraction:
        """When the last picture goes: after its own duration, `max_hold` at most; after the usual interval if none is known."""
        usual = (
            max(self._intervals, key=lambda interval: self._intervals[interval]) if self._intervals else 1 / self.rate
        )
        longest = self.max_hold if self.stated else max(self._longest, MAX_RECKONED)
        credible = self._hold > 0 and (self.stated or self._hold <= longest)
        end = self.last + (min(self._hold, longest) if credible else usual)
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

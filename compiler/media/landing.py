"""Landing on the key frame from which a window is decoded."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import av
import av.error
from av.container import InputContainer
from av.video.frame import VideoFrame

from javisc.compiler.media.onward import First, Onward
from javisc.compiler.media.open import packets
from javisc.compiler.media.pictures import PictureClock

#: A window is looked for from this many seconds before it, so that decoders and filters have settled when it begins.
RUN_UP = Fraction(2)
#: Containers with an index of key frames.
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")


class Landing(NamedTuple):
    """Where a file's zero is, and what decodes the packets from here on; None where there is no picture. message: an error's."""

    zero: Fraction | None
    pictures: Onward | None
    message: str


def land(container: InputContainer, video: av.VideoStream, clock: PictureClock, start: Fraction) -> Landing:
    """Go to shortly before the second `start` of a file, whose first picture says where zero is. clock: the window's, unused."""
    zero, _, message = _first(container, video, clock)
    if zero is None:
        return Landing(None, None, message)
    base = video.time_base or Fraction(1, 1000)
    for before in (start - RUN_UP, Fraction(0)):
        offset = round((zero + before - clock.edit.shift) / base)
        container.seek(offset, stream=video)
        landed, first, said = _first(container, video, clock)
        message = said or message
        if landed is not None and (landed <= zero + start or before == 0):
            container.seek(offset, stream=video)
            return Landing(zero, Onward(video, first, (zero + start - clock.edit.shift) / base), message)
    return Landing(zero, None, message)


def _first(
    container: InputContainer, video: av.VideoStream, clock: PictureClock
) -> tuple[Fraction | None, First | None, str]:
    """The time of the next picture that decodes, on a clock of its own, and the first one; the place in the file is lost."""
    own = PictureClock(video, clock.edit, None, clock.max_hold)
    first = None
    try:
        for count, packet in enumerate(packets(container, video), 1):
            for frame in packet.decode():
                assert isinstance(frame, VideoFrame)
                first = first or First(count, frame)
                own.stamp(frame)
                for _, time in own.place(frame):
                    return time, first, ""
    except (av.error.FFmpegError, OSError) as error:
        return None, None, f"seek: {error}"
    return None, None, ""

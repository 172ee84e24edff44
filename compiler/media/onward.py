"""Going on where the window before ended: pictures of a decoder that stayed open, to the bit what a fresh one gives, or nothing.

The packets of a window are read from a key frame before it on, whatever came before. If the decoder of the window before has had
the very same ones, what it made of them is taken, and it goes on from there. That is what a fresh decoder makes if

- it began at this key frame, or nothing after the key frame looks behind it (`_resets`), and both decoders, the open one and
  the window's own, which is asked for its first picture anyway, made the same of it after the same number of packets;
- no packet since was damaged, brought parameters of its own or gave a picture that is interlaced or out of order;
- the pictures that the window looks at are still held (`HELD`), or to come; of those before it the times are enough (`Passed`).

Anything else raises `NotAlike`: the window is then decoded by itself.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Container
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
import av.error
import numpy as np
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

#: Pictures of an open decoder that are held for the next window, and their bytes; where not even `LEAST` fit, none stays open.
HELD, HELD_BYTES, LEAST = 8, 64_000_000, 3
#: Packets that are remembered: twenty minutes, for a window is looked for from a key frame on.
REMEMBERED = 30_000
#: Pictures between two whose content is remembered, for comparison.
_APART = 12


class _Coding(NamedTuple):
    """Types of NAL units (ITU-T H.264 table 7-1, H.265 table 7-1), and where a track's header says how long their lengths are."""

    parts: Container[int]  # of pictures
    resetting: Container[int]
    parameters: Container[int]
    others: Container[int]  # of extensions: what comes of them is not looked into here
    shift: int
    mask: int
    lengths: int


_CODINGS = {
    "h264": _Coding(range(1, 6), (5,), (7, 8, 13, 15), (2, 3, 4, 14, 20, 21), 0, 31, 4),
    "hevc": _Coding(range(32), (19, 20), (32, 33, 34), (), 1, 63, 21),
}


class NotAlike(Exception):
    """What an open decoder gives need not be what a fresh one does: decode the window by itself."""


class Passed:
    """Stands for a picture before a window: it has the times that the decoder gave it, and nothing to be seen."""

    is_corrupt = interlaced_frame = False
    pts: int
    dts: int | None
    duration: int
    time_base: Fraction | None


class First(NamedTuple):
    """What the window's own decoder gave first, and after how many packets."""

    packets: int
    frame: VideoFrame


@dataclass(slots=True)
class _Picture:
    pts: int
    dts: int | None
    duration: int
    frame: VideoFrame | None


@dataclass(slots=True)
class _Step:
    """A packet by its digest, and the pictures that came with it. content: of the picture that it is, for some that reset."""

    packet: bytes
    resets: bool
    pictures: list[_Picture]
    content: bytes | None = None


class _Trail:
    """A decoder that began at a key frame, and what it made of every packet since. `over`: it serves no other window."""

    def __init__(self, stream: av.VideoStream) -> None:
        self.context = stream.codec_context
        self.base = stream.time_base
        self.kind = _kind(self.context)
        self.steps: deque[_Step] = deque()
        self.begins = True  # at the first of the steps
        self.over = False
        self._held: deque[_Picture] = deque()
        self._last: int | None = None
        self._asks: tuple[int, _Step] | None = None
        self._since = _APART

    def decode(self, packet: av.Packet) -> list[VideoFrame]:
        """What a packet gives. Raises av's errors."""
        self.over = True
        coded = _Coded(packet, self.context)
        step = _Step(coded.digest, coded.resets, [])
        frames = self.context.decode(packet)
        if not coded.plain:
            return frames
        self._since += 1
        if step.resets and self._since > _APART:
            self._asks, self._since = (cast(int, packet.pts), step), 0
        for frame in frames:
            if not self._take(frame, step):
                return frames
        self.steps.append(step)
        if len(self.steps) > REMEMBERED:
            self.steps.popleft()
            self.begins = False
        self.over = False
        return frames

    def _take(self, frame: VideoFrame, step: _Step) -> bool:
        pts = frame.pts
        if pts is None or frame.time_base != self.base or frame.is_corrupt or frame.interlaced_frame:
            return False
        if self._last is not None and pts <= self._last:
            return False
        self._last = pts
        if self._asks is not None and pts >= self._asks[0]:
            self._asks[1].content, self._asks = _content(frame), None
        step.pictures.append(picture := _Picture(pts, frame.dts, frame.duration, frame))
        self._held.append(picture)
        while len(self._held) > min(HELD, _room(frame.width, frame.height)):
            self._held.popleft().frame = None
        return True

    def again(self, picture: _Picture, frame: VideoFrame | None = None) -> VideoFrame:
        """A picture with the times that the decoder gave it, whatever others wrote into it since."""
        shown = frame or picture.frame or cast(VideoFrame, Passed())
        shown.pts, shown.dts, shown.duration, shown.time_base = picture.pts, picture.dts, picture.duration, self.base
        return shown


class _Open(threading.local):
    """The trail of the window before, in this thread."""

    trail: _Trail | None = None


_OPEN = _Open()


def forget() -> None:
    """Let go of the open decoder."""
    _OPEN.trail = None


class Onward:
    """Decodes the packets of a window from a key frame on; the decoder of the window before goes on where that is the same.

    first: what the window's own decoder made of the key frame. origin: where the window begins, in units of the stream. `shared`:
    an error may be due to what was before, so the window has to be decoded by itself to know.
    """

    def __init__(self, stream: av.VideoStream, first: First | None, origin: Fraction) -> None:
        self.stream, self.first, self.origin = stream, first, origin
        self.shared = False
        self._trail: _Trail | None = None
        self._steps: deque[_Step] = deque()
        self._from: int | None = None  # pictures before this time stamp come of packets before the key frame
        self._begun = False

    def decode(self, packet: av.Packet) -> list[VideoFrame]:
        """What a fresh decoder gives. Pictures before the window may be `Passed`. Raises av's errors, `NotAlike`."""
        if not self._begun:
            self._begun = True
            self._begin(packet)
        trail = self._trail
        if trail is None:
            return self.stream.codec_context.decode(packet)
        if self._steps:
            return self._repeated(self._steps.popleft(), packet, trail)
        try:
            frames = trail.decode(packet)
        except av.error.FFmpegError as error:
            self._end(trail, error)
            raise
        if trail.over:
            self._end(trail, None, packet.size > 0)
        return self._mine(frames)

    def _mine(self, frames: list[VideoFrame]) -> list[VideoFrame]:
        return (
            frames if self._from is None else [one for one in frames if one.pts is not None and one.pts >= self._from]
        )

    def _end(self, trail: _Trail, error: Exception | None, wrong: bool = True) -> None:
        """Nobody goes on from here. Raises NotAlike where something is wrong with what was shared."""
        forget()
        self._trail = trail if self.shared else None
        if self.shared and wrong:
            raise NotAlike(str(error or "a picture that is not plain")) from error

    def _repeated(self, step: _Step, packet: av.Packet, trail: _Trail) -> list[VideoFrame]:
        """What came with a packet, with the window's own first picture, which tells of the stream what only a real one does."""
        if step.packet != _Coded(packet, trail.context).digest:
            raise NotAlike("other packets")
        shown = []
        for picture in step.pictures:
            if self._from is None or picture.pts >= self._from:
                shown.append(trail.again(picture, None if self.first is None else self.first.frame))
                self.first = None
        return shown

    def _begin(self, packet: av.Packet) -> None:
        """Take the open decoder if it is the same from this packet on; else the window's own, for the next."""
        trail, mine = _OPEN.trail, self.stream.codec_context
        if trail is not None and not trail.over and self._takes(trail, packet):
            self._trail, self.shared = trail, True
            return
        _OPEN.trail = self._trail = _Trail(self.stream) if _room(mine.width, mine.height) >= LEAST else None

    def _takes(self, trail: _Trail, packet: av.Packet) -> bool:
        """True if an open decoder is the same from a packet on, and has what is looked at."""
        mine = _kind(self.stream.codec_context)
        if self.first is None or trail.base != self.stream.time_base or not mine == trail.kind == _kind(trail.context):
            return False
        digest = _Coded(packet, trail.context).digest
        steps = list(trail.steps)
        at = next((place for place, step in enumerate(steps) if step.packet == digest), None)
        if at is None:
            return False
        steps, begun = steps[at:], at == 0 and trail.begins
        begin = None if begun else packet.pts
        pictures = [
            (count, one)
            for count, step in enumerate(steps, 1)
            for one in step.pictures
            if begin is None or one.pts >= begin
        ]
        first = self.first.frame
        if not pictures or (pictures[0][0], pictures[0][1].pts) != (self.first.packets, first.pts):
            return False
        if not begun and (begin is None or steps[0].content is None or steps[0].content != _content(first)):
            return False
        before = sum(one.pts < self.origin for _, one in pictures)
        if any(one.frame is None for _, one in pictures[max(before - 1, 0) :]):
            return False
        self._steps, self._from = deque(steps), begin
        return True


def _room(width: int, height: int) -> int:
    """How many pictures may be held."""
    return HELD_BYTES // max(2 * width * height, 1)


def _kind(context: VideoCodecContext) -> tuple[object, ...]:
    """What decides how packets are decoded, beside them."""
    return (context.name, context.extradata, context.width, context.height, context.pix_fmt, context.reorder_depth)


def _content(frame: VideoFrame) -> bytes | None:
    """A digest of what a picture shows; None of formats that are not planes of samples."""
    if not frame.format.name.startswith(("yuv4", "yuvj4", "gbrp", "gray")):
        return None
    found = hashlib.blake2b(digest_size=16)
    width = 2 if frame.format.components[0].bits > 8 else 1
    for plane in frame.planes:
        if plane.line_size <= 0:  # upside down
            return None
        lines = np.frombuffer(cast(Any, plane), np.uint8).reshape(-1, plane.line_size)
        found.update(lines[: plane.height, : plane.width * width].tobytes())
    return found.digest()


class _Coded:
    """A packet: its `digest` with all that is said of it; `plain` if it is whole and coded as the file's header says; `resets` if
    nothing that comes after it refers to what was before it."""

    def __init__(self, packet: av.Packet, context: VideoCodecContext) -> None:
        data, header = bytes(packet), context.extradata or b""
        said = (packet.pts, packet.dts, packet.duration, packet.is_keyframe)
        self.digest = hashlib.blake2b(data + repr(said).encode(), digest_size=16).digest()
        # What comes beside the bytes of a packet and changes how they are decoded.
        told = (
            packet.has_sidedata("new_extradata")
            or packet.has_sidedata("param_change")
            or packet.has_sidedata("palette")
        )
        self.plain = bool(data) and packet.pts is not None and not (told or packet.is_corrupt or packet.is_discard)
        self.resets = False
        coding = _CODINGS.get(context.name)
        if coding is not None:
            units = _units(data, header, coding)
            pictures = [kind in coding.resetting for kind, _ in units if kind in coding.parts]
            self.resets = bool(pictures) and all(pictures)
            self.plain &= bool(units) and not any(
                kind in coding.others or (kind in coding.parameters and unit not in header) for kind, unit in units
            )
        elif context.name == "vp9" and data:
            # uncompressed_header() of its specification: a key frame, and not an old one that is shown again
            profile = (data[0] >> 5 & 1) + 2 * (data[0] >> 4 & 1)
            self.resets = data[0] >> 6 == 2 and not data[0] >> (1 if profile == 3 else 2) & 3


def _units(data: bytes, header: bytes, coding: _Coding) -> list[tuple[int, bytes]]:
    """The NAL units of a packet with their types; none where it is not made of them as MP4 and Matroska have it."""
    if len(header) <= coding.lengths or header[0] != 1:
        return []
    size, at, found = (header[coding.lengths] & 3) + 1, 0, []
    while at < len(data):
        begin = at + size
        at = begin + int.from_bytes(data[at:begin], "big")
        if at > len(data) or at == begin:
            return []
        found.append((data[begin] >> coding.shift & coding.mask, data[begin:at]))
    return found

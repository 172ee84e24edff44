"""Edit lists of MP4 and MOV files (ISO/IEC 14496-12, `elst`), exactly.

FFmpeg applies edit lists, but it moves the first picture after a cut to the cut itself: a cut between two pictures shifts picture
against sound by up to a frame. So the common lists (an optional delay, then one piece of the media at normal speed) are read and
applied here, and FFmpeg is told to ignore them; anything else is left to FFmpeg.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

MAX_BOXES = 100_000
MAX_ENTRIES = 64


@dataclass(frozen=True)
class Edit:
    """Media time m is presented at m + `shift`, from `start` on and before `end` (None: open). Seconds."""

    shift: Fraction = Fraction(0)
    start: Fraction | None = None
    end: Fraction | None = None

    @property
    def trivial(self) -> bool:
        return self.shift == 0 and not self.start


@dataclass
class _Track:
    id: int = 0
    timescale: int = 0
    entries: list[tuple[int, int, int]] | None = None


def read_edits(path: Path) -> dict[int, Edit]:
    """The edit of each track, by track id (FFmpeg's stream id).

    Empty if the file is no MP4, has no edit list, or has one that only FFmpeg can follow.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except (OSError, struct.error, ValueError, OverflowError):
        return {}


def _read(file: BinaryIO) -> dict[int, Edit]:
    file.seek(0, 2)
    length = file.tell()
    moov = next((box for box in _boxes(file, 0, length) if box[0] == b"moov"), None)
    if moov is None:
        return {}
    scale, fragmented = 0, False
    tracks: list[_Track] = []
    for kind, start, end in _boxes(file, moov[1], moov[2]):
        if kind == b"mvhd":
            scale = _number(file, start)
        elif kind == b"mvex":
            fragmented = True
        elif kind == b"trak":
            tracks.append(_track(file, start, end))
    if scale <= 0 or not any(track.entries for track in tracks):
        return {}
    edits = {track.id: edit for track in tracks if (edit := _edit(track, scale, fragmented)) is not None}
    return edits if len(edits) == len(tracks) else {}


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(type, content start, content end) of the boxes between two offsets. Raises ValueError on nonsense."""
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        file.seek(start)
        size, kind = struct.unpack(">I4s", file.read(8))
        head = 8
        if size == 1:
            size, head = struct.unpack(">Q", file.read(8))[0], 16
        elif size == 0:
            size = end - start
        if size < head:
            raise ValueError(f"box {kind!r} of {size} bytes")
        yield kind, start + head, min(start + size, end)
        start += size


def _number(file: BinaryIO, start: int) -> int:
    """The number after the two dates: units per second in mvhd and mdhd, the track's id in tkhd."""
    file.seek(start)
    version = file.read(1)[0]
    file.seek(start + (20 if version == 1 else 12))
    return int(struct.unpack(">I", file.read(4))[0])


def _track(file: BinaryIO, start: int, end: int) -> _Track:
    track = _Track()
    for kind, first, last in _boxes(file, start, end):
        if kind == b"tkhd":
            track.id = _number(file, first)
        elif kind == b"mdia":
            for inner, at, _ in _boxes(file, first, last):
                if inner == b"mdhd":
                    track.timescale = _number(file, at)
        elif kind == b"edts":
            for inner, at, _ in _boxes(file, first, last):
                if inner == b"elst":
                    track.entries = _entries(file, at)
    return track


def _entries(file: BinaryIO, start: int) -> list[tuple[int, int, int]]:
    """(duration in movie units, media time or -1, rate in 16.16) of each edit."""
    file.seek(start)
    version, count = struct.unpack(">B3xI", file.read(8))
    if count > MAX_ENTRIES:
        raise ValueError(f"{count} edits")
    layout = ">Qqi" if version == 1 else ">Iii"
    size = struct.calcsize(layout)
    return [struct.unpack(layout, file.read(size)) for _ in range(count)]


def _edit(track: _Track, scale: int, fragmented: bool) -> Edit | None:
    entries = list(track.entries or [])
    if not entries:
        return Edit()
    if track.timescale <= 0:
        return None
    delay = Fraction(0)
    while entries and entries[0][1] == -1:
        delay += Fraction(entries.pop(0)[0], scale)
    if len(entries) != 1 or entries[0][1] < 0 or entries[0][2] != 0x10000:
        return None
    duration, media, _ = entries[0]
    open_end = duration == 0 or fragmented
    return Edit(
        shift=delay - Fraction(media, track.timescale),
        start=delay,
        end=None if open_end else delay + Fraction(duration, scale),
    )

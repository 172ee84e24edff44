"""Edit lists of MP4 and MOV files (ISO/IEC 14496-12, `elst`), exactly.

FFmpeg applies edit lists, but it moves the first picture after a cut to the cut itself: a cut between two pictures shifts picture
against sound by up to a frame. So the common lists (an optional delay, then one piece of the media at normal speed) are read and
applied here, and FFmpeg is told to ignore them; anything else is left to FFmpeg.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from javisc.compiler.media.boxes import Box, BoxError, Truncated, file_boxes
from javisc.compiler.reasons import Rejected

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
    entries: list[tuple[int, ...]] | None = None


def read_edits(path: Path) -> dict[int, Edit]:
    """The edit of each track, by track id (FFmpeg's stream id).

    Empty if the file is no MP4, has no edit list, or has one that only FFmpeg can follow. Raises `Rejected` where a header that
    tells of time ends early.
    """
    try:
        with path.open("rb") as file:
            return _read(file)
    except Truncated as error:
        raise Rejected("corrupt", str(error)) from error
    except (OSError, BoxError, OverflowError):
        return {}


def _read(file: BinaryIO) -> dict[int, Edit]:
    moov = next((box for box in file_boxes(file) if box.kind == b"moov"), None)
    if moov is None:
        return {}
    scale, fragmented = 0, False
    tracks: list[_Track] = []
    for box in moov.boxes():
        if box.kind == b"mvhd":
            scale = _number(box)
        elif box.kind == b"mvex":
            fragmented = True
        elif box.kind == b"trak":
            tracks.append(_track(box))
    if scale <= 0 or not any(track.entries for track in tracks):
        return {}
    edits = {track.id: edit for track in tracks if (edit := _edit(track, scale, fragmented)) is not None}
    return edits if len(edits) == len(tracks) else {}


def _number(box: Box) -> int:
    """The number after the two dates: units per second in mvhd and mdhd, the track's id in tkhd."""
    version = box.read(0, ">B")[0]
    return box.read(20 if version == 1 else 12, ">I")[0]


def _track(trak: Box) -> _Track:
    track = _Track()
    for box in trak.boxes():
        if box.kind == b"tkhd":
            track.id = _number(box)
        elif box.kind == b"mdia":
            for inner in box.boxes():
                if inner.kind == b"mdhd":
                    track.timescale = _number(inner)
        elif box.kind == b"edts":
            for inner in box.boxes():
                if inner.kind == b"elst":
                    track.entries = _entries(inner)
    return track


def _entries(elst: Box) -> list[tuple[int, ...]]:
    """(duration in movie units, media time or -1, rate in 16.16) of each edit."""
    version, count = elst.read(0, ">B3xI")
    layout = ">Qqi" if version == 1 else ">Iii"
    if count > MAX_ENTRIES:
        raise BoxError(f"{count} edits")
    return [elst.read(8 + number * struct.calcsize(layout), layout) for number in range(count)]


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

"""Edit lists of MP4 and MOV files (ISO/IEC 14496-12, `elst`), exactly.

FFmpeg applies edit lists, but it moves the first picture after a cut to the cut itself: a cut between two pictures shifts picture
against sound by up to a frame. So the common lists (an optional delay, then one piece of the media at normal speed) are read and
applied here, and FFmpeg is told to ignore them; anything else is left to FFmpeg.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

from javisc.compiler.media.boxes import Box, BoxError, Truncated, boxes, file_boxes
from javisc.compiler.reasons import Rejected

MAX_ENTRIES = 64
#: Sample descriptions of encrypted streams: ISO/IEC 14496-12's and FairPlay's.
LOCKED = frozenset({b"encv", b"enca", b"drms", b"drmi"})


@dataclass(frozen=True)
class Edit:
    """Media time m is presented at m + `shift`, from `start` on and before `end` (None: open). Seconds."""

    shift: Fraction = Fraction(0)
    start: Fraction | None = None
    end: Fraction | None = None

    @property
    def trivial(self) -> bool:
        return self.shift == 0 and not self.start


class Pace(NamedTuple):
    """The first `packets` of a track last `delta` units each, `timescale` of which are a second."""

    packets: int
    delta: int
    timescale: int


@dataclass(frozen=True)
class Movie:
    """What an MP4's headers say of its tracks, by track id (FFmpeg's stream id).

    edits: empty if there are none, or if one is such as only FFmpeg can follow. locked: encrypted tracks. paces: of the tracks
    whose headers state them.
    """

    edits: dict[int, Edit] = field(default_factory=dict)
    locked: frozenset[int] = frozenset()
    paces: dict[int, Pace] = field(default_factory=dict)


@dataclass
class _Track:
    id: int = 0
    timescale: int = 0
    entries: list[tuple[int, ...]] | None = None
    locked: bool = False
    times: tuple[int, int] = (0, 0)


def read_movie(path: Path) -> Movie:
    """The headers of an MP4; an empty Movie for any other file. Raises `Rejected` where a header of times ends early."""
    try:
        with path.open("rb") as file:
            return _read(file)
    except Truncated as error:
        raise Rejected("corrupt", str(error)) from error
    except (OSError, BoxError, OverflowError):
        return Movie()


def _read(file: BinaryIO) -> Movie:
    moov = next((box for box in file_boxes(file) if box.kind == b"moov"), None)
    if moov is None:
        return Movie()
    scale, fragmented = 0, False
    tracks: list[_Track] = []
    for box in moov.boxes():
        if box.kind == b"mvhd":
            scale = _number(box)
        elif box.kind == b"mvex":
            fragmented = True
        elif box.kind == b"trak":
            tracks.append(_track(box))
    locked = frozenset(track.id for track in tracks if track.locked)
    paces = {
        track.id: Pace(*track.times, track.timescale)
        for track in tracks
        if all(track.times) and track.timescale > 0 and not fragmented
    }
    if scale <= 0 or not any(track.entries for track in tracks):
        return Movie(locked=locked, paces=paces)
    edits = {track.id: edit for track in tracks if (edit := _edit(track, scale, fragmented)) is not None}
    return Movie(edits if len(edits) == len(tracks) else {}, locked, paces)


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
                elif inner.kind == b"minf":
                    track.locked = _locked(inner)
                    track.times = _times(inner)
        elif box.kind == b"edts":
            for inner in box.boxes():
                if inner.kind == b"elst":
                    track.entries = _entries(inner)
    return track


def _locked(minf: Box) -> bool:
    """True if the sample description is one of an encrypted stream."""
    tables = [box for stbl in minf.boxes() if stbl.kind == b"stbl" for box in stbl.boxes() if box.kind == b"stsd"]
    return any(kind in LOCKED for stsd in tables for kind in _described(stsd))


def _times(minf: Box) -> tuple[int, int]:
    """(packets, duration of each) of the first entry of the table of times; zeros without one. It only says where to look."""
    try:
        for box in (box for stbl in minf.boxes() if stbl.kind == b"stbl" for box in stbl.boxes()):
            if box.kind == b"stts" and box.read(4, ">I")[0]:
                packets, delta = box.read(8, ">II")
                return packets, delta
    except BoxError:
        pass  # decoding will tell
    return 0, 0


def _described(stsd: Box) -> Iterator[bytes]:
    """The type of each sample description."""
    for entry in boxes(stsd.file, stsd.body + 8, stsd.end):
        yield entry.kind


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

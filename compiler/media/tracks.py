"""Which streams of a file are taken, and what to say of those that cannot be decoded."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TypeVar

import av
import av.logging
from av.container import InputContainer
from av.stream import Disposition

from javisc.compiler.reasons import Rejected

#: Matroska's names of codecs, each after its element's id and length; the headers lie at the front of a file.
_MATROSKA_CODEC = re.compile(rb"\x86[\x81-\xbf]([VA]_[A-Za-z0-9_./-]{1,60})")
_HEAD = 1 << 20
_STILL = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

Track = TypeVar("Track", av.VideoStream, av.AudioStream)


def choose_video(container: InputContainer, path: Path, locked: Collection[int] = ()) -> av.VideoStream | None:
    """The moving picture: of the tracks that can be decoded the default one, else the first; never cover art or a still.

    locked: ids of encrypted tracks. None if there is no moving picture; raises `Rejected` if none of them can be decoded.
    """
    moving = [stream for stream in container.streams.video if not stream.disposition & _STILL]
    return _choose(container, path, locked, moving)


def choose_audio(container: InputContainer, path: Path, locked: Collection[int] = ()) -> av.AudioStream | None:
    """The sound: of the tracks that can be decoded the default one, else the first. As `choose_video` otherwise."""
    return _choose(container, path, locked, list(container.streams.audio))


def _choose(container: InputContainer, path: Path, locked: Collection[int], tracks: list[Track]) -> Track | None:
    usable = [track for track in tracks if track.codec_context is not None and not _encrypted(track, locked)]
    if tracks and not usable:
        kind = "picture" if isinstance(tracks[0], av.VideoStream) else "sound"
        names = ", ".join(
            f"the {kind} is encrypted ({codec_of(container, track, path)})"
            if _encrypted(track, locked)
            else f"no decoder for the {kind}'s codec {codec_of(container, track, path)}"
            for track in tracks
        )
        raise Rejected("unsupported", names)
    defaults = (track for track in usable if track.disposition & Disposition.default)
    return next(defaults, usable[0] if usable else None)


def _encrypted(track: av.VideoStream | av.AudioStream, locked: Collection[int]) -> bool:
    return track.id in locked or "enc_key_id" in track.metadata


def codec_of(container: InputContainer, track: av.VideoStream | av.AudioStream, path: Path) -> str:
    """The name of a track's codec, also of one that FFmpeg does not know: then what the container calls it."""
    if track.codec_context is not None:
        return track.codec_context.name
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)  # FFmpeg tells of such streams in its log alone
    try:
        told = container.dumps_format()
    finally:
        av.logging.set_level(level)
    line = re.search(rf"^  Stream #0:{track.index}(?!\d).*?: (?:Video|Audio): (\w+)(.*)$", told, re.MULTILINE)
    name, rest = line.groups() if line else ("none", "")
    tag = re.search(r"\((\S+) / 0x[0-9A-F]{4,8}\)", rest)
    if name != "none":
        return name
    return tag[1] if tag else _matroska_name(container, track, path) or "of no known name"


def _matroska_name(container: InputContainer, track: av.VideoStream | av.AudioStream, path: Path) -> str | None:
    if not container.format.name.startswith("matroska"):
        return None
    with path.open("rb") as file:
        names = [name.decode("ascii") for name in _MATROSKA_CODEC.findall(file.read(_HEAD))]
    kind = "V_" if isinstance(track, av.VideoStream) else "A_"
    own = [name for name in names if name.startswith(kind)]
    same = [other.index for other in container.streams if other.type == track.type]
    at = same.index(track.index)
    return own[at] if at < len(own) else None

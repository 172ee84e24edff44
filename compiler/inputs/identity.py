"""What a file is called inside its corpus, however the corpus was downloaded, moved, linked or re-encoded."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from javisc.compiler.inputs.local import AUDIO_SUFFIXES, VIDEO_SUFFIXES

_EXTENSIONS = frozenset({".wav", ".mp3", ".flac", ".ogg", ".opus", ".aac", ".m4a", ".aiff", ".aif"})
VIDEO_EXTENSIONS = frozenset(
    {".mp4", ".avi", ".mov", ".mkv", ".m2ts", ".webm", ".m4v", ".ts", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp"}
)
_EXTENSIONS = AUDIO_SUFFIXES | VIDEO_SUFFIXES

# YouTube ids have 11 characters. Some tools put a Y in front, because an id may start with '-'.
_YOUTUBE = re.compile(r"(?:Y(?=.{11}(?:_|$)))?([A-Za-z0-9_-]{11})(?:_(\d+(?:\.\d+)?))?(?:_(\d+(?:\.\d+)?))?", re.ASCII)


def without_extension(name: str) -> str:
    """`name` without a media extension; other dots stay: `FR.CTC.08.wav` is `FR.CTC.08`, and so is `FR.CTC.08`."""
    stem, dot, extension = name.rpartition(".")
    return stem if dot and stem and f".{extension.lower()}" in _EXTENSIONS else name


def normal(relpath: str) -> str:
    """The comparable form of a corpus-relative path: '/' between parts, no '.' parts, composed Unicode (NFC), no media extension.

    macOS unpacks names decomposed (NFD), Windows writes '\\': both mean the same file.
    """
    parts = [part for part in relpath.split("/") if part not in ("", ".")]
    name = without_extension("/".join(parts))
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def stem(relpath: str) -> str:
    """The last part of `normal(relpath)`."""
    return normal(relpath).rpartition("/")[2]


def youtube_film(name: str) -> str | None:
    """The group of a clip whose name is one of `youtube_clip`'s forms, or None."""
    clip = youtube_clip(name.rpartition("/")[2])
    return f"youtube/{clip.youtube}" if clip else None


class Clip(NamedTuple):
    """A YouTube video's id and, where the file name says it, where the clip starts, in whole seconds."""

    youtube: str
    start: int | None


def youtube_clip(name: str) -> Clip | None:
    """The clip that a file name stands for, or None. Known forms, with or without a leading Y:

    `ID`, `ID_000030` and `ID_30` (start second), `ID_30_40` (seconds), `ID_30000_40000` (milliseconds).
    """
    found = _YOUTUBE.fullmatch(name)
    if found is None:
        return None
    youtube, first, last = found.groups()
    if first is None:
        return Clip(youtube, None)
    start = float(first)
    if last is not None and float(last) - start >= 1000:
        start /= 1000
    return Clip(youtube, int(start))

"""Caption files beside media: which one belongs to a file, and what it says, or why that is no caption."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable

from javisc.manifests.environment import ask_local, said
from javisc.manifests.errors import UserError
from javisc.manifests.rows import MAX_FIELD, captions_in, captions_of, open_bytes
from javisc.manifests.urls import is_url

SUFFIXES = (".json", ".txt")
#: Lines of texts that come with corpora and players and describe no clip: LRS3's, subtitles.
_LRS3 = re.compile(r"(Text|Conf|Ref):\s|RGB:|AUDIO SEGMENT|FRAME\s+X\s+Y|WORD\s+START")
_SUBTITLE = re.compile(r"\d\d:\d\d[.:,]\d+\s+-->\s")


class NoCaption(Exception):
    """The file holds no caption, and why."""


class Beside:
    """The caption files of a folder: `of` a media file the one of its stem, .json before .txt, in any case; some are shared."""

    def __init__(self, names: Iterable[str]) -> None:
        self._by_stem: dict[str, list[str]] = {}
        self._used: set[str] = set()
        for name in names:
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            if suffix.lower() in SUFFIXES:
                self._by_stem.setdefault(stem, []).append(name)

    def of(self, name: str) -> str | None:
        """The caption file of the media file `name`, or None."""
        stem = os.path.splitext(name)[0]  # noqa: PTH122
        found = min(self._by_stem.get(stem, ()), key=_rank, default=None)
        if found is not None:
            self._used.add(found)
        return found

    @property
    def unused(self) -> int:
        """How many belong to no media file that was asked for."""
        return sum(len(names) for names in self._by_stem.values()) - len(self._used)


def _rank(name: str) -> tuple[int, bool, str]:
    suffix = os.path.splitext(name)[1]  # noqa: PTH122
    return SUFFIXES.index(suffix.lower()), suffix != suffix.lower(), name


def beside(path: str) -> str | None:
    """The caption file beside one local media file, or None."""
    stem = os.path.splitext(path)[0]  # noqa: PTH122
    spelled = (stem + each for suffix in SUFFIXES for each in (suffix, suffix.upper(), suffix.title()))
    return next((name for name in spelled if os.path.isfile(name)), None)  # noqa: PTH113


def read_sidecar(path: str) -> list[str]:
    """The captions in a .txt (one a line) or .json file (see captions_in).

    Raises NoCaption where it holds none, Unavailable or UserError where it cannot be read at all: then nobody knows.
    """
    try:
        raw = _read(path) if is_url(path) else ask_local(lambda: _read(path), path)
    except FileNotFoundError as error:
        raise NoCaption("is not there, or a link that leads nowhere") from error
    except IsADirectoryError as error:
        raise NoCaption("is a folder") from error
    except (OSError, ImportError, ValueError) as error:
        shown = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise UserError(
            f"the caption file {shown} cannot be read ({said(error)}): mend that, or move it away", exit_code=1
        ) from error
    return caption_in(path, raw)


def caption_in(path: str, raw: bytes) -> list[str]:
    """The captions in what a caption file holds. Raises NoCaption where it is none."""
    if len(raw) > MAX_FIELD:
        raise NoCaption(f"has more than {MAX_FIELD} bytes")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise NoCaption(f"is not UTF-8 (byte {error.start})") from error
    found = _json(text) if path.lower().endswith(".json") else _plain(text)
    if not found:
        raise NoCaption("holds no caption")
    return found


def _read(path: str) -> bytes:
    with open_bytes(path) as stream:
        return stream.read(MAX_FIELD + 1)


def _json(text: str) -> list[str] | None:
    try:
        return captions_in(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise NoCaption(f"is no JSON ({str(error)[:80]})") from error


def _plain(text: str) -> list[str] | None:
    lines = [line for line in text.splitlines() if line.strip()]
    if any(ord(char) < 32 and char not in "\t\n\r\f\v" for char in text):
        raise NoCaption("holds control characters")
    if sum(_LRS3.match(line) is not None for line in lines) >= 2:
        raise NoCaption("is LRS3's record of words and faces")
    if text.lstrip().startswith("WEBVTT") or any(_SUBTITLE.search(line) for line in lines):
        raise NoCaption("holds subtitles")
    if lines and not any(char.isalpha() for line in lines for char in line):
        raise NoCaption("holds numbers alone")
    return captions_of(lines)

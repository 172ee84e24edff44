"""How the entries of pools are named; needs no torch."""

from __future__ import annotations

import posixpath

#: AudioSep's tracks of X.wav are named X.wav__sep__CHUNK_NUMBER_WHAT.wav.
SEPARATED = "__sep__"


def stem(path: str) -> str:
    """A path without its extension."""
    return posixpath.splitext(path)[0]

"""Keys: what a sample is called, and the number that spreads it over the shards."""

from __future__ import annotations

import hashlib


def key_of(relpath: str, window: tuple[float | None, float | None] | None = None, twin: int = 0) -> str:
    """The sample's key: 24 hex digits of SHA-256 of the relpath (and of the window, for a part of a file).

    `twin` tells apart inputs of equal relpath from different roots: 0 for the first, then 1, 2, … 96 bits: among 10^9
    samples a collision has a chance of 10^-11.
    """
    name = relpath
    if window is not None and window != (None, None):
        start, end = ("" if edge is None else repr(float(edge)) for edge in window)
        name += f"\0t={start},{end}"
    if twin:
        name += f"\0twin={twin}"
    return hashlib.sha256(name.encode()).hexdigest()[:24]


def draw(seed: int, key: str) -> int:
    """A 64-bit number from seed and key: the place of a sample in the spread. Independent of the key's own digits."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big")

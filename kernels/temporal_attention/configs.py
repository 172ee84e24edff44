"""Tile sizes of the temporal kernels by number of times and architecture; static, from the compiled code's resources."""

from __future__ import annotations

from typing import NamedTuple

#: Longest sequence that one tile holds; longer ones are streamed.
LONGEST_TILE = 128


class Config(NamedTuple):
    """Rows of a tile (spatial positions × padded times), padded times, warps."""

    rows: int
    times: int
    warps: int


#: (pass, padded times) → rows of a tile and warps. A block-diagonal mask keeps the positions of a tile apart.
TABLE: dict[tuple[str, int], tuple[int, int]] = {
    ("fwd", 16): (64, 4),
    ("fwd", 32): (64, 4),
    ("fwd", 64): (64, 4),
    ("fwd", 128): (128, 8),
    ("bwd", 16): (64, 4),
    ("bwd", 32): (64, 4),
    ("bwd", 64): (64, 4),
    ("bwd", 128): (128, 8),
}


def configuration(kind: str, times: int, element_size: int) -> Config:
    """The entry for a pass ("fwd", "bwd"). float32 holds one position per tile."""
    padded = max(16, 1 << (times - 1).bit_length())
    rows, warps = TABLE[kind, padded]
    return Config(padded if element_size > 2 else rows, padded, warps)

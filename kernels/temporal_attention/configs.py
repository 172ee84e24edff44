"""Tile sizes of the temporal kernels by number of times and architecture; static, from the compiled code's resources."""

from __future__ import annotations

from javisc.kernels.launch import Config
from javisc.kernels.layout import power_of_two

#: (pass, architecture) → padded times → rows of a tile and warps. A block-diagonal mask keeps the positions of a tile apart.
TABLE: dict[tuple[str, int], dict[int, tuple[int, int]]] = {
    ("fwd", 90): {16: (64, 4), 32: (64, 4), 64: (64, 4), 128: (128, 8)},
    ("bwd", 90): {16: (64, 4), 32: (64, 4), 64: (64, 4), 128: (128, 8)},
    ("fwd", 80): {16: (64, 4), 32: (64, 4), 64: (64, 4)},
    ("bwd", 80): {16: (32, 4), 32: (32, 4), 64: (64, 8)},
}


#: Widest head whose passes fit the registers of the table's entries; wider ones take more warps and shorter sequences.
NARROW = 80


def longest_tile(head_dim: int, arch: int) -> int:
    """Times that one tile holds, forward and backward, without spilling; longer sequences are streamed."""
    longest = 128 if arch == 90 else 64
    return longest if head_dim <= NARROW else longest // 2


def configuration(kind: str, times: int, head_dim: int, arch: int, element_size: int) -> Config:
    """The entry for a pass ("fwd", "bwd"): rows of a tile (spatial positions × padded times), padded times as columns, warps.

    float32 holds one position per tile.
    """
    padded = max(16, power_of_two(times))
    rows, warps = TABLE[kind, arch][padded]
    if element_size > 2:
        return Config(padded, padded, 8)
    return Config(rows, padded, warps if head_dim <= NARROW else 8)

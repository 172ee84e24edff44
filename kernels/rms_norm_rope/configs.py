"""Static launch configurations of the head norm with rope, keyed by head width and architecture."""

from __future__ import annotations

from dataclasses import dataclass

MAX_DIM = 256


@dataclass(frozen=True)
class Config:
    """`rows` heads of a tile, `warps` of a program."""

    rows: int
    warps: int


#: (direction, largest d of the class, architecture) → configuration.
CONFIGS: dict[tuple[str, int, int], Config] = {
    ("fwd", 64, 80): Config(32, 4),
    ("fwd", 64, 90): Config(32, 4),
    ("fwd", 128, 80): Config(16, 4),
    ("fwd", 128, 90): Config(16, 4),
    ("fwd", 256, 80): Config(8, 4),
    ("fwd", 256, 90): Config(8, 4),
    ("bwd", 64, 80): Config(16, 4),
    ("bwd", 64, 90): Config(16, 4),
    ("bwd", 128, 80): Config(16, 4),
    ("bwd", 128, 90): Config(16, 4),
    ("bwd", 256, 80): Config(8, 4),
    ("bwd", 256, 90): Config(8, 4),
}


def config(direction: str, dim: int, arch: int) -> Config:
    """Return the configuration of a width; architectures without an entry take the nearest older one."""
    width = 64 if dim <= 64 else 128 if dim <= 128 else 256
    return CONFIGS[direction, width, 90 if arch >= 90 else 80]


def rows_per_program(rows: int, tile: int) -> int:
    """Return how many heads a program owns: at most about 2048 programs, so that the sum of the partials stays short."""
    owned = 64
    while rows > owned * 2048:
        owned *= 2
    return max(owned, tile)

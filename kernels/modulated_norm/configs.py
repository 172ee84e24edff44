"""Static launch configurations of the modulated norm, keyed by width class and architecture."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHANNELS = 4096  # a row and its gradients stay in registers
REDUCE_ROWS, REDUCE_COLUMNS = 32, 64  # tile of the second stage: partial sums × channels


@dataclass(frozen=True)
class Config:
    """`rows` of one tile, `warps` of a program."""

    rows: int
    warps: int


#: (direction, largest C of the class, architecture) → configuration.
CONFIGS: dict[tuple[str, int, int], Config] = {
    ("fwd", 640, 80): Config(4, 4),
    ("fwd", 640, 90): Config(4, 4),
    ("fwd", 1280, 80): Config(2, 4),
    ("fwd", 1280, 90): Config(2, 4),
    ("fwd", 2048, 80): Config(2, 8),
    ("fwd", 2048, 90): Config(2, 8),
    ("fwd", 4096, 80): Config(2, 8),
    ("fwd", 4096, 90): Config(2, 8),
    ("bwd", 640, 80): Config(4, 4),
    ("bwd", 640, 90): Config(4, 4),
    ("bwd", 1280, 80): Config(1, 4),
    ("bwd", 1280, 90): Config(1, 4),
    ("bwd", 2048, 80): Config(1, 8),
    ("bwd", 2048, 90): Config(1, 8),
    ("bwd", 4096, 80): Config(1, 8),
    ("bwd", 4096, 90): Config(1, 8),
}
WIDTH_CLASSES = (640, 1280, 2048, 4096)


def config(direction: str, channels: int, arch: int) -> Config:
    """Return the configuration of a width; architectures without an entry take the nearest older one."""
    width = next(limit for limit in WIDTH_CLASSES if channels <= limit)
    return CONFIGS[direction, width, 90 if arch >= 90 else 80]


def rows_per_program(tokens: int, rows: int) -> int:
    """Return how many token rows a program owns: several hundred programs, few partial sums to reduce afterwards."""
    owned = 16
    while owned < 256 and tokens > owned * 768:
        owned *= 2
    return max(owned, rows)

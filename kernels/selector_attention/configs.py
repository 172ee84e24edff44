"""Static launch configurations of the selector attention, keyed by head width, element size and architecture."""

from __future__ import annotations

from dataclasses import dataclass

MAX_QUERIES = 64  # they stay resident; more are a case for `attention`
MAX_QUERIES_WIDE = 16  # of float32, whose tiles take twice the registers
MAX_DIM = 128
MAX_SPLITS = 128


@dataclass(frozen=True)
class Config:
    """`block_n` keys of a tile, `warps` of a program, `stages` of the software pipeline."""

    block_n: int
    warps: int
    stages: int
    precision: str = "tf32x3"  # of products of float32: close to float32's own error, on tensor cores


#: (direction, largest d of the class, most queries of the class, bytes per element, architecture) → configuration.
CONFIGS: dict[tuple[str, int, int, int, int], Config] = {
    ("fwd", 64, 16, 2, 90): Config(128, 4, 3),
    ("bwd", 64, 16, 2, 90): Config(64, 4, 3),
    ("fwd", 64, 16, 2, 80): Config(128, 4, 3),
    ("bwd", 64, 16, 2, 80): Config(64, 4, 3),
    ("fwd", 64, 64, 2, 90): Config(128, 4, 3),
    ("bwd", 64, 64, 2, 90): Config(64, 4, 3),
    ("fwd", 64, 64, 2, 80): Config(64, 4, 3),
    ("bwd", 64, 64, 2, 80): Config(64, 8, 2),
    ("fwd", 128, 16, 2, 90): Config(64, 4, 3),
    ("bwd", 128, 16, 2, 90): Config(32, 4, 2),
    ("fwd", 128, 16, 2, 80): Config(64, 4, 3),
    ("bwd", 128, 16, 2, 80): Config(32, 4, 2),
    ("fwd", 128, 64, 2, 90): Config(64, 4, 3),
    ("bwd", 128, 64, 2, 90): Config(64, 8, 2),
    ("fwd", 128, 64, 2, 80): Config(64, 8, 2),
    ("bwd", 128, 64, 2, 80): Config(16, 8, 2),
    ("fwd", 64, 16, 4, 90): Config(64, 4, 2),
    ("bwd", 64, 16, 4, 90): Config(32, 4, 2),
    ("fwd", 64, 16, 4, 80): Config(64, 4, 2),
    ("bwd", 64, 16, 4, 80): Config(32, 4, 2),
    ("fwd", 128, 16, 4, 90): Config(32, 4, 2),
    ("bwd", 128, 16, 4, 90): Config(16, 8, 1, "ieee"),
    ("fwd", 128, 16, 4, 80): Config(32, 8, 2),
    ("bwd", 128, 16, 4, 80): Config(32, 8, 2, "ieee"),
}


def config(direction: str, dim: int, queries: int, element: int, arch: int) -> Config:
    """Return the configuration of a shape; architectures without an entry take the nearest older one."""
    return CONFIGS[direction, 64 if dim <= 64 else 128, 16 if queries <= 16 else 64, element, 90 if arch >= 90 else 80]


def splits(programs: int, keys: int, block_n: int) -> int:
    """Return into how many ranges to cut the keys: about 1024 programs, at least two key tiles each."""
    return max(1, min(MAX_SPLITS, -(-1024 // max(programs, 1)), keys // (2 * block_n)))

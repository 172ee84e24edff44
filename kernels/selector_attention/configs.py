"""Static launch configurations of the selector attention, keyed by head width, number of queries, element size, architecture."""

from __future__ import annotations

from javisc.kernels.launch import Config

MAX_QUERIES = 64  # they stay resident; more are a case for `attention`
MAX_QUERIES_WIDE = 16  # of float32, whose tiles take twice the registers

#: (direction, largest d of the class, most queries of it, bytes per element, architecture) → keys of a tile, warps, stages.
CONFIGS: dict[tuple[str, int, int, int, int], tuple[int, int, int]] = {
    ("fwd", 64, 16, 2, 90): (128, 4, 3),
    ("bwd", 64, 16, 2, 90): (64, 4, 3),
    ("fwd", 64, 16, 2, 80): (128, 4, 3),
    ("bwd", 64, 16, 2, 80): (64, 4, 3),
    ("fwd", 64, 64, 2, 90): (128, 4, 3),
    ("bwd", 64, 64, 2, 90): (64, 4, 3),
    ("fwd", 64, 64, 2, 80): (64, 4, 3),
    ("bwd", 64, 64, 2, 80): (64, 8, 2),
    ("fwd", 128, 16, 2, 90): (64, 4, 3),
    ("bwd", 128, 16, 2, 90): (32, 4, 2),
    ("fwd", 128, 16, 2, 80): (64, 4, 3),
    ("bwd", 128, 16, 2, 80): (32, 4, 2),
    ("fwd", 128, 64, 2, 90): (64, 4, 3),
    ("bwd", 128, 64, 2, 90): (64, 8, 2),
    ("fwd", 128, 64, 2, 80): (64, 8, 2),
    ("bwd", 128, 64, 2, 80): (16, 8, 2),
    ("fwd", 64, 16, 4, 90): (64, 4, 2),
    ("bwd", 64, 16, 4, 90): (32, 4, 2),
    ("fwd", 64, 16, 4, 80): (64, 4, 2),
    ("bwd", 64, 16, 4, 80): (32, 4, 2),
    ("fwd", 128, 16, 4, 90): (32, 4, 2),
    ("bwd", 128, 16, 4, 90): (16, 8, 1),
    ("fwd", 128, 16, 4, 80): (32, 8, 2),
    ("bwd", 128, 16, 4, 80): (32, 8, 2),
}


def config(direction: str, dim: int, queries: int, element: int, arch: int) -> Config:
    """Return the configuration of a shape: `columns` keys of a tile beside all queries."""
    found = CONFIGS[direction, 64 if dim <= 64 else 128, 16 if queries <= 16 else 64, element, arch]
    return Config(queries, *found)

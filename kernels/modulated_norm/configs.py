"""Static launch configurations of the modulated norm, keyed by width class and architecture."""

from __future__ import annotations

from javisc.kernels.launch import Config
from javisc.kernels.layout import ceil_div

MAX_CHANNELS = 4096  # a row and its gradients stay in registers
SUM_ROWS, SUM_COLUMNS = 32, 64  # tile of the second stage: partial sums × channels
#: Rows that a program owns, least and most: few forward, where nothing is carried from row to row; more backward, where each
#: program leaves sums.
FORWARD_ROWS, BACKWARD_ROWS = (8, 8), (16, 256)

#: (direction, largest C of the class) → rows of a tile, warps, stages; the same for every architecture. One warp holds
#: a row of 1152 and needs no barrier; two share one where its gradients are summed (benchmarks/results/aot.md).
CONFIGS: dict[tuple[str, int], tuple[int, int, int]] = {
    ("fwd", 640): (4, 4, 3),
    ("fwd", 1280): (1, 1, 2),
    ("fwd", 2048): (2, 8, 3),
    ("fwd", 4096): (2, 8, 3),
    ("bwd", 640): (4, 4, 3),
    ("bwd", 1280): (1, 2, 2),
    ("bwd", 2048): (1, 8, 3),
    ("bwd", 4096): (1, 8, 3),
}
WIDTH_CLASSES = (640, 1280, 2048, 4096)


def config(direction: str, channels: int, arch: int) -> Config:
    """Return the configuration of a width."""
    rows, warps, stages = CONFIGS[direction, next(limit for limit in WIDTH_CLASSES if channels <= limit)]
    return Config(rows, channels, warps, stages)


def shares(frames: int, rows: int, tile: int, bounds: tuple[int, int]) -> tuple[int, int]:
    """(rows that a program owns, programs a frame): several hundred programs, few partial sums to reduce afterwards."""
    owned, most = bounds
    while owned < most and frames * rows > owned * 768:
        owned *= 2
    owned = max(owned, tile)
    return owned, ceil_div(rows, owned)

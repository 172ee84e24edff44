"""Static launch configurations of the prior attention's backward, keyed by head width, element size and architecture."""

from __future__ import annotations

from javisc.kernels.launch import Config
from javisc.kernels.layout import head_blocks

#: Keys that one tile holds beside a tile of queries; more are a case for the kernels of `attention`.
RESIDENT, RESIDENT_WIDE = 32, 16

#: (largest d of the class, bytes per element, architecture) → queries of a tile, keys, warps, stages.
CONFIGS: dict[tuple[int, int, int], Config] = {
    (64, 2, 90): Config(64, 32, 4, 2),
    (64, 2, 80): Config(32, 32, 4, 2),
    (128, 2, 90): Config(64, 32, 8, 2),
    (128, 2, 80): Config(64, 32, 8, 2),
    (64, 4, 90): Config(16, 16, 8, 1),
    (64, 4, 80): Config(16, 16, 8, 1),
    (128, 4, 90): Config(16, 16, 8, 1),
    (128, 4, 80): Config(16, 16, 8, 1),
}


def blocks(dim: int) -> tuple[tuple[int, int], ...]:
    """The column blocks of a head. The pass holds six tiles and is bound by bandwidth: one padded block takes fewer registers
    than two."""
    return ((128, 0),) if dim > 64 else head_blocks(dim)


def config(dim: int, element: int, arch: int) -> Config:
    """Return the configuration of a shape."""
    return CONFIGS[64 if dim <= 64 else 128, element, arch]

"""Static launch configurations of the prior attention, keyed by pass, head width, element size and architecture."""

from __future__ import annotations

from dataclasses import dataclass

from javisc.kernels.layout import column_blocks

MAX_DIM = 128


@dataclass(frozen=True)
class Config:
    """`block_m` queries and at most `block_n` keys of a tile, `warps` of a program, `stages` of the software pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int
    precision: str = "tf32x3"  # of products of float32: close to float32's own error, on tensor cores


#: (pass, largest d of the class, bytes per element, architecture) → configuration.
CONFIGS: dict[tuple[str, int, int, int], Config] = {
    ("fwd", 64, 2, 90): Config(128, 64, 4, 2),
    ("fwd", 64, 2, 80): Config(128, 64, 4, 2),
    ("fwd", 128, 2, 90): Config(128, 64, 8, 2),
    ("fwd", 128, 2, 80): Config(64, 32, 4, 2),
    ("dq", 64, 2, 90): Config(128, 64, 8, 2),
    ("dq", 64, 2, 80): Config(128, 64, 8, 2),
    ("dq", 128, 2, 90): Config(128, 64, 8, 2),
    ("dq", 128, 2, 80): Config(64, 64, 8, 2),
    ("bwd", 64, 2, 90): Config(64, 32, 4, 2),
    ("bwd", 64, 2, 80): Config(32, 32, 4, 2),
    ("bwd", 128, 2, 90): Config(64, 32, 8, 2),
    ("bwd", 128, 2, 80): Config(64, 32, 8, 2),
    ("fwd", 64, 4, 90): Config(64, 32, 4, 2),
    ("fwd", 64, 4, 80): Config(32, 32, 8, 2),
    ("fwd", 128, 4, 90): Config(16, 32, 4, 2),
    ("fwd", 128, 4, 80): Config(16, 32, 8, 2),
    ("dq", 64, 4, 90): Config(32, 32, 4, 2),
    ("dq", 64, 4, 80): Config(32, 32, 4, 2),
    ("dq", 128, 4, 90): Config(16, 16, 4, 1),
    ("dq", 128, 4, 80): Config(16, 16, 4, 1),
    ("bwd", 64, 4, 90): Config(16, 16, 8, 1),
    ("bwd", 64, 4, 80): Config(16, 32, 8, 1),
    ("bwd", 128, 4, 90): Config(16, 16, 8, 1, "ieee"),
    ("bwd", 128, 4, 80): Config(16, 16, 8, 1),
}


def head_blocks(direction: str, dim: int) -> tuple[tuple[int, int], ...]:
    """Return the column blocks of a head. The pass that sums dK and dV holds six tiles and is bound by bandwidth: one padded
    block takes fewer registers there than two."""
    return ((128, 0),) if direction == "bwd" and dim > 64 else column_blocks(dim)


def config(direction: str, dim: int, element: int, arch: int) -> Config:
    """Return the configuration of a shape; architectures without an entry take the nearest older one."""
    return CONFIGS[direction, 64 if dim <= 64 else 128, element, 90 if arch >= 90 else 80]


def key_block(keys: int, launch: Config) -> int:
    """Return the tile's keys: the 32 of one sample need no tile of 64."""
    return min(launch.block_n, max(16, 1 << max(keys - 1, 0).bit_length()))


def splits(programs: int, queries: int, block_m: int) -> int:
    """Return into how many ranges to cut the queries: about 1024 programs, at least two tiles each, at most 64."""
    return max(1, min(64, -(-1024 // max(programs, 1)), queries // (2 * block_m)))

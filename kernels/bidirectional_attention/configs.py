"""Tile sizes of the bidirectional kernels by pass, head class and architecture; static, from the compiled code's resources."""

from __future__ import annotations

from javisc.kernels.launch import Config, head_class

#: (pass, head class, architecture) → rows of a streamed tile (the long side), columns kept resident (the short side), warps,
#: stages.
TABLE: dict[tuple[str, int, int], Config] = {
    ("fwd", 64, 90): Config(32, 128, 8, 2),
    ("fwd", 96, 90): Config(64, 128, 8, 2),
    ("fwd", 128, 90): Config(32, 128, 8, 2),
    ("fwd", 64, 80): Config(32, 128, 8, 1),
    ("fwd", 96, 80): Config(32, 64, 8, 1),
    ("fwd", 128, 80): Config(32, 64, 8, 1),
    ("bwd", 64, 90): Config(32, 64, 8, 2),
    ("bwd", 96, 90): Config(32, 128, 8, 2),
    ("bwd", 128, 90): Config(16, 64, 8, 2),
    ("bwd", 64, 80): Config(16, 64, 8, 1),
    ("bwd", 96, 80): Config(16, 32, 8, 1),
    ("bwd", 128, 80): Config(32, 32, 8, 1),
}
#: float32: three TF32 products need the operands twice.
WIDE = Config(16, 16, 4, 1)


def configuration(kind: str, head_dim: int, arch: int, columns: int, element_size: int) -> Config:
    """The entry for a pass ("fwd", "bwd"); a resident tile is no wider than the short side, `columns`, needs (16 at least)."""
    if element_size > 2:
        return WIDE
    config = TABLE[kind, head_class(head_dim), arch]
    while config.columns > 32 and config.columns // 2 >= columns:
        config = config._replace(columns=config.columns // 2)
    return config

"""Tile sizes of the attention kernels, by pass, width of the head and architecture. Chosen by registers and shared memory of the
compiled code (benchmarks/results/aot.csv); no search at run time, so the first step is as fast as the last."""

from __future__ import annotations

from javisc.kernels.launch import Config, head_class

#: (pass, head class, architecture) → rows of a query tile, rows of a key tile, warps, stages.
TABLE: dict[tuple[str, int, int], Config] = {
    ("fwd", 64, 90): Config(128, 64, 4, 3),
    ("fwd", 96, 90): Config(128, 64, 8, 3, 128),
    ("fwd", 128, 90): Config(128, 64, 8, 3),
    ("fwd", 64, 80): Config(128, 64, 4, 3),
    ("fwd", 96, 80): Config(128, 64, 8, 2),
    ("fwd", 128, 80): Config(128, 32, 8, 2),
    ("dkv", 64, 90): Config(64, 128, 8, 2),
    ("dkv", 96, 90): Config(32, 128, 8, 2),
    ("dkv", 128, 90): Config(32, 64, 8, 2),
    ("dkv", 64, 80): Config(32, 128, 8, 2),
    ("dkv", 96, 80): Config(32, 128, 8, 2),
    ("dkv", 128, 80): Config(32, 64, 8, 2),
    ("dq", 64, 90): Config(128, 64, 8, 2),
    ("dq", 96, 90): Config(64, 32, 4, 2, 128),
    ("dq", 128, 90): Config(64, 32, 8, 2),
    ("dq", 64, 80): Config(128, 64, 8, 2),
    ("dq", 96, 80): Config(128, 32, 8, 2),
    ("dq", 128, 80): Config(128, 32, 8, 2),
}
#: Where the norm's own registers would spill the entry above.
NORMED: dict[tuple[str, int, int], Config] = {
    ("fwd", 96, 90): Config(128, 64, 8, 3),
    ("dq", 96, 90): Config(64, 32, 4, 2),
}
#: Sequences of at most 512 rows on the tile's own side, of which tiles of 128 waste much (144 rows would take 256).
MIDDLE: dict[tuple[str, int, int], Config] = {
    ("fwd", 96, 90): Config(64, 64, 4, 3),
    ("dkv", 96, 90): Config(32, 64, 4, 2),
}
#: Sequences of at most 32 rows on the tile's own side (audio frames, few latent times), for every head dim.
SHORT = {"fwd": Config(32, 32, 4, 2), "dkv": Config(16, 16, 2, 2), "dq": Config(16, 16, 2, 2)}
#: At most 16 queries of many keys (a selector's), heads of at most 64: the tile of queries beside a long one of keys. Ampere
#: keeps a tile of keys in registers: in eight warps it does so without a spill.
FEW: dict[tuple[str, int], Config] = {
    ("fwd", 90): Config(16, 128, 4, 3),
    ("dkv", 90): Config(16, 128, 4, 2),
    ("dq", 90): Config(16, 64, 4, 3),
    ("fwd", 80): Config(16, 128, 4, 3),
    ("dkv", 80): Config(16, 128, 8, 2),
    ("dq", 80): Config(16, 64, 4, 3),
}
#: float32, for every head dim: three TF32 products need the operands twice, so tiles are small.
WIDE = Config(16, 16, 4, 1)


def configuration(kind: str, head_dim: int, arch: int, own: int, other: int, element_size: int, norm: bool) -> Config:
    """The entry for a pass ("fwd", "dkv", "dq"); own, other: rows of the longest sequence on the tile's own and other side."""
    if element_size > 2:
        return WIDE
    key = (kind, head_class(head_dim), arch)
    queries, keys = (other, own) if kind == "dkv" else (own, other)
    if queries <= 16 and keys > 128 and head_dim <= 64:
        return FEW[kind, arch]
    # Few keys of many queries (the prior's): a tile of 64 keys, half of it empty, still takes fewer instructions than two of 16.
    if own <= 32 and not (kind == "dkv" and other > 32 and key in MIDDLE):
        return SHORT[kind]
    config = NORMED.get(key, TABLE[key]) if norm else TABLE[key]
    config = MIDDLE.get(key, config) if own <= 512 else config
    return config._replace(columns=32) if other <= 32 and kind != "dkv" else config

"""The temporal kernels' ahead-of-time cases: every padded number of times in bfloat16, the other head dims once, and float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from javisc.kernels.aot import Case
from javisc.kernels.launch import head_tiles
from javisc.kernels.temporal_attention.configs import configuration, longest_tile
from javisc.kernels.temporal_attention.host import ROW_BLOCK

MODULE = "javisc.kernels.temporal_attention.triton"
#: dtype, head dim, times, norm and rotation.
VARIANTS = [
    ("bf16", 72, 15, True),
    ("bf16", 72, 30, True),
    ("bf16", 72, 60, True),
    ("bf16", 72, 120, True),
    ("bf16", 64, 30, False),
    ("bf16", 96, 30, True),
    ("bf16", 96, 60, True),
    ("bf16", 128, 30, True),
    ("bf16", 128, 60, True),
    ("fp32", 72, 15, True),
]


def cases() -> Iterator[Case]:
    """One per pass × variant × architecture, and the two kernels that frame streaming once per architecture."""
    for arch in (80, 90):
        for dtype, d, times, extras in VARIANTS:
            if times > longest_tile(d, arch):
                continue
            for kind in ("fwd", "bwd"):
                config = configuration(kind, times, d, arch, 4 if dtype == "fp32" else 2)
                x = f"*{dtype}"
                types = {"QKV": x, "scale2": "fp32", "groups": "i32"}
                types |= (
                    {"O": x} if kind == "fwd" else {"DO": x, "DQKV": x, "DWQ": "*fp32", "DWK": "*fp32", "scale": "fp32"}
                )
                tiles = {"ROWS": config.rows, "TP": config.times}
                label = f"{dtype} d={d} T≤{config.times}{' norm rope' if extras else ''}"
                yield _case(f"temporal_{kind}", label, arch, types, tiles, d, extras, config.warps, 1)
        types = {"QKV": "*bf16", "rows": "i32"}
        yield _case("temporal_prepare", "bf16 d=72", arch, {**types, "QK": "*bf16"}, {"BM": ROW_BLOCK}, 72, True, 4, 3)
        types |= {"DQ": "*bf16", "DK": "*bf16", "DQKV": "*bf16", "DWQ": "*fp32", "DWK": "*fp32"}
        yield _case("temporal_unprepare", "bf16 d=72", arch, types, {"BM": ROW_BLOCK}, 72, True, 4, 3)


def _case(
    kernel: str,
    label: str,
    arch: int,
    types: dict[str, str],
    tiles: dict[str, Any],
    d: int,
    extras: bool,
    warps: int,
    stages: int,
) -> Case:
    d0, d1 = head_tiles(d)
    constants: dict[str, Any] = {"D": d, "D0": d0, "D1": d1, "NORM": extras, "ROPE": extras, **tiles}
    types = {**types, "eps": "fp32", **dict.fromkeys(("first", "T", "S", "H"), "i32")}
    tables = ("WQ", "WK", "COS", "SIN")
    if extras:
        types |= dict.fromkeys(tables, "*fp32")
    else:
        constants |= dict.fromkeys(tables)
    return Case("temporal_attention", f"{MODULE}:{kernel}", label, arch, types, constants, warps, stages)

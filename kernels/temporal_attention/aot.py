"""The temporal kernels' ahead-of-time cases: every padded number of times in bfloat16, the other head dims once, and float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from javisc.kernels.aot import Case
from javisc.kernels.launch import head_tiles
from javisc.kernels.temporal_attention.configs import configuration
from javisc.kernels.temporal_attention.host import ROW_BLOCK, half_tiles

MODULE = "javisc.kernels.temporal_attention.triton"
#: dtype, head dim, times, norm and rotation.
VARIANTS = [
    ("bf16", 72, 15, True),
    ("bf16", 72, 30, True),
    ("bf16", 72, 60, True),
    ("bf16", 72, 120, True),
    ("bf16", 64, 30, False),
    ("bf16", 128, 30, True),
    ("fp32", 72, 15, True),
]


def cases() -> Iterator[Case]:
    """One per pass × variant × architecture, and the two kernels that frame streaming once per architecture."""
    for arch in (80, 90):
        for dtype, d, times, extras in VARIANTS:
            # Older devices are refused by the op (their backward does not fit); their forward is compiled to stay comparable.
            for kind in ("fwd", "bwd") if arch == 90 else ("fwd",):
                config = configuration(kind, times, 4 if dtype == "fp32" else 2)
                x = f"*{dtype}"
                types = {"QKV": x, "scale2": "fp32", "groups": "i32"}
                types |= (
                    {"O": x} if kind == "fwd" else {"DO": x, "DQKV": x, "DWQ": "*fp32", "DWK": "*fp32", "scale": "fp32"}
                )
                d0, d1 = head_tiles(d)
                tiles = {"D0": d0, "D1": d1, "ROWS": config.rows, "TP": config.times}
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
    e0, e1 = half_tiles(d)
    constants: dict[str, Any] = {"D": d, "E0": e0, "E1": e1, "NORM": extras, "ROPE": extras, **tiles}
    types = {**types, "eps": "fp32", **dict.fromkeys(("first", "T", "S", "H"), "i32")}
    tables = ("WQ", "WK", "COS", "SIN")
    if extras:
        types |= dict.fromkeys(tables, "*fp32")
    else:
        constants |= dict.fromkeys(tables)
    excuse = EXCUSES.get((kernel, label, arch), ())
    return Case("temporal_attention", f"{MODULE}:{kernel}", label, arch, types, constants, warps, stages, (), *excuse)


REFUSED = ("the op refuses devices older than 9.0", 8192)
#: (kernel, label, architecture) → why a spill is accepted, and up to how many bytes per thread.
EXCUSES: dict[tuple[str, str, int], tuple[str, int]] = {
    **{("temporal_fwd", f"bf16 d=72 T≤{n} norm rope", 80): REFUSED for n in (16, 32, 64, 128)},
    ("temporal_fwd", "bf16 d=128 T≤32 norm rope", 80): REFUSED,
    ("temporal_fwd", "bf16 d=128 T≤32 norm rope", 90): ("no model here has heads of 128", 128),
    ("temporal_bwd", "bf16 d=72 T≤32 norm rope", 90): (
        "24 bytes outside any loop, against half as many rows per tile",
        64,
    ),
    ("temporal_bwd", "bf16 d=72 T≤128 norm rope", 90): ("a whole sequence of 128 and its gradients in one tile", 512),
    ("temporal_bwd", "bf16 d=128 T≤32 norm rope", 90): ("no model here has heads of 128", 2048),
    ("temporal_bwd", "fp32 d=72 T≤16 norm rope", 90): ("float32 is for checks: `auto` leaves it to torch", 1024),
}

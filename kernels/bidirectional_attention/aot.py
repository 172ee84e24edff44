"""The bidirectional kernels' ahead-of-time cases: every head class in bfloat16, later column tiles, masks, and float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from javisc.kernels.aot import Case
from javisc.kernels.bidirectional_attention.configs import configuration
from javisc.kernels.launch import head_tiles

STRIDES = [f"s{tensor}{axis}" for tensor in "qkwv" for axis in "bnh"]
RUNTIME = ["first", "splits", "H", "L1", "L2", "rows1", "col0", "part", *STRIDES]
#: dtype, head dim, short side, mask mode, whether an earlier column tile left its results.
VARIANTS = [
    ("bf16", 32, 64, 1, False),
    ("bf16", 64, 256, 0, False),
    ("bf16", 64, 256, 0, True),
    ("bf16", 72, 64, 0, False),
    ("bf16", 72, 256, 0, False),
    ("bf16", 72, 256, 0, True),
    ("bf16", 72, 256, 1, True),
    ("bf16", 128, 256, 0, False),
    ("bf16", 128, 256, 0, True),
    ("fp32", 72, 256, 0, False),
]


def cases() -> Iterator[Case]:
    """One per pass × variant × architecture, and the merging kernel once per architecture."""
    for arch in (80, 90):
        seen: set[tuple[str, str]] = set()
        for dtype, d, columns, mask, previous in VARIANTS:
            x, f = f"*{dtype}", "*fp32"
            types = {"Q": x, "K": x, "VR": x, "VC": x, "LSE_ROW": f, "scale2": "fp32", **dict.fromkeys(RUNTIME, "i32")}
            masks = dict.fromkeys(("MASK_ROW", "MASK_COL"), "*u8" if mask else None)
            types |= {name: kind for name, kind in masks.items() if kind}
            for kind in ("fwd", "bwd"):
                extra = {"O": x, "PREVIOUS": f if previous else x, "PART": f, "LSE_PART": f}
                if kind == "bwd":
                    extra = {
                        "DO_ROW": x,
                        "DO_COL": x,
                        "LSE_COL": f,
                        "DELTA_ROW": f,
                        "DELTA_COL": f,
                        "DQ": x,
                        "DVC": x,
                        "DK": f,
                        "DVR": f,
                    }
                    extra |= {
                        "cols2": "i32",
                        "scale": "fp32",
                        **dict.fromkeys(("PREVIOUS_DQ", "PREVIOUS_DVC"), f if previous else x),
                    }
                config = configuration(kind, d, arch, columns, 4 if dtype == "fp32" else 2)
                d0, d1 = head_tiles(d)
                constants: dict[str, Any] = {"D": d, "D0": d0, "D1": d1, "COLS": config.columns, "ROWS": config.rows}
                constants |= {"MASK": mask, "HAS_PREVIOUS": previous, "SELECT": arch == 80, **({} if mask else masks)}
                label = f"{dtype} d={d}{' masked' if mask else ''}{' later' if previous else ''} {config.columns}×{config.rows}"
                if (kind, label) in seen:
                    continue
                seen.add((kind, label))
                kernel = f"javisc.kernels.bidirectional_attention.triton:bidirectional_{kind}"
                divisible = [name for name in STRIDES if not name.endswith("h")]
                yield Case("bidirectional_attention", kernel, label, arch, {**types, **extra}, constants,
                           config.warps, config.stages, divisible, *EXCUSES.get((kind, dtype, d, arch), ()))  # fmt: skip
        types = {"PART": "*fp32", "LSE_PART": "*fp32", "O": "*bf16", "LSE_COL": "*fp32", "cols2": "i32"}
        types |= dict.fromkeys(("first", "splits", "H", "L2", "col0"), "i32")
        kernel = "javisc.kernels.bidirectional_attention.triton:bidirectional_merge"
        yield Case(
            "bidirectional_attention", kernel, "d=72", arch, types, {"D": 72, "DP": 128, "COLS": 256, "BC": 32}, 4, 3
        )


CHECKS = ("float32 is for checks: `auto` leaves it to torch", 768)
ADDRESSES = (
    "addresses and scalars: seven products and two accumulators of 128 × 80 leave them no registers; "
    "half the columns would read and write the rows' gradients twice as often",
    256,
)
FEW = ("two to four registers, only where padding masks and earlier column tiles meet", 16)
#: (pass, dtype, head dim, architecture) → why a spill is accepted, and up to how many bytes per thread.
EXCUSES: dict[tuple[str, str, int, int], tuple[str, int]] = {
    **{(kind, "fp32", 72, arch): CHECKS for kind in ("fwd", "bwd") for arch in (80, 90)},
    **{("fwd", "bf16", 72, arch): FEW for arch in (80, 90)},
    ("bwd", "bf16", 72, 80): FEW,
    ("bwd", "bf16", 72, 90): ADDRESSES,
}

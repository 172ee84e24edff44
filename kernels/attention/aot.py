"""The attention kernels' ahead-of-time cases: every table entry in bfloat16, norms and packed bounds included, and float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from javisc.kernels.aot import Case
from javisc.kernels.attention.configs import configuration
from javisc.kernels.launch import head_tiles

DENSE, PACKED = 0, 1
STRIDES = [f"s{tensor}{axis}" for tensor in "qkv" for axis in "bnh"]
KERNELS = {"fwd": "attention_fwd", "dkv": "attention_bwd_dkv", "dq": "attention_bwd_dq"}
#: dtype, head dim, longest sequence, packed, norms: what the models run (72 joint DiT, 64 selector, 32 prior), and the ends.
VARIANTS = [
    ("bf16", 32, 512, PACKED, False),
    ("bf16", 64, 512, DENSE, False),
    ("bf16", 72, 512, PACKED, False),
    ("bf16", 72, 512, DENSE, True),
    ("bf16", 72, 32, DENSE, True),
    ("bf16", 128, 512, DENSE, True),
    ("fp32", 72, 512, DENSE, True),
]
#: (dtype, head dim, architecture) → why a spill is accepted, and up to how many bytes per thread.
EXCUSES = {
    ("fp32", 72, 80): ("float32 is for checks: `auto` leaves it to torch", 1600),
    ("fp32", 72, 90): ("float32 is for checks: `auto` leaves it to torch", 1600),
    ("bf16", 128, 80): (
        "no model here has heads of 128; Ampere keeps both operands in registers, and smaller tiles spill too",
        800,
    ),
}


def _types(kind: str, dtype: str, norm: bool, packed: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """Types of run-time arguments, and which of the optional tensors are absent (None)."""
    x, f = f"*{dtype}", "*fp32"
    types = {
        "Q": x,
        "K": x,
        "V": x,
        "LSE": f,
        "RQ": f,
        "RK": f,
        "first": "i32",
        "tiles": "i32",
        "H": "i32",
        "LQ": "i32",
        "LK": "i32",
    }
    types |= {"q_rows": "i32", "k_rows": "i32", "scale2": "fp32", **dict.fromkeys(STRIDES, "i32")}
    types |= {
        "fwd": {"O": x, "eps": "fp32"},
        "dkv": {"DO": x, "DELTA": f, "DK": x, "DV": x, "DW": f, "splits": "i32", "scale": "fp32"},
        "dq": {"DO": x, "DELTA": f, "DQ": x, "scale": "fp32"},
    }[kind]
    absent: dict[str, Any] = {}
    for names, present, kept in ((("WQ", "WK"), norm, f), (("BQ", "BK"), packed, "*i32")):
        if present:
            types |= dict.fromkeys(names, kept)
        else:
            absent |= dict.fromkeys(names)
    return types, absent


def cases() -> Iterator[Case]:
    """One per pass × variant × architecture, and the two row kernels once per architecture."""
    for arch in (80, 90):
        for dtype, d, longest, mode, norm in VARIANTS:
            for kind, kernel in KERNELS.items():
                config = configuration(kind, d, arch, longest, 4 if dtype == "fp32" else 2, norm)
                types, absent = _types(kind, dtype, norm, mode == PACKED)
                d0, d1 = head_tiles(d)
                constants = {
                    "D": d,
                    "D0": d0,
                    "D1": d1,
                    "BM": config.bm,
                    "BN": config.bn,
                    "MODE_Q": mode,
                    "MODE_K": mode,
                    "NORM": norm,
                }
                label = (
                    f"{dtype} d={d} {'packed' if mode else 'dense'}{' norm' if norm else ''} {config.bm}×{config.bn}"
                )
                divisible = [name for name in STRIDES if not name.endswith("h")]
                yield Case("attention", f"javisc.kernels.attention.triton:{kernel}", label, arch, types, {**constants, **absent},
                           config.warps, config.stages, divisible, *EXCUSES.get((dtype, d, arch), ()))  # fmt: skip
        rows = {"first": "i32", "rows": "i32", "H": "i32"}
        block = {"D": 72, "DP": 128, "BM": 32}
        yield Case("attention", "javisc.kernels.attention.triton:attention_delta", "bf16 d=72", arch,
                   {"O": "*bf16", "DO": "*bf16", "DELTA": "*fp32", **rows}, block, 4, 3)  # fmt: skip
        strides = dict.fromkeys(("sxb", "sxn", "sxh"), "i32")
        types = {"X": "*bf16", "R": "*fp32", "length": "i32", "eps": "fp32", **rows, **strides}
        yield Case(
            "attention",
            "javisc.kernels.attention.triton:attention_rms",
            "bf16 d=72",
            arch,
            types,
            block,
            4,
            3,
            ("sxb", "sxn"),
        )

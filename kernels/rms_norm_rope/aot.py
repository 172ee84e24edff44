"""What to compile ahead of time: every width class, with norm and rope."""

from __future__ import annotations

from javisc.kernels.aot import Case
from javisc.kernels.rms_norm_rope import configs

MODULE = "javisc.kernels.rms_norm_rope.triton"


def cases() -> list[Case]:
    """Return the cases of both directions."""
    found = []
    for arch in (80, 90):
        for dtype in ("bf16", "fp32"):
            for dim in (64, 72, 256) if dtype == "bf16" else (72,):
                for direction in ("fwd", "bwd"):
                    launch = configs.config(direction, dim, arch)
                    types = dict.fromkeys(("x_ptr", "weight_ptr"), f"*{dtype}")
                    types |= dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32")
                    types |= dict.fromkeys(("launched", "rows", "L", "H", "stride", "own"), "i32") | {"eps": "fp32"}
                    if direction == "fwd":
                        types |= {"out_ptr": f"*{dtype}"}
                    else:
                        types |= {"dout_ptr": f"*{dtype}", "dx_ptr": f"*{dtype}", "partial_ptr": "*fp32"}
                    pairs = 1 << (-(-dim // 2) - 1).bit_length()
                    found.append(
                        Case(
                            op="rms_norm_rope",
                            kernel=f"{MODULE}:rms_norm_rope_{direction}",
                            label=f"{dtype} d {dim}, {launch.rows} heads",
                            arch=arch,
                            types=types,
                            constants={"D": dim, "PAIRS": pairs, "ROWS": launch.rows, "NORM": True, "ROPE": True},
                            warps=launch.warps,
                            stages=3,
                            divisible=("stride", "own"),
                        )
                    )
    return found

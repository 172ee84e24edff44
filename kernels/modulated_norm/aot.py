"""What to compile ahead of time: every width class with and without masks, for bfloat16 and float32 rows."""

from __future__ import annotations

from javisc.kernels.aot import Case
from javisc.kernels.layout import column_blocks
from javisc.kernels.modulated_norm import configs

MODULE = "javisc.kernels.modulated_norm.triton"
WIDTHS = (512, 1152, 1872, 4096)
FORMS = (("norm", False, True), ("gate", True, False), ("gate+norm", True, True))


def cases() -> list[Case]:
    """Return the cases of the three kernels."""
    found = []
    sizes = dict.fromkeys(("launched", "frames", "rows", "own", "chunks", "C"), "i32")
    for arch in (80, 90):
        for dtype in ("bf16", "fp32"):
            rows = dict.fromkeys(("x_ptr", "y_ptr", "gate_ptr", "gate0_ptr", "scale_ptr", "scale0_ptr"), f"*{dtype}")
            rows |= dict.fromkeys(("mean_ptr", "rstd_ptr"), "*fp32") | {"mask_ptr": "*i1"} | sizes
            shifts = dict.fromkeys(("shift_ptr", "shift0_ptr", "residual_ptr", "out_ptr"), f"*{dtype}")
            grads = dict.fromkeys(("dresidual_ptr", "dout_ptr", "dx_ptr", "dy_ptr"), f"*{dtype}")
            for width in WIDTHS if dtype == "bf16" else (1152,):
                for form, gated, norm in FORMS:
                    constants = {
                        "BLOCKS": column_blocks(width),
                        "HAS_MASK": True,
                        "GATED": gated,
                        "NORM": norm,
                    }
                    for direction, kernel, types in (
                        ("fwd", "modulated_norm_fwd", rows | shifts | {"eps": "fp32"}),
                        ("bwd", "modulated_norm_bwd_dx", rows | grads | {"partial_ptr": "*fp32", "programs": "i32"}),
                    ):
                        launch = configs.config(direction, width, arch)
                        found.append(
                            Case(
                                op="modulated_norm",
                                kernel=f"{MODULE}:{kernel}",
                                label=f"{form}, C {width}, {dtype}, {launch.rows} rows",
                                arch=arch,
                                types=types,
                                constants=constants | {"ROWS": launch.rows},
                                warps=launch.warps,
                                stages=3,
                                divisible=("C",),
                            )
                        )
        found.append(
            Case(
                op="modulated_norm",
                kernel=f"{MODULE}:modulated_norm_bwd_reduce",
                label="two groups",
                arch=arch,
                types={"partial_ptr": "*fp32", "mask_ptr": "*i1", "out_ptr": "*fp32", "samples": "i32"}
                | dict.fromkeys(("launched", "frames", "chunks", "C"), "i32"),
                constants={"GROUPS": 2, "ROWS": configs.REDUCE_ROWS, "COLUMNS": configs.REDUCE_COLUMNS},
                warps=4,
                stages=3,
                divisible=("C",),
            )
        )
    return found

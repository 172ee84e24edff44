"""What to compile ahead of time: every table entry at the widths that the models have and at the class's largest."""

from __future__ import annotations

from javisc.kernels.aot import Case
from javisc.kernels.prior_attention import configs
from javisc.kernels.selector_attention.aot import DTYPES, STRIDES, split_case

MODULE = "javisc.kernels.prior_attention.triton"


def cases() -> list[Case]:
    """Return the cases of forward and both backward passes; the latter with all keys in one block and with several."""
    found = []
    for (direction, width, element, arch), launch in configs.CONFIGS.items():
        dtype = DTYPES[element]
        for dim in (64,) if width == 64 else (72, 128):
            tile = (launch.block_m, launch.block_n, launch.warps, launch.stages)
            label = f"{dtype} d {dim}, {launch.block_m} × {launch.block_n}"
            if direction == "fwd":
                found.append(split_case("prior_attention", label, dim, arch, dtype, dtype, *tile, launch.precision))
                continue
            sums = direction == "bwd"
            kernel = "prior_attention_bwd_dkv" if sums else "prior_attention_bwd_dq"
            names = ("q_ptr", "k_ptr", "v_ptr", "dout_ptr", "dq_ptr") + (() if sums else ("out_ptr",))
            sizes = ("N", "P", "H", *STRIDES) + (("blocks", "splits", "chunk") if sums else ("tiles",))
            types = dict.fromkeys(names, f"*{dtype}") | dict.fromkeys(("launched", *sizes), "i32")
            types |= {"lse_ptr": "*fp32", "delta_ptr": "*fp32", "scale": "fp32", "scale_log2": "fp32"}
            if sums:
                types |= {"dk_ptr": "*fp32", "dv_ptr": "*fp32"}
            for whole in (True, False) if sums else (False,):
                constants = {
                    "D": dim,
                    "BLOCK_M": launch.block_m,
                    "BLOCK_N": launch.block_n,
                    "BLOCKS": configs.head_blocks(direction, dim),
                }
                constants |= {"PRECISION": launch.precision} | ({"WHOLE": whole} if sums else {})
                found.append(
                    Case(
                        op="prior_attention",
                        kernel=f"{MODULE}:{kernel}",
                        label=label + (", all keys in one block" if whole else ""),
                        arch=arch,
                        types=types,
                        constants=constants,
                        warps=launch.warps,
                        stages=launch.stages,
                        divisible=STRIDES,
                    )
                )
    return found

"""What to compile ahead of time: every table entry at the widths that the models have and at the class's largest."""

from __future__ import annotations

from javisc.kernels.aot import Case
from javisc.kernels.layout import column_blocks
from javisc.kernels.selector_attention import configs

SPLIT = "javisc.kernels.split_attention"
BACKWARD = "javisc.kernels.selector_attention.triton:selector_attention_bwd"
STRIDES = ("q_stride", "k_stride", "v_stride")
DTYPES = {2: "bf16", 4: "fp32"}


def _types(tensors: tuple[str, ...], dtype: str, sizes: str, **others: str) -> dict[str, str]:
    return dict.fromkeys(tensors, f"*{dtype}") | dict.fromkeys(("launched", *sizes.split()), "i32") | others


def split_case(
    op: str,
    label: str,
    dim: int,
    arch: int,
    dtype: str,
    out: str,
    block_m: int,
    block_n: int,
    warps: int,
    stages: int,
    precision: str,
) -> Case:
    """Return a case of the forward kernel that selector and prior attention share."""
    sizes = "L N H q_stride k_stride v_stride tiles splits chunk"
    return Case(
        op=op,
        kernel=f"{SPLIT}:split_attention_fwd",
        label=label,
        arch=arch,
        types=_types(("q_ptr", "k_ptr", "v_ptr"), dtype, sizes, out_ptr=f"*{out}", lse_ptr="*fp32", scale_log2="fp32"),
        constants={
            "D": dim,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCKS": column_blocks(dim),
            "PRECISION": precision,
        },
        warps=warps,
        stages=stages,
        divisible=STRIDES,
    )


def cases() -> list[Case]:
    """Return the cases of forward, merge, backward and the ordered sum."""
    found = []
    for (direction, width, queries, element, arch), launch in configs.CONFIGS.items():
        dtype = DTYPES[element]
        for dim in (64,) if width == 64 else (72, 128):
            label = f"{dtype} d {dim}, {queries} queries, {launch.block_n} keys"
            if direction == "fwd":
                tile = (queries, launch.block_n, launch.warps, launch.stages, launch.precision)
                found.append(split_case("selector_attention", label, dim, arch, dtype, "fp32", *tile))
                continue
            tensors = ("q_ptr", "k_ptr", "v_ptr", "out_ptr", "dout_ptr", "dk_ptr", "dv_ptr")
            sizes = "S N H q_stride k_stride v_stride splits chunk"
            floats = {"lse_ptr": "*fp32", "dq_ptr": "*fp32", "scale": "fp32", "scale_log2": "fp32"}
            constants = {"D": dim, "BLOCK_S": queries, "BLOCK_N": launch.block_n, "BLOCKS": column_blocks(dim)}
            found.append(
                Case(
                    op="selector_attention",
                    kernel=BACKWARD,
                    label=label,
                    arch=arch,
                    types=_types(tensors, dtype, sizes, **floats),
                    constants=constants | {"PRECISION": launch.precision},
                    warps=launch.warps,
                    stages=launch.stages,
                    divisible=STRIDES,
                )
            )
    for arch in (80, 90):
        found.append(
            Case(
                op="selector_attention",
                kernel=f"{SPLIT}:split_attention_merge",
                label=f"d 64, {configs.MAX_SPLITS} ranges",
                arch=arch,
                types=_types(
                    ("out_ptr",), "bf16", "L H splits", part_ptr="*fp32", part_lse_ptr="*fp32", lse_ptr="*fp32"
                ),
                constants={"D": 64, "SPLITS": configs.MAX_SPLITS, "BLOCKS": column_blocks(64)},
                warps=4,
                stages=3,
            )
        )
        found.append(
            Case(
                op="selector_attention",
                kernel="javisc.kernels.blocks:ordered_sum_kernel",
                label="16 × 128",
                arch=arch,
                types=_types(("out_ptr",), "bf16", "count C", partial_ptr="*fp32"),
                constants={"ROWS": 16, "COLUMNS": 128},
                warps=4,
                stages=3,
                divisible=("C",),
            )
        )
    return found

"""Runs the Triton kernels of the modulated norm and the gated residual: one pair of passes serves all three ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from javisc.kernels.launch import launches, ranges
from javisc.kernels.layout import ceil_div, column_blocks
from javisc.kernels.modulated_norm import configs

Optional = Tensor | None


def forward(
    x: Tensor, y: Optional, gate: Optional, gate0: Optional, shift: Optional, shift0: Optional, scale: Optional, scale0: Optional,
    mask: Optional, eps: float,
) -> list[Tensor]:  # fmt: skip
    """The residual (where there is y), the norm and its rows' mean and inverse deviation (with shift). x (B, T, S, C)."""
    from javisc.kernels.modulated_norm.triton import modulated_norm_fwd

    made = forward_fake(x, y, gate, gate0, shift)
    samples, frames, rows, channels = x.shape
    chunks = ceil_div(rows, configs.FORWARD_ROWS)
    gated, norm = y is not None, shift is not None
    residual = made[0] if gated else None
    out, mean, rstd = made[-3:] if norm else (None, None, None)
    for first, count in launches(samples * frames * chunks if x.numel() else 0):
        modulated_norm_fwd[(count,)](
            x, y, gate, gate0, shift, shift0, scale, scale0, mask, residual, out, mean, rstd, first,
            frames, rows, configs.FORWARD_ROWS, chunks, eps, channels, column_blocks(channels), mask is not None, gated, norm,
            **configs.config("fwd", channels).options,
        )  # fmt: skip
    return made


def backward(
    grads: Sequence[Tensor], x: Optional, y: Optional, gate: Optional, gate0: Optional, shift: Optional, shift0: Optional,
    scale: Optional, scale0: Optional, mask: Optional, eps: float, made: Sequence[Tensor], needs: Sequence[bool],
) -> list[Optional]:  # fmt: skip
    """Gradients of x (where there is a norm; else it is the residual's), y, and of the modulations."""
    from javisc.kernels.modulated_norm.triton import modulated_norm_bwd, modulated_norm_sum

    gated, norm = y is not None, scale is not None
    dresidual, dout = grads[0] if gated else None, grads[-1] if norm else None
    normed = made[0] if gated else x
    mean, rstd = made[-2:] if norm else (None, None)
    samples, frames, rows, channels = grads[0].shape
    chunks, own = ranges(
        samples * frames, rows, 1, grads[0].device, least=configs.BACKWARD_ROWS, most=4096, waves=configs.BACKWARD_WAVES
    )
    programs = samples * frames * chunks if grads[0].numel() else 0
    dx = grads[-1].new_empty(grads[-1].shape, dtype=normed.dtype) if norm and normed is not None else None
    dy = y.new_empty(y.shape) if y is not None else None
    kinds = [pair for pair, has in (((shift, shift0), norm), ((scale, scale0), norm), ((gate, gate0), gated)) if has]
    part = grads[0].new_empty((len(kinds), programs, channels), dtype=torch.float32)
    for first, count in launches(programs):
        modulated_norm_bwd[(count,)](
            dresidual, dout, normed, y, gate, gate0, scale, scale0, mask, mean, rstd, dx, dy, part, first,
            frames, rows, own, chunks, programs, channels, column_blocks(channels), mask is not None, gated, norm,
            **configs.config("bwd", channels).options,
        )  # fmt: skip
    groups = 1 if mask is None else 2
    # Where all modulations have one dtype, as in the models, the sums are stored in it; otherwise they are cast one by one.
    dtypes = {value.dtype for pair in kinds for value in pair if value is not None}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    sums = part.new_empty((len(kinds), groups, samples, channels), dtype=dtype)
    if programs == 0:
        sums.zero_()
    wanted = any(needs[2:])
    for first, count in launches(
        sums.numel() // channels * ceil_div(channels, configs.SUM_COLUMNS) if wanted and programs else 0
    ):
        modulated_norm_sum[(count,)](
            part, mask, sums, first, samples, frames, chunks,
            channels, groups, configs.SUM_ROWS, configs.SUM_COLUMNS, num_warps=4,
        )  # fmt: skip
    every: list[Optional] = [dx, dy]
    sources, targets = [], []
    for group in ((gate, gate0), (shift, shift0), (scale, scale0)):
        number = next((i for i, pair in enumerate(kinds) if pair[0] is group[0]), 0)
        for i, value in enumerate(group):
            target = None if value is None else value.new_empty(value.shape)
            every.append(target)
            if target is not None:
                sources.append(sums[number, i])
                targets.append(target)
    if wanted:  # results of an op may share no memory; one launch copies all
        torch._foreach_copy_(targets, sources)
    return every


def forward_fake(x: Tensor, y: Optional, gate: Optional, gate0: Optional, shift: Optional, *_: Any) -> list[Tensor]:
    made = [x.new_empty(x.shape)] if y is not None else []
    if shift is not None:
        made += [x.new_empty(x.shape), *(x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in "mr")]
    return made


def forward_flops(*_: Any, **__: Any) -> int:
    """Elementwise: PyTorch counts products of matrices only."""
    return 0


backward_flops = forward_flops

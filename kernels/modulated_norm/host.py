"""Runs the Triton kernels of the modulated norm and the gated residual: one pair of passes serves all three ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from javisc.kernels.launch import launch, ranges
from javisc.kernels.layout import ceil_div, column_blocks
from javisc.kernels.modulated_norm import configs

Optional = Tensor | None


def _both(value: Optional, value0: Optional) -> tuple[Optional, Optional]:
    """Both sets of a modulation; without a mask the second is never read, and the first stands for it."""
    return value, value if value0 is None else value0


def _bytes(mask: Optional, other: Tensor) -> Tensor:
    """The mask as bytes; without one never read: any tensor's bytes, so that the kernel is the same."""
    if mask is not None:
        return mask.view(torch.uint8)
    # A dimension of none or one may have any step, and is contiguous all the same.
    return other.view(torch.uint8) if other.stride(-1) == 1 else other.new_empty(1, dtype=torch.uint8)


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
    launch(
        modulated_norm_fwd, samples * frames * chunks if x.numel() else 0,
        x, y, *_both(gate, gate0), *_both(shift, shift0), *_both(scale, scale0), _bytes(mask, x), residual, out, mean, rstd,
        int(mask is not None), frames, rows, configs.FORWARD_ROWS, chunks, eps, channels, column_blocks(channels), gated, norm,
        **configs.config("fwd", channels).options,
    )  # fmt: skip
    return made


def backward(
    grads: Sequence[Tensor], x: Optional, y: Optional, gate: Optional, gate0: Optional, shift: Optional, shift0: Optional,
    scale: Optional, scale0: Optional, mask: Optional, eps: float, made: Sequence[Tensor], needs: Sequence[bool],
) -> list[Optional]:  # fmt: skip
    """Gradients of x (where there is a norm; else it is the residual's), y, and of the modulations."""
    from javisc.kernels.modulated_norm.triton import modulated_norm_bwd
    from javisc.kernels.tiles import ordered_sum

    gated, norm = y is not None, scale is not None
    dresidual, dout = grads[0] if gated else None, grads[-1] if norm else None
    normed = made[0] if gated else x
    mean, rstd = made[-2:] if norm else (None, None)
    samples, frames, rows, channels = grads[0].shape
    chunks, own = ranges(
        samples * frames, rows, 1, grads[0].device, least=configs.BACKWARD_ROWS, most=4096, waves=configs.BACKWARD_WAVES
    )
    programs = samples * frames * chunks
    dx = grads[-1].new_empty(grads[-1].shape, dtype=normed.dtype) if norm and normed is not None else None
    dy = y.new_empty(y.shape) if y is not None else None
    modulations = (gate, gate0, shift, shift0, scale, scale0)
    part = grads[0].new_empty((gated + 2 * norm, samples, frames * chunks, channels), dtype=torch.float32)
    launch(
        modulated_norm_bwd, programs if part.numel() else 0,
        dresidual, dout, normed, y, *_both(gate, gate0), *_both(scale, scale0), _bytes(mask, grads[0]), mean, rstd, dx, dy, part,
        int(mask is not None), frames, rows, own, chunks, programs, channels, column_blocks(channels), gated, norm,
        **configs.config("bwd", channels).options,
    )  # fmt: skip
    # Where all modulations have one dtype, as in the models, the sums are stored in it; otherwise they are cast one by one.
    dtypes = {m.dtype for m in modulations if m is not None}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    found = [None if m is None else m.new_empty(m.shape) for m in modulations]
    if any(needs[2:]):
        groups = part.shape[0] * (1 if mask is None else 2)
        sums = ordered_sum(part.flatten(0, 1) if mask is None else part, dtype, mask).view(groups, samples, channels)
        # Results of an op may share no memory; one launch copies all.
        torch._foreach_copy_([x for x in found if x is not None], list(sums))
    return [dx, dy, *found]


def forward_fake(x: Tensor, y: Optional, gate: Optional, gate0: Optional, shift: Optional, *_: Any) -> list[Tensor]:
    made = [x.new_empty(x.shape)] if y is not None else []
    if shift is not None:
        made += [x.new_empty(x.shape), *(x.new_empty(x.shape[:-1], dtype=torch.float32) for _ in "mr")]
    return made


def forward_flops(*_: Any, **__: Any) -> int:
    """Elementwise: PyTorch counts products of matrices only."""
    return 0


backward_flops = forward_flops

"""Runs the kernels of `prior_attention` over keys that one tile holds: the forward is that of `attention`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from javisc.kernels.attention import host as attention
from javisc.kernels.attention.host import aligned, far_apart, strides
from javisc.kernels.launch import architecture, launches, parts
from javisc.kernels.layout import ceil_div, power_of_two
from javisc.kernels.prior_attention import configs
from javisc.kernels.selector_attention.host import backward_fake, backward_flops, forward_flops

__all__ = ["backward", "backward_fake", "backward_flops", "forward", "forward_fake", "forward_flops"]


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> list[Tensor]:
    """Output (B, N, H, D) of q (B, N, H, D) over k, v (B, P, H, D); backward needs nothing else."""
    return attention.forward(q, k, v, None, None, q.shape[1], k.shape[1], None, None, 0.0, scale)[:1]


def backward(
    grads: Sequence[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    made: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor]:
    """The wanted gradients of q, k, v: one pass makes all three."""
    from javisc.kernels.prior_attention.triton import prior_bwd
    from javisc.kernels.tiles import ordered_sum

    (do,) = grads
    (b, length, h, d), keys = q.shape, k.shape[1]
    dq = q.new_empty(q.shape)
    if not (q.numel() and keys):
        return [x.new_zeros(x.shape) for x, need in zip((dq, k, v), needs) if need]
    q, k, v = aligned(q), aligned(k), aligned(v)
    config = configs.config(d, q.element_size(), architecture(q.device))
    tile = config.rows
    wish = parts(b * h, length // tile, q.device, least=2, waves=8)
    chunk = ceil_div(ceil_div(length, wish), tile) * tile
    splits = ceil_div(length, chunk)
    part = q.new_empty((2, b, splits, keys * h * d), dtype=torch.float32)
    for first, programs in launches(b * splits * h):
        prior_bwd[(programs,)](
            q, k, v, do, dq, part[0], part[1], first, length, keys, h, *strides(q), *strides(k), *strides(v), splits, chunk,
            scale, scale * math.log2(math.e), d, configs.blocks(d), tile, max(16, power_of_two(keys)),
            far_apart(128, q, k, v), **config.options,
        )  # fmt: skip
    found = [dq] if needs[0] else []
    found += [ordered_sum(x, k.dtype).view(k.shape) for x, need in zip(part, needs[1:]) if need]
    return found


def forward_fake(q: Tensor, k: Tensor, v: Tensor, scale: float) -> list[Tensor]:
    return [q.new_empty(q.shape)]

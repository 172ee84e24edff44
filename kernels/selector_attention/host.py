"""Runs the Triton kernels of `selector_attention`: allocates, picks configurations, launches. Also fakes and FLOP formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from javisc.kernels.attention.host import aligned, far_apart, strides
from javisc.kernels.launch import Config, architecture, launches, ranges
from javisc.kernels.layout import head_blocks, power_of_two
from javisc.kernels.selector_attention import configs


def _cut(config: Config, q: Tensor, keys: int) -> tuple[int, int]:
    """(number of ranges of keys, keys of a range, a multiple of the tile)."""
    return ranges(q.shape[0] * q.shape[2], keys, config.columns, q.device, most=128, waves=8)


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> list[Tensor]:
    """Output (B, L, H, D) and logsumexp (B, H, L; base 2) of q (B, L, H, D) over k, v (B, N, H, D)."""
    from javisc.kernels.selector_attention.triton import selector_fwd, selector_merge

    (b, length, h, d), keys = q.shape, k.shape[1]
    out, lse = q.new_empty(q.shape), q.new_empty((b, h, length), dtype=torch.float32)
    if not (out.numel() and keys):
        return [out.zero_(), lse.fill_(-math.inf)]
    q, k, v = aligned(q), aligned(k), aligned(v)
    config = configs.config("fwd", d, length, q.element_size(), architecture(q.device))
    splits, chunk = _cut(config, q, keys)
    one = splits == 1
    part = out if one else q.new_empty((b, splits, length, h, d), dtype=torch.float32)
    part_lse = lse if one else q.new_empty((b, splits, h, length), dtype=torch.float32)
    for first, programs in launches(b * splits * h):
        selector_fwd[(programs,)](
            q, k, v, part, part_lse, first, length, keys, h, *strides(q), *strides(k), *strides(v), splits, chunk,
            scale * math.log2(math.e), d, head_blocks(d), max(16, power_of_two(length)), config.columns,
            far_apart(128, q, k, v), **config.options,
        )  # fmt: skip
    for first, programs in launches(0 if one else b * length * h):
        selector_merge[(programs,)](
            part, part_lse, out, lse, first, length, h, splits, d, power_of_two(splits), head_blocks(d), num_warps=4
        )
    return [out, lse]


def backward(
    grads: Sequence[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    made: Sequence[Tensor],
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of q, k, v: one pass makes all three."""
    from javisc.kernels.selector_attention.triton import selector_bwd
    from javisc.kernels.tiles import ordered_sum

    (do,), (out, lse) = grads, made
    (b, length, h, d), keys = q.shape, k.shape[1]
    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    if not (q.numel() and keys):
        return [q.new_zeros(q.shape), dk.zero_(), dv.zero_()]
    q, k, v = aligned(q), aligned(k), aligned(v)
    config = configs.config("bwd", d, length, q.element_size(), architecture(q.device))
    splits, chunk = _cut(config, q, keys)
    part = q.new_empty((b, splits, length, h, d), dtype=torch.float32)
    for first, programs in launches(b * splits * h):
        selector_bwd[(programs,)](
            q, k, v, out, lse, do, part, dk, dv, first, length, keys, h, *strides(q), *strides(k), *strides(v),
            splits, chunk, scale, scale * math.log2(math.e), d, head_blocks(d), max(16, power_of_two(length)), config.columns,
            far_apart(128, q, k, v), **config.options,
        )  # fmt: skip
    dq = ordered_sum(part.view(b, splits, -1), q.dtype).view(q.shape) if needs[0] else None
    return [dq, dk, dv]


def forward_fake(q: Tensor, k: Tensor, v: Tensor, scale: float) -> list[Tensor]:
    return [q.new_empty(q.shape), q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)]


def forward_flops(q: Any, k: Any, *_: Any, **__: Any) -> int:
    """Two products of 2·D per query-key pair and head."""
    return int(4 * q.numel() * k.shape[1])


def backward_flops(grads: Any, q: Any, k: Any, *_: Any, **__: Any) -> int:
    """Five products."""
    return int(10 * q.numel() * k.shape[1])

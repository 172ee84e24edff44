"""Runs the Triton kernels of `bidirectional_attention`: the long side is streamed, the short one resident, parts are merged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from javisc.kernels.attention.host import aligned, delta, far_apart, strides
from javisc.kernels.bidirectional_attention.configs import configuration
from javisc.kernels.launch import architecture, launch, ranges
from javisc.kernels.layout import head_blocks

MODES = {"and": 1, "or": 2}
Mask = Tensor | None


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.view(torch.uint8)


def forward(
    q: Tensor, k: Tensor, v_row: Tensor, v_col: Tensor, mask_row: Mask, mask_col: Mask, mode: int, scale: float
) -> list[Tensor]:
    """Row and column outputs, and both logsumexps (H, B·L), base 2; −inf where nothing is seen."""
    if q.shape[1] < k.shape[1]:
        o_col, o_row, lse_col, lse_row = forward(k, q, v_col, v_row, mask_col, mask_row, mode, scale)
        return [o_row, o_col, lse_row, lse_col]
    from javisc.kernels.bidirectional_attention.triton import bidirectional_fwd
    from javisc.kernels.tiles import merge

    o_row, o_col, lse_row, lse_col = forward_fake(q, k)
    (b, l1, h, d), l2 = q.shape, k.shape[1]
    if min(b, l1, l2, h) == 0:
        return [o_row.zero_(), o_col.zero_(), lse_row.fill_(-math.inf), lse_col.fill_(-math.inf)]
    q, k, v_row, v_col = aligned(q), aligned(k), aligned(v_row), aligned(v_col)
    arch = architecture(q.device)
    config = configuration("fwd", d, arch, l2, q.element_size())
    splits, part = ranges(b * h, l1, config.rows, q.device)
    partial = torch.empty((b, h, splits, config.columns, d), dtype=torch.float32, device=q.device)
    lse_parts = torch.empty(partial.shape[:-1], dtype=torch.float32, device=q.device)
    masks = (_bytes(mask_row), _bytes(mask_col))
    # Rows' outputs wait in float32 between column tiles.
    waiting = torch.empty(q.shape, dtype=torch.float32, device=q.device) if l2 > config.columns else o_row
    for col0 in range(0, l2, config.columns):
        out = o_row if col0 + config.columns >= l2 else waiting
        rows = min(config.rows, 32) if col0 else config.rows  # merging takes registers of its own
        launch(
            bidirectional_fwd, b * h * splits,
            q, k, v_row, v_col, out, waiting, lse_row, partial, lse_parts, *masks, splits, h, l1, l2, b * l1, col0,
            part, *strides(q), *strides(k), *strides(v_row), *strides(v_col), scale * math.log2(math.e),
            d, head_blocks(d), config.columns, rows, mode, col0 > 0, arch == 80,
            far_apart(128, q, k, v_row, v_col), **config.options,
        )  # fmt: skip
        merge(partial, lse_parts, o_col, lse_col.view(h, b, l2).transpose(0, 1), col0)
    return [o_row, o_col, lse_row, lse_col]


def backward(
    grads: Sequence[Tensor], q: Tensor, k: Tensor, v_row: Tensor, v_col: Tensor, mask_row: Mask, mask_col: Mask, mode: int,
    scale: float, made: Sequence[Tensor], needs: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of q, k, v_row, v_col, summed in a fixed order; one pass makes all four."""
    (do_row, do_col), (o_row, o_col, lse_row, lse_col) = grads, made
    if q.shape[1] < k.shape[1]:
        turned = (k, q, v_col, v_row, mask_col, mask_row, mode, scale, (o_col, o_row, lse_col, lse_row), needs)
        dk, dq, dv_col, dv_row = backward((do_col, do_row), *turned)
        return [dq, dk, dv_row, dv_col]
    from javisc.kernels.bidirectional_attention.triton import bidirectional_bwd
    from javisc.kernels.tiles import ordered_sum

    (b, l1, h, d), l2, device = q.shape, k.shape[1], q.device
    dq, dv_col, dk, dv_row = (x.new_empty(x.shape) for x in (q, q, k, k))
    if min(b, l1, l2, h) == 0:
        return [dq.zero_(), dk.zero_(), dv_row.zero_(), dv_col.zero_()]
    q, k, v_row, v_col = aligned(q), aligned(k), aligned(v_row), aligned(v_col)
    arch = architecture(device)
    config = configuration("bwd", d, arch, l2, q.element_size())
    splits, part = ranges(b * h, l1, config.rows, device)
    partial = torch.empty((2, b, h, splits, config.columns, d), dtype=torch.float32, device=device)
    deltas = (delta(o_row, do_row), delta(o_col, do_col))
    waiting_q, waiting_v = (
        torch.empty((2, *q.shape), dtype=torch.float32, device=device) if l2 > config.columns else (dq, dv_col)
    )
    for col0 in range(0, l2, config.columns):
        last = col0 + config.columns >= l2
        launch(
            bidirectional_bwd, b * h * splits,
            q, k, v_row, v_col, do_row, do_col, lse_row, lse_col, *deltas,
            dq if last else waiting_q, dv_col if last else waiting_v, waiting_q, waiting_v, partial[0], partial[1],
            _bytes(mask_row), _bytes(mask_col), splits, h, l1, l2, b * l1, b * l2, col0, part,
            *strides(q), *strides(k), *strides(v_row), *strides(v_col), scale * math.log2(math.e), scale,
            d, head_blocks(d), config.columns, config.rows, mode, col0 > 0, arch == 80,
            far_apart(128, q, k, v_row, v_col), **config.options,
        )  # fmt: skip
        width = min(config.columns, l2 - col0)
        summed = ordered_sum(partial.view(2 * b * h, splits, -1), k.dtype).view(2, b, h, config.columns, d)
        dk[:, col0 : col0 + width], dv_row[:, col0 : col0 + width] = summed[:, :, :, :width].transpose(2, 3)
    return [dq, dk, dv_row, dv_col]


def forward_fake(q: Tensor, k: Tensor, *_: Any) -> list[Tensor]:
    lse = [x.new_empty((x.shape[2], x.shape[0] * x.shape[1]), dtype=torch.float32) for x in (q, k)]
    return [q.new_empty(q.shape), k.new_empty(k.shape), *lse]


def forward_flops(q: Any, k: Any, *_: Any, **__: Any) -> int:
    """Three products of 2·L1·L2·H·D: the logits and both outputs."""
    return int(6 * q.numel() * k.shape[1])


def backward_flops(grads: Any, q: Any, k: Any, *_: Any, **__: Any) -> int:
    """Seven products: the logits again, two gradients of probabilities, four of the inputs."""
    return int(14 * q.numel() * k.shape[1])

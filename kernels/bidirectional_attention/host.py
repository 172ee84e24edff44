"""Runs the Triton kernels of `bidirectional_attention`: the long side is streamed, the short one resident, parts are merged."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from javisc.kernels.attention.host import aligned, delta
from javisc.kernels.bidirectional_attention.configs import configuration
from javisc.kernels.launch import architecture, head_tiles, launches, multiprocessors

MODES = {"and": 1, "or": 2}
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def parts_for(heads: int, length: int, tile: int, device: torch.device) -> tuple[int, int]:
    """(number of parts, rows per part, a multiple of the tile) of the long side: two waves of programs, each ≥ 2 tiles."""
    tiles = -(-length // tile)
    wanted = -(-2 * multiprocessors(device) // max(heads, 1))
    per_part = max(-(-tiles // max(1, min(wanted, tiles // 2))), 1)
    return -(-tiles // per_part), per_part * tile


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0) // 8, x.stride(1) // 8, x.stride(2) // 8


def _bytes(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous().view(torch.uint8)


def forward(
    q: Tensor,
    k: Tensor,
    v_row: Tensor,
    v_col: Tensor,
    mask_row: Tensor | None,
    mask_col: Tensor | None,
    mode: int,
    scale: float,
) -> Four:
    """Row and column outputs, and both logsumexps (H, B·L), base 2; −inf where nothing is seen."""
    if q.shape[1] < k.shape[1]:
        o_col, o_row, lse_col, lse_row = forward(k, q, v_col, v_row, mask_col, mask_row, mode, scale)
        return o_row, o_col, lse_row, lse_col
    from javisc.kernels.bidirectional_attention.triton import bidirectional_fwd, bidirectional_merge

    q, k, v_row, v_col = aligned(q), aligned(k), aligned(v_row), aligned(v_col)
    b, l1, h, d = q.shape
    l2 = k.shape[1]
    o_row, o_col = torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(k.shape)
    lse_row, lse_col = (torch.empty((h, b * length), dtype=torch.float32, device=q.device) for length in (l1, l2))
    if min(b, l1, l2, h) == 0:
        return o_row.zero_(), o_col.zero_(), lse_row.fill_(-math.inf), lse_col.fill_(-math.inf)
    arch = architecture(q.device)
    config = configuration("fwd", d, arch, l2, q.element_size())
    splits, part = parts_for(b * h, l1, config.rows, q.device)
    parts = torch.empty((b, h, splits, config.columns, d), dtype=torch.float32, device=q.device)
    lse_parts = torch.empty(parts.shape[:-1], dtype=torch.float32, device=q.device)
    masks = (_bytes(mask_row), _bytes(mask_col))
    # Rows' outputs wait in float32 between column tiles.
    waiting = torch.empty(q.shape, dtype=torch.float32, device=q.device) if l2 > config.columns else o_row
    block = min(config.columns, 32)
    for col0 in range(0, l2, config.columns):
        out = o_row if col0 + config.columns >= l2 else waiting
        for first, count in launches(b * h * splits):
            bidirectional_fwd[(count,)](
                q, k, v_row, v_col, out, waiting, lse_row, parts, lse_parts, *masks, first, splits, h, l1, l2, b * l1, col0, part,
                *_strides(q), *_strides(k), *_strides(v_row), *_strides(v_col), scale * math.log2(math.e),
                d, *head_tiles(d), config.columns, config.rows, mode, col0 > 0, arch == 80,
                num_warps=config.warps, num_stages=config.stages,
            )  # fmt: skip
        for first, count in launches(b * h * (config.columns // block)):
            bidirectional_merge[(count,)](
                parts, lse_parts, o_col, lse_col, first, splits, h, l2, b * l2, col0,
                d, 1 << (d - 1).bit_length(), config.columns, block, num_warps=4,
            )  # fmt: skip
    return o_row, o_col, lse_row, lse_col


def backward(
    do_row: Tensor, do_col: Tensor, q: Tensor, k: Tensor, v_row: Tensor, v_col: Tensor, o_row: Tensor, o_col: Tensor,
    lse_row: Tensor, lse_col: Tensor, mask_row: Tensor | None, mask_col: Tensor | None, mode: int, scale: float,
) -> Four:  # fmt: skip
    """Gradients of q, k, v_row, v_col, summed in a fixed order."""
    if q.shape[1] < k.shape[1]:
        dk, dq, dv_col, dv_row = backward(
            do_col, do_row, k, q, v_col, v_row, o_col, o_row, lse_col, lse_row, mask_col, mask_row, mode, scale
        )  # fmt: skip
        return dq, dk, dv_row, dv_col
    from javisc.kernels.bidirectional_attention.triton import bidirectional_bwd

    b, l1, h, d = q.shape
    l2, device = k.shape[1], q.device
    dq, dv_col = q.new_empty(q.shape), q.new_empty(q.shape)
    dk, dv_row = q.new_empty(k.shape), q.new_empty(k.shape)
    if min(b, l1, l2, h) == 0:
        return dq.zero_(), dk.zero_(), dv_row.zero_(), dv_col.zero_()
    q, k, v_row, v_col = aligned(q), aligned(k), aligned(v_row), aligned(v_col)
    do_row, do_col = do_row.contiguous(), do_col.contiguous()
    arch = architecture(device)
    config = configuration("bwd", d, arch, l2, q.element_size())
    splits, part = parts_for(b * h, l1, config.rows, device)
    partial = torch.empty((2, b, h, splits, config.columns, d), dtype=torch.float32, device=device)
    deltas = (delta(o_row, do_row), delta(o_col, do_col))
    waiting_q, waiting_v = (
        torch.empty((2, *q.shape), dtype=torch.float32, device=device) if l2 > config.columns else (dq, dv_col)
    )
    for col0 in range(0, l2, config.columns):
        last = col0 + config.columns >= l2
        for first, count in launches(b * h * splits):
            bidirectional_bwd[(count,)](
                q, k, v_row, v_col, do_row, do_col, lse_row, lse_col, *deltas,
                dq if last else waiting_q, dv_col if last else waiting_v, waiting_q, waiting_v, partial[0], partial[1],
                _bytes(mask_row), _bytes(mask_col), first, splits, h, l1, l2, b * l1, b * l2, col0, part,
                *_strides(q), *_strides(k), *_strides(v_row), *_strides(v_col), scale * math.log2(math.e), scale,
                d, *head_tiles(d), config.columns, config.rows, mode, col0 > 0, arch == 80,
                num_warps=config.warps, num_stages=config.stages,
            )  # fmt: skip
        width = min(config.columns, l2 - col0)
        summed = partial.sum(3)[:, :, :, :width].transpose(2, 3)
        dk[:, col0 : col0 + width] = summed[0]
        dv_row[:, col0 : col0 + width] = summed[1]
    return dq, dk, dv_row, dv_col


def forward_fake(
    q: Tensor,
    k: Tensor,
    v_row: Tensor,
    v_col: Tensor,
    mask_row: Tensor | None,
    mask_col: Tensor | None,
    mode: int,
    scale: float,
) -> Four:
    lse = [x.new_empty((x.shape[2], x.shape[0] * x.shape[1]), dtype=torch.float32) for x in (q, k)]
    return q.new_empty(q.shape), q.new_empty(k.shape), lse[0], lse[1]


def backward_fake(do_row: Tensor, do_col: Tensor, q: Tensor, k: Tensor, *_: Any) -> Four:
    return q.new_empty(q.shape), q.new_empty(k.shape), q.new_empty(k.shape), q.new_empty(q.shape)


def _products(q: Tensor, k: Tensor) -> int:
    return 2 * q.numel() * k.shape[1]


def forward_flops(q: Any, k: Any, *_: Any, **__: Any) -> int:
    """Three products of 2·L1·L2·H·D: the logits and both outputs."""
    return 3 * _products(q, k)


def backward_flops(do_row: Any, do_col: Any, q: Any, k: Any, *_: Any, **__: Any) -> int:
    """Seven products: the logits again, two gradients of probabilities, four of the inputs."""
    return 7 * _products(q, k)

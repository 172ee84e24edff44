"""The definition of bidirectional attention: one logits matrix, a softmax along each of its axes."""

from __future__ import annotations

import torch
from torch import Tensor


def _softmax(logits: Tensor, allowed: Tensor | None, dim: int) -> Tensor:
    """Softmax over the allowed entries; all zero where there are none."""
    if allowed is None:
        return logits.softmax(dim)
    return torch.where(allowed, logits.masked_fill(~allowed, float("-inf")).softmax(dim), 0)


def allowed_pairs(mask_row: Tensor | None, mask_col: Tensor | None, mask_mode: str) -> Tensor | None:
    """(B, 1, L1, L2): which pairs see each other, from two padding masks joined by "and" or "or"; None: all."""
    if mask_row is None or mask_col is None:
        return None
    rows, cols = mask_row[:, None, :, None], mask_col[:, None, None, :]
    return rows & cols if mask_mode == "and" else rows | cols


def bidirectional_attention_reference(
    q: Tensor,
    k: Tensor,
    v_row: Tensor,
    v_col: Tensor,
    *,
    mask_row: Tensor | None = None,
    mask_col: Tensor | None = None,
    mask_mode: str = "and",
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """What `bidirectional_attention` computes, in the inputs' dtype (float64 in tests)."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = torch.einsum("bihd,bjhd->bhij", q, k) * scale
    allowed = allowed_pairs(mask_row, mask_col, mask_mode)
    out_row = torch.einsum("bhij,bjhd->bihd", _softmax(logits, allowed, -1), v_row)
    out_col = torch.einsum("bhij,bihd->bjhd", _softmax(logits, allowed, -2), v_col)
    return out_row, out_col

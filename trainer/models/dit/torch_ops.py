"""Temporal and two-way attention written plainly in torch, with the signatures of the kernels that take their place.

Letters: B rows, T frames, S patches per frame, H heads, D head width, N1 and N2 tokens of two streams.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from javisc.kernels.rms_norm_rope import rms_norm_rope


def rope_table(freqs: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin [length, D/2] of position times frequency, in the frequencies' own precision."""
    angles = torch.arange(length, device=freqs.device, dtype=freqs.dtype)[:, None] * freqs
    return angles.cos(), angles.sin()


def temporal_attention(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor
) -> Tensor:
    """Attention over T for every patch, heads normed and then turned: qkv [B, T, S, 3, H, D] → [B, T, S, H, D]."""
    q, k, v = qkv.transpose(1, 2).unbind(3)  # [B, S, T, H, D]
    q, k = rms_norm_rope(q, q_weight, cos, sin), rms_norm_rope(k, k_weight, cos, sin)
    q, k, v = (x.transpose(2, 3) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2, 4)


def bidirectional_attention(
    q: Tensor,
    k: Tensor,
    v_row: Tensor,
    v_col: Tensor,
    *,
    mask_row: Tensor | None = None,
    mask_col: Tensor | None = None,
    mask_mode: str = "and",
) -> tuple[Tensor, Tensor]:
    """One logits matrix, two softmax directions: q, v_col [B, N1, H, D]; k, v_row [B, N2, H, D] → [B, N1, H, D], [B, N2, H, D].

    v_row is what q's stream receives. A pair of tokens is visible if both masks say so ("and"), or either ("or", the
    reference's).
    """
    q, k, v_row, v_col = (x.transpose(1, 2) for x in (q, k, v_row, v_col))
    visible = across = None
    if mask_row is not None and mask_col is not None:
        rows, columns = mask_row[:, None, :, None], mask_col[:, None, None, :]
        visible = rows & columns if mask_mode == "and" else rows | columns
        across = visible.transpose(2, 3)
    first = F.scaled_dot_product_attention(q, k, v_row, attn_mask=visible)
    second = F.scaled_dot_product_attention(k, q, v_col, attn_mask=across)
    return first.transpose(1, 2), second.transpose(1, 2)

"""Temporal attention written plainly in torch, with the signature of the kernel that takes its place.

Letters: B rows, T frames, S patches per frame, H heads, D head width.
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

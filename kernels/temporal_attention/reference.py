"""The definition of temporal attention: norm, rotary positions, softmax over time for every head of every spatial position."""

from __future__ import annotations

import torch
from torch import Tensor

from javisc.kernels.attention.reference import rms_norm


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each interleaved pair (x[2i], x[2i+1]) of the last dim by its angle; cos, sin broadcast against (…, D / 2)."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def temporal_attention_reference(
    qkv: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    eps: float = 1e-6,
    scale: float | None = None,
) -> Tensor:
    """What `temporal_attention` computes, in qkv's dtype (float64 in tests)."""
    q, k, v = qkv.unbind(3)
    if q_weight is not None and k_weight is not None:
        q, k = rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)
    if cos is not None and sin is not None:
        c, s = (table.to(q.dtype)[:, None, None] for table in (cos, sin))
        q, k = rotate(q, c, s), rotate(k, c, s)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = torch.einsum("bishd,bjshd->bshij", q, k) * scale
    return torch.einsum("bshij,bjshd->bishd", logits.softmax(-1), v)

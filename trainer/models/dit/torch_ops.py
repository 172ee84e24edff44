"""The joint DiT's operations written plainly in torch.

Letters: B rows, T frames, S patches per frame, N = T*S, H heads, D head width, C = H*D, P prior tokens per row, L text
tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x / rms(x) over the last axis in float32, cast back, then times `weight`."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rope_angles(freqs: Tensor, length: int) -> Tensor:
    """Angles [length, D]: position times frequency, each frequency twice (interleaved pairs), in the frequencies'
    type."""
    positions = torch.arange(length, device=freqs.device, dtype=freqs.dtype)
    return (positions[:, None] * freqs[None]).repeat_interleave(2, dim=-1)


def rope(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (2i, 2i+1) of x [..., L, D] by angles [L, D]: x cos + rot(x) sin with rot([a, b]) = [-b, a]."""
    even, odd = x[..., ::2], x[..., 1::2]
    turned = torch.stack((-odd, even), dim=-1).flatten(-2)
    return (x * angles.cos() + turned * angles.sin()).to(x.dtype)


def self_attention(qkv: Tensor, q_gain: Tensor | None, k_gain: Tensor | None) -> Tensor:
    """Attention within each sequence: qkv [R, L, 3, H, D] → [R, L, H*D]."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    if q_gain is not None and k_gain is not None:
        q, k = rms_norm(q, q_gain), rms_norm(k, k_gain)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def temporal_attention(qkv: Tensor, freqs: Tensor, q_gain: Tensor | None, k_gain: Tensor | None) -> Tensor:
    """Attention over T for every patch, rope after the norms: qkv [B, T, S, 3, H, D] → [B, T, S, H*D]."""
    q, k, v = qkv.permute(3, 0, 2, 4, 1, 5)  # [B, S, H, T, D] each
    if q_gain is not None and k_gain is not None:
        q, k = rms_norm(q, q_gain), rms_norm(k, k_gain)
    angles = rope_angles(freqs, qkv.shape[1])
    out = F.scaled_dot_product_attention(rope(q, angles), rope(k, angles), v)
    return out.permute(0, 3, 1, 2, 4).flatten(3)


def packed_cross_attention(q: Tensor, kv: Tensor, lengths: list[int]) -> Tensor:
    """Row b of q [B, N, H, D] sees its own `lengths[b]` tokens of kv [sum(lengths), 2, H, D]; → [B, N, H*D], 0 where a
    row has none."""
    rows = []
    for q_row, kv_row in zip(q, torch.split(kv, lengths)):
        k, v = kv_row.unbind(1)
        out = F.scaled_dot_product_attention(q_row.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1))
        rows.append(out.transpose(0, 1) if len(kv_row) else torch.zeros_like(q_row))
    return torch.stack(rows).flatten(2)


def prior_attention(q: Tensor, kv: Tensor, scope: str) -> Tensor:
    """q [B, N, H, D] against the few keys kv [B, P, 2, H, D]: of the whole batch (scope "batch") or of its own row
    ("sample")."""
    k, v = (x.transpose(1, 2) for x in kv.unbind(2))
    if scope == "sample":
        return F.scaled_dot_product_attention(q.transpose(1, 2), k, v).transpose(1, 2).flatten(2)
    queries = q.flatten(0, 1).transpose(0, 1)
    k, v = (x.transpose(0, 1).flatten(1, 2) for x in (k, v))
    return F.scaled_dot_product_attention(queries, k, v).transpose(0, 1).flatten(1).view(*q.shape[:2], -1)


def bidirectional_attention(
    q: Tensor, k: Tensor, v1: Tensor, v2: Tensor, mask1: Tensor | None = None, mask2: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One logits matrix, two softmax directions: stream 1 reads stream 2's values and the other way round.

    q, v1 [B, N1, H, D]; k, v2 [B, N2, H, D] → [B, N1, H*D], [B, N2, H*D]. A pair is visible if either token's mask is
    true (the reference's rule).
    """
    q, k, v1, v2 = (x.transpose(1, 2) for x in (q, k, v1, v2))
    visible = None
    if mask1 is not None and mask2 is not None:
        visible = (mask1[:, :, None] | mask2[:, None, :])[:, None]
    out1 = F.scaled_dot_product_attention(q, k, v2, attn_mask=visible)
    out2 = F.scaled_dot_product_attention(k, q, v1, attn_mask=None if visible is None else visible.transpose(2, 3))
    return out1.transpose(1, 2).flatten(2), out2.transpose(1, 2).flatten(2)


def _per_token(row: Tensor, row0: Tensor | None, mask: Tensor | None, tokens: int) -> Tensor:
    """[B, C] → [B, 1, C], or with a frame mask [B, T] → [B, N, C]: `row` on frames where the mask is true, `row0`
    elsewhere."""
    if mask is None or row0 is None:
        return row[:, None]
    frames = torch.where(mask[..., None], row[:, None], row0[:, None])
    return frames.repeat_interleave(tokens // mask.shape[1], dim=1)


def modulated_layer_norm(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    shift0: Tensor | None = None,
    scale0: Tensor | None = None,
    mask: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """LN(x) (1 + scale) + shift for x [B, N, C]; frames where mask [B, T] is false take shift0, scale0 [B, C]."""
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return normed * (1 + _per_token(scale, scale0, mask, x.shape[1])) + _per_token(shift, shift0, mask, x.shape[1])


def gated_residual(
    x: Tensor, update: Tensor, gate: Tensor, gate0: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """x + gate * update for x [B, N, C]; frames where mask [B, T] is false take gate0 [B, C]."""
    return x + _per_token(gate, gate0, mask, x.shape[1]) * update

"""`attention` on other people's kernels: PyTorch's scaled_dot_product_attention, and xformers' block-diagonal attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from javisc.kernels.attention.reference import rms_norm


def _padded(x: Tensor, bounds: Tensor | None, longest: int) -> tuple[Tensor, Tensor | None]:
    """(B, longest, H, D) with zeros beyond the lengths, and which rows exist (B, longest); None: all."""
    if bounds is None:
        return x, None
    position = torch.arange(longest, device=x.device)
    exists = position < (bounds.diff() if x.ndim == 3 else bounds)[:, None]
    if x.ndim == 3:
        rows = (bounds[:-1, None] + position).clamp(max=max(x.shape[0] - 1, 0))
        x = x[rows] if x.shape[0] else x.new_zeros((*rows.shape, *x.shape[1:]))
    return torch.where(exists[..., None, None], x, 0), exists


def padded(
    product: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor | None, bounds_k: Tensor | None,
    max_q: int, max_k: int, q_weight: Tensor | None, k_weight: Tensor | None, eps: float, scale: float,
) -> Tensor:  # fmt: skip
    """`attention` by a product of padded inputs, `by_sdpa` or `by_xformers`; packed ones are gathered and scattered on the
    device, without a synchronisation."""
    packed_rows = q.shape[0] if q.ndim == 3 else None
    sides = ((q, bounds_q, max_q), (k, bounds_k, max_k))
    too_long = [bounds.diff() > longest for x, bounds, longest in sides if bounds is not None and x.ndim == 3]
    if q_weight is not None and k_weight is not None:
        q, k = rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)
    q, q_exists = _padded(q, bounds_q, max_q)
    k, k_exists = _padded(k, bounds_k, max_k)
    out = product(q, k, _padded(v, bounds_k, max_k)[0], q_exists, k_exists, scale)
    for beyond in too_long:  # as the kernels do, so that rows left out do not go unnoticed
        out = torch.where(beyond[:, None, None, None], float("nan"), out)
    if packed_rows is not None:
        assert bounds_q is not None
        row = torch.arange(packed_rows, device=q.device)
        sequence = torch.searchsorted(bounds_q[1:].contiguous(), row.to(bounds_q.dtype), right=True)
        inside = sequence < q.shape[0]
        sequence = sequence.clamp(max=q.shape[0] - 1)
        out = torch.where(
            inside[:, None, None], out[sequence, (row - bounds_q[sequence]).clamp(0, max(max_q - 1, 0))], 0
        )
    elif q_exists is not None:
        out = torch.where(q_exists[..., None, None], out, 0)
    return out.contiguous()


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, q_exists: Tensor | None, k_exists: Tensor | None, scale: float) -> Tensor:
    """One call with a key mask."""
    return masked(q, k, v, None if k_exists is None else k_exists[:, None, None], scale)


def masked(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """SDPA on (B, L, H, D), allowed (B, 1, L or 1, N): queries that see nothing give zero, with finite gradients."""
    blind = None
    if allowed is not None:
        blind = ~allowed.any(-1, keepdim=True)
        allowed = allowed | blind
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    # Without keys the plain product is zero, and so are its gradients.
    out = scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale) if k.shape[2] else q @ k.mT @ v
    return (out if blind is None else out.masked_fill(blind, 0)).transpose(1, 2)


def by_xformers(
    q: Tensor, k: Tensor, v: Tensor, q_exists: Tensor | None, k_exists: Tensor | None, scale: float
) -> Tensor:
    """memory_efficient_attention, block-diagonal over the non-empty sequences. Lengths are read back: it wants lists."""
    from xformers.ops import fmha  # type: ignore[import-untyped]

    if q_exists is None and k_exists is None:
        dense: Tensor = fmha.memory_efficient_attention(q, k, v, scale=scale)
        return dense
    rows_q, rows_k = (
        x.new_ones(x.shape[:2], dtype=torch.bool) if exists is None else exists
        for x, exists in ((q, q_exists), (k, k_exists))
    )
    kept = rows_q.any(1) & rows_k.any(1)
    lengths = [rows[kept].sum(1).tolist() for rows in (rows_q, rows_k)]
    if not lengths[0]:
        return 0 * q
    rows_q, rows_k = rows_q & kept[:, None], rows_k & kept[:, None]
    mask = fmha.attn_bias.BlockDiagonalMask.from_seqlens(*lengths, device=q.device)
    found = fmha.memory_efficient_attention(q[rows_q][None], k[rows_k][None], v[rows_k][None], mask, scale=scale)
    return torch.zeros_like(q).index_put((rows_q,), found[0])

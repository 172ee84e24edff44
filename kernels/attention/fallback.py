"""`attention` on other people's kernels: PyTorch's scaled_dot_product_attention, and xformers' block-diagonal attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from javisc.kernels.attention.reference import rms_norm


def _normed(
    q: Tensor, k: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    if q_weight is None or k_weight is None:
        return q, k
    return rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)


def _padded(x: Tensor, bounds: Tensor | None, longest: int) -> tuple[Tensor, Tensor | None]:
    """(B, longest, H, D) with zeros beyond the lengths, and which rows exist (B, longest); None: all."""
    if bounds is None:
        return x, None
    position = torch.arange(longest, device=x.device)
    if x.ndim == 4:
        exists = position < bounds[:, None]
    else:
        exists = position < bounds.diff()[:, None]
        rows = (bounds[:-1, None] + position).clamp(max=max(x.shape[0] - 1, 0))
        x = x[rows] if x.shape[0] else x.new_zeros((*rows.shape, *x.shape[1:]))
    return torch.where(exists[..., None, None], x, 0), exists


def with_sdpa(
    q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor | None, bounds_k: Tensor | None, max_q: int, max_k: int,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, scale: float,
) -> Tensor:  # fmt: skip
    """One padded call with a key mask; packed inputs are gathered and scattered on the device, without a synchronisation."""
    packed_rows = q.shape[0] if q.ndim == 3 else None
    sides = ((q, bounds_q, max_q), (k, bounds_k, max_k))
    too_long = [bounds.diff() > longest for x, bounds, longest in sides if bounds is not None and x.ndim == 3]
    q, k = _normed(q, k, q_weight, k_weight, eps)
    q, q_exists = _padded(q, bounds_q, max_q)
    k, k_exists = _padded(k, bounds_k, max_k)
    v, _ = _padded(v, bounds_k, max_k)
    mask = None
    if k_exists is not None:
        # A sequence without keys sees its (zero) padding, which makes its output zero with finite gradients.
        mask = (k_exists | ~k_exists.any(1, keepdim=True))[:, None, None, :]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    # Without keys the plain product is zero, and so are its gradients.
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale) if max_k else q @ k.mT @ v
    out = out.transpose(1, 2)
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


def _lengths(x: Tensor, bounds: Tensor | None) -> list[int]:
    if bounds is None:
        return [x.shape[1]] * x.shape[0]
    return (bounds.diff() if x.ndim == 3 else bounds).tolist()


def _kept(x: Tensor, lengths: list[int], keep: list[bool]) -> Tensor:
    """Row numbers, in the flattened rows, of the sequences that are kept."""
    starts = [0]
    for n in lengths if x.ndim == 3 else [x.shape[1]] * x.shape[0]:
        starts.append(starts[-1] + n)
    pieces = [torch.arange(s, s + n) for s, n, k in zip(starts, lengths, keep) if k]
    return torch.cat(pieces).to(x.device) if pieces else torch.arange(0, device=x.device)


def with_xformers(
    q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor | None, bounds_k: Tensor | None, max_q: int, max_k: int,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, scale: float,
) -> Tensor:  # fmt: skip
    """memory_efficient_attention, block-diagonal over the non-empty sequences. Lengths are read back: it wants lists."""
    from xformers.ops import fmha  # type: ignore[import-untyped]

    q, k = _normed(q, k, q_weight, k_weight, eps)
    if bounds_q is None and bounds_k is None:
        dense: Tensor = fmha.memory_efficient_attention(q, k, v, scale=scale)
        return dense
    lengths_q, lengths_k = _lengths(q, bounds_q), _lengths(k, bounds_k)
    keep = [a > 0 and b > 0 for a, b in zip(lengths_q, lengths_k, strict=True)]
    out = torch.zeros_like(q, memory_format=torch.contiguous_format).flatten(0, -3)
    if not any(keep):
        return (out + 0 * q.reshape(out.shape)).view(q.shape)
    rows_q, rows_k = _kept(q, lengths_q, keep), _kept(k, lengths_k, keep)
    mask = fmha.attn_bias.BlockDiagonalMask.from_seqlens(
        [n for n, use in zip(lengths_q, keep) if use], [n for n, use in zip(lengths_k, keep) if use], device=q.device
    )
    flat_q, flat_k, flat_v = (x.flatten(0, -3) for x in (q, k, v))
    got = fmha.memory_efficient_attention(
        flat_q[rows_q][None], flat_k[rows_k][None], flat_v[rows_k][None], mask, scale=scale
    )
    return out.index_copy(0, rows_q, got[0]).view(q.shape)

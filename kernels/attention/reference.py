"""The definition of attention that every backend is judged by: one sequence after another, in plain arithmetic."""

from __future__ import annotations

import torch


def rms_norm(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x²) + eps) over the last dim, in at least float32 and rounded to x's dtype, then times the gain."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return normed if weight is None else normed * weight.to(x.dtype)


def _sequences(x: torch.Tensor, lengths: torch.Tensor | None, bounds: torch.Tensor | None) -> list[torch.Tensor]:
    if bounds is not None:
        return [x[a:b] for a, b in zip(bounds.tolist(), bounds.tolist()[1:])]
    return list(x) if lengths is None else [row[:n] for row, n in zip(x, lengths.tolist(), strict=True)]


def _softmax_of_products(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """softmax(q kᵀ · scale) v of (…, L, H, D) and twice (…, N, H, D); zero without keys."""
    logits = torch.einsum("...ihd,...jhd->...hij", q, k) * scale
    return torch.einsum("...hij,...jhd->...ihd", logits.softmax(-1), v)


def attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    lengths_q: torch.Tensor | None = None,
    lengths_k: torch.Tensor | None = None,
    cu_seqlens_q: torch.Tensor | None = None,
    cu_seqlens_k: torch.Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 1e-6,
    scale: float | None = None,
) -> torch.Tensor:
    """What `attention` computes, in the inputs' dtype (float64 in tests); the same arguments, without a backend."""
    if q_weight is not None and k_weight is not None:
        q, k = rms_norm(q, q_weight, eps), rms_norm(k, k_weight, eps)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if all(bounds is None for bounds in (lengths_q, lengths_k, cu_seqlens_q, cu_seqlens_k)):
        return _softmax_of_products(q, k, v, scale)
    outputs = []
    pairs = zip(
        _sequences(q, lengths_q, cu_seqlens_q),
        _sequences(k, lengths_k, cu_seqlens_k),
        _sequences(v, lengths_k, cu_seqlens_k),
        strict=True,
    )
    for sequence in pairs:
        out = _softmax_of_products(*sequence, scale)
        if cu_seqlens_q is None:
            out = torch.nn.functional.pad(out, (0, 0, 0, 0, 0, q.shape[1] - len(out)))
        outputs.append(out)
    return torch.cat(outputs) if cu_seqlens_q is not None else torch.stack(outputs)

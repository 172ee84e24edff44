"""Selector attention with the key and value projections absorbed: keys and values are never formed.

logits = q·(w_k c + b_k) = (w_kᵀ q)·c + q·b_k, and the last term is the same for all keys of a query, so softmax drops it;
Σ p (w_v c + b_v) = w_v Σ p c + b_v, as the p sum to 1. So the context (B, N, D) itself is attended to by S·H absorbed queries of
width D, in two matrix products per chunk of tokens. Exact as long as there is no dropout on the attention probabilities: then the
p no longer sum to 1 and b_v would have to be weighed by what is left.

Against the projected form per token: 4·S·H·D FLOPs instead of 4·D·H·d + 4·S·H·d, and the context is read once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from javisc.kernels import dispatch, registration
from javisc.kernels.selector_attention.op import with_torch

# mypy: disable-error-code="no-untyped-call"

OP = "absorbed_selector_attention"
CHUNK = 4096  # tokens whose logits exist at a time: (B, S·H, CHUNK) float32

dispatch.register(
    OP,
    "torch",
    needs="nothing; no dropout on attention probabilities",
    when="always: two batched matrix products per chunk of tokens, on any device",
)


def _softmax_input(queries: Tensor, chunk: Tensor) -> Tensor:
    """Return the logits (B, M, chunk) in float32 (float64 stays)."""
    logits = torch.matmul(queries, chunk.transpose(1, 2))
    return logits if logits.dtype == torch.float64 else logits.float()


class _Shared(torch.autograd.Function):
    """Attention of `queries` (B, M, D) over `context` (B, N, D), which serves as keys and as values; chunked over N."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, context: Tensor) -> Tensor:  # type: ignore[override]
        wide = torch.float64 if queries.dtype == torch.float64 else torch.float32
        shape = queries.shape
        top = torch.full(shape[:2], -torch.inf, dtype=wide, device=queries.device)
        total = torch.zeros_like(top)
        mixed = torch.zeros(shape, dtype=wide, device=queries.device)
        for chunk in context.split(CHUNK, 1):
            p = _softmax_input(queries, chunk)
            new_top = torch.maximum(top, p.amax(-1))
            p.sub_(new_top[..., None]).exp_()
            shrink = (top - new_top).exp_()
            total.mul_(shrink).add_(p.sum(-1))
            mixed.mul_(shrink[..., None]).add_(torch.matmul(p.to(context.dtype), chunk))
            top = new_top
        out = mixed.div_(total[..., None]).to(queries.dtype)
        ctx.save_for_backward(queries, context, out, top + total.log())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        queries, context, out, lse = ctx.saved_tensors
        wide = lse.dtype
        delta = (dout.to(wide) * out.to(wide)).sum(-1, keepdim=True)
        dqueries = torch.zeros(queries.shape, dtype=wide, device=queries.device)
        dcontext = torch.empty_like(context)
        for start in range(0, context.shape[1], CHUNK):
            chunk = context[:, start : start + CHUNK]
            p = _softmax_input(queries, chunk).sub_(lse[..., None]).exp_()
            ds = torch.matmul(dout, chunk.transpose(1, 2)).to(wide).sub_(delta).mul_(p).to(context.dtype)
            dqueries.add_(torch.matmul(ds, chunk))
            values = torch.matmul(p.to(context.dtype).transpose(1, 2), dout)
            torch.add(torch.matmul(ds.transpose(1, 2), queries), values, out=dcontext[:, start : start + CHUNK])
        return dqueries.to(queries.dtype), dcontext


def absorbed_selector_attention(
    q: Tensor,
    context: Tensor,
    w_k: Tensor,
    b_k: Tensor | None,
    w_v: Tensor,
    b_v: Tensor | None,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """Return selector attention over keys w_k·c + b_k and values w_v·c + b_v without forming them, (B, S, H, d) in q's dtype.

    q (B, S, H, d) projected queries, context (B, N, D), w_k and w_v (H·d, D), b_k and b_v (H·d) or None. Memory beyond the
    context and its gradient does not grow with N. `b_k` cannot change the result; its gradient is 0. Without tokens the
    result is 0.
    Use `selector_attention` on projected keys where attention probabilities are dropped out: `dropout` other than 0 is refused.

    Raises ValueError for dropout and for shapes that do not fit, BackendError if `backend` is not torch.
    """
    if dropout:
        raise ValueError(
            f"{OP}: dropout={dropout} on the attention probabilities is not exact in this form; use selector_attention"
        )
    width = (q.shape[2] * q.shape[3], context.shape[-1]) if q.ndim == 4 else ()
    if context.ndim != 3 or context.shape[0] != q.shape[0] or w_k.shape != width or w_v.shape != width:
        raise ValueError(
            f"{OP}: q {tuple(q.shape)}, context {tuple(context.shape)}, w_k {tuple(w_k.shape)}, w_v {tuple(w_v.shape)} "
            "do not fit: give (B, S, H, d), (B, N, D) and twice (H·d, D)"
        )
    dispatch.choose(dispatch.Request(OP, q.device, q.dtype, q.shape[-1]), backend)
    q, context, w_k, w_v = (t for t in registration.autocast(q, context, w_k, w_v) if t is not None)
    samples, queries, heads, dim = q.shape
    if not context.shape[1]:
        empty = q.new_empty(samples, 0, heads, dim)
        return with_torch(q, empty, empty, 1.0)
    factor = dim**-0.5 if scale is None else float(scale)
    w_k, w_v = w_k.unflatten(0, (heads, dim)), w_v.unflatten(0, (heads, dim))
    absorbed = torch.einsum("bshd,hdc->bshc", q * factor, w_k)
    mixed: Tensor = _Shared.apply(absorbed.flatten(1, 2), context)
    out = torch.einsum("bshc,hdc->bshd", mixed.unflatten(1, (queries, heads)), w_v)
    if b_v is not None:
        out = out + b_v.to(out.dtype).view(heads, dim)
    if b_k is not None and b_k.requires_grad:
        out = out + 0 * b_k.to(out.dtype).view(heads, dim)
    return out

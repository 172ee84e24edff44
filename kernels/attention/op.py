"""`attention`: the public function, its opaque ops, its gradient, its rows of the backend table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from javisc.kernels import dispatch
from javisc.kernels.attention import host
from javisc.kernels.dispatch import Request
from javisc.kernels.registration import autocast, define

_COMMON = "Tensor? bounds_q, Tensor? bounds_k, SymInt max_q, SymInt max_k, Tensor? q_weight, Tensor? k_weight"
FORWARD = define(
    "attention_fwd",
    f"(Tensor q, Tensor k, Tensor v, {_COMMON}, float eps, float scale) -> (Tensor, Tensor, Tensor, Tensor)",
    host.forward,
    host.forward_fake,
    flops=host.forward_flops,
    save=True,
)
BACKWARD = define(
    "attention_bwd",
    "(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor rq, Tensor rk, "
    f"{_COMMON}, float scale) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    host.backward,
    host.backward_fake,
    flops=host.backward_flops,
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor | None, bounds_k: Tensor | None, max_q: int, max_k: int,
        q_weight: Tensor | None, k_weight: Tensor | None, eps: float, scale: float,
    ) -> Tensor:  # fmt: skip
        o, lse, rq, rk = FORWARD(q, k, v, bounds_q, bounds_k, max_q, max_k, q_weight, k_weight, eps, scale)
        ctx.save_for_backward(q, k, v, o, lse, rq, rk, bounds_q, bounds_k, q_weight, k_weight)
        ctx.lengths, ctx.scale = (max_q, max_k), scale
        return o

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        *tensors, q_weight, k_weight = ctx.saved_tensors
        dq, dk, dv, dwq, dwk = BACKWARD(do, *tensors, *ctx.lengths, q_weight, k_weight, ctx.scale)
        norm = q_weight is not None
        return dq, dk, dv, None, None, None, None, dwq if norm else None, dwk if norm else None, None, None


def _refuse_triton(request: Request) -> str | None:
    if not 8 <= request.head_dim <= 128 or request.head_dim % 8:
        return f"its kernels take head dims from 8 to 128 in steps of 8, not {request.head_dim}"
    return dispatch.refuse_triton(request)


def _refuse_xformers(request: Request) -> str | None:
    return dispatch.refuse_xformers(request)


dispatch.register(
    "attention",
    "triton",
    needs="CUDA 8.0+ (or the interpreter); float32, float16, bfloat16; head dim 8–128, a multiple of 8",
    when="on CUDA, 16-bit: norms, lengths, or a head dim other than 64 and 128 (PyTorch's own kernels pad those)",
    refuse=_refuse_triton,
    prefer=lambda r: (
        r.device.type == "cuda" and r.dtype.itemsize == 2 and (bool(r.features) or r.head_dim not in (64, 128))
    ),
)
dispatch.register(
    "attention",
    "xformers",
    needs="CUDA; float32, float16, bfloat16; head dim a multiple of 8",
    when="on CUDA, lengths, where the Triton kernels cannot run",
    refuse=_refuse_xformers,
    prefer=lambda r: "lengths" in r.features,
)
dispatch.register("attention", "torch", needs="nothing", when="otherwise: scaled_dot_product_attention")


def _side(
    name: str, x: Tensor, lengths: Tensor | None, cu: Tensor | None, longest: int | None
) -> tuple[Tensor | None, int, int]:
    """Check one side; return its bounds, its longest sequence, its number of sequences."""
    if x.ndim == 3:
        if cu is None or longest is None or lengths is not None:
            raise ValueError(
                f"attention: {name} is packed (N, H, D); give cu_seqlens_{name} (B + 1) and max_seqlen_{name}, no lengths_{name}"
            )
        return cu, longest, cu.shape[0] - 1
    if x.ndim != 4:
        raise ValueError(f"attention: {name} has shape {tuple(x.shape)}; give (B, L, H, D), or packed (N, H, D)")
    if cu is not None or longest is not None:
        raise ValueError(
            f"attention: cu_seqlens_{name} and max_seqlen_{name} are for packed (N, H, D); {name} is {tuple(x.shape)}"
        )
    if lengths is not None and lengths.shape != x.shape[:1]:
        raise ValueError(f"attention: lengths_{name} has shape {tuple(lengths.shape)}; give ({x.shape[0]},)")
    return lengths, x.shape[1], x.shape[0]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths_q: Tensor | None = None,
    lengths_k: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 1e-6,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale) v for every head of every sequence; self- or cross-attention, no causality.

    q is (B, Lq, H, D), or packed (Nq, H, D) with cu_seqlens_q, int32 (B + 1) that starts at 0, and max_seqlen_q, an upper bound
    known on the host. k and v likewise, on their own: dense queries against packed text are fine. Views
    such as `qkv.unbind(2)` are read in place. lengths_q, lengths_k: (B,) integers; rows beyond them are neither read nor seen.
    q_weight, k_weight (D,): RMSNorm gains; given both, queries and keys are normed over D first, x/sqrt(mean(x²) + eps)·gain.
    scale: D ** -0.5 unless given; must be positive.

    Returns contiguous (B, Lq, H, D) or (Nq, H, D) in q's dtype. Rows beyond a length, beyond the last packed sequence, or whose
    sequence has no keys, are zero and have zero gradients. Gradients are the same to the bit from run to run (triton).
    Under autocast inputs are cast as for `scaled_dot_product_attention`. Softmax and sums are in float32.

    Raises ValueError for shapes that do not fit, BackendError if `backend` was given and cannot run.
    """
    if (q_weight is None) != (k_weight is None):
        raise ValueError("attention: give both q_weight and k_weight, or neither")
    if k.shape != v.shape or k.shape[-2:] != q.shape[-2:]:
        raise ValueError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: "
            "k and v must agree, and heads and head dim with q"
        )
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if scale <= 0:
        raise ValueError(f"attention: scale={scale}; it must be positive")
    bounds_q, max_q, batch = _side("q", q, lengths_q, cu_seqlens_q, max_seqlen_q)
    bounds_k, max_k, batch_k = _side("k", k, lengths_k, cu_seqlens_k, max_seqlen_k)
    if batch != batch_k:
        raise ValueError(f"attention: {batch} sequences of queries, {batch_k} of keys")
    q, k, v = (t for t in autocast(q, k, v) if t is not None)
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"attention: q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}; give one")
    used = {"norm": q_weight is not None, "lengths": bounds_q is not None or bounds_k is not None}
    request = Request("attention", q.device, q.dtype, q.shape[-1], frozenset(name for name, on in used.items() if on))
    name = dispatch.choose(request, backend)
    if name == "triton":
        apply: Callable[..., Tensor] = _Attention.apply
        return apply(q, k, v, bounds_q, bounds_k, max_q, max_k, q_weight, k_weight, eps, scale)
    from javisc.kernels.attention import fallback

    run = fallback.with_xformers if name == "xformers" else fallback.with_sdpa
    return run(q, k, v, bounds_q, bounds_k, max_q, max_k, q_weight, k_weight, eps, scale)

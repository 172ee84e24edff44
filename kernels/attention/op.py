"""`attention`: the public function, its rows of the backend table."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from javisc.kernels import dispatch, operands
from javisc.kernels.attention import fallback, host
from javisc.kernels.dispatch import Request
from javisc.kernels.registration import differentiable

OP = differentiable(
    "attention",
    "Tensor q, Tensor k, Tensor v, Tensor? bounds_q, Tensor? bounds_k, SymInt max_q, SymInt max_k, "
    "Tensor? q_weight, Tensor? k_weight, float eps, float scale",
    host,
    gradients=("q", "k", "v", "q_weight", "k_weight"),
    strided=("q", "k", "v"),
    save=True,
)
#: From this many queries a frame PyTorch's attention is taken for normed heads, until ours is measured there.
LONG = 900


def register(op: str, when: str, prefer: Callable[[Request], bool], *, least: int = 8, **others: Any) -> None:
    """Add the rows of an op whose kernels take heads from `least` to 128 wide; others: see `dispatch.register_op`."""

    def refuse(request: Request) -> str | None:
        if not least <= request.head_dim <= 128 or request.head_dim % 8:
            return f"its kernels take head dims from {least} to 128 in steps of 8, not {request.head_dim}"
        return dispatch.refuse_triton(request)

    needs = f"CUDA 8.0+ (or the interpreter); float32, float16, bfloat16; head dim {least}–128, a multiple of 8"
    dispatch.register_op(op, needs=needs, when=when, refuse=refuse, prefer=prefer, **others)


def _prefer(request: Request) -> bool:
    used = request.features
    plain = "lengths" in used or request.head_dim not in (64, 128)  # PyTorch's own kernels pad other heads
    return dispatch.on_cuda_in_16_bits(request) and ("long" not in used if "norm" in used else plain)


register(
    "attention",
    f"on CUDA, 16-bit: lengths, a head dim other than 64 and 128, or norms below {LONG} queries (not measured yet)",
    _prefer,
    xformers=dispatch.refuse_xformers,  # it reads lengths back to the host
    torch="scaled_dot_product_attention",
)


def _side(
    name: str, x: Tensor, lengths: Tensor | None, cu: Tensor | None, longest: int | None
) -> tuple[Tensor | None, int, int]:
    """Check one side; return its bounds, its longest sequence, its number of sequences."""
    for label, given in ((f"lengths_{name}", lengths), (f"cu_seqlens_{name}", cu)):
        if given is not None and (given.is_floating_point() or given.dtype == torch.bool or given.ndim != 1):
            raise ValueError(
                f"attention: {label} is {given.dtype} {tuple(given.shape)}; give integers in one dimension"
            )
    if x.ndim == 3:
        if cu is None or longest is None or lengths is not None:
            raise ValueError(
                f"attention: {name} is packed (N, H, D); give cu_seqlens_{name} (B + 1) and max_seqlen_{name}, no lengths_{name}"
            )
        _check_packed(name, x, cu, longest)
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


def _check_packed(name: str, x: Tensor, cu: Tensor, longest: int) -> None:
    """Raise ValueError for bounds that do not fit; their values only where reading them costs no wait for a device."""
    if cu.shape[0] < 1:
        raise ValueError(f"attention: cu_seqlens_{name} is empty; give B + 1 bounds, from 0 to at most {x.shape[0]}")
    if torch.compiler.is_compiling() or cu.device.type != "cpu" or isinstance(cu, torch._subclasses.FakeTensor):
        return
    bounds = cu.tolist()
    if bounds[0] < 0 or bounds != sorted(bounds) or bounds[-1] > x.shape[0]:
        raise ValueError(f"attention: cu_seqlens_{name} must rise from 0 to at most the {x.shape[0]} rows of {name}")
    found = max((b - a for a, b in itertools.pairwise(bounds)), default=0)
    if found > longest:
        raise ValueError(f"attention: max_seqlen_{name}={longest}, but the longest sequence has {found} rows")


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

    q is (B, Lq, H, D), or packed (Nq, H, D) with cu_seqlens_q, integers (B + 1) rising from 0, and max_seqlen_q, an upper bound
    known on the host. k and v likewise, on their own: dense queries against packed text are fine. Views
    such as `qkv.unbind(2)` are read in place. lengths_q, lengths_k: (B,) integers; rows beyond them are neither read nor seen;
    longer ones than Lq or Lk count as these.
    q_weight, k_weight (D,): RMSNorm gains; given both, queries and keys are normed over D first, x/sqrt(mean(x²) + eps)·gain.
    scale: D ** -0.5 unless given; must be positive.

    Returns contiguous (B, Lq, H, D) or (Nq, H, D) in q's dtype. Rows beyond a length, beyond the last packed sequence, or whose
    sequence has no keys, are zero and have zero gradients. Gradients are the same to the bit from run to run (triton), and cannot
    be differentiated again. Under autocast inputs are cast as for `scaled_dot_product_attention`. Sums are in float32.

    Raises ValueError for shapes that do not fit and for a max_seqlen below the longest packed sequence (where the bounds are on
    a GPU, reading them would wait for it: there that sequence's results are NaN), BackendError if `backend` was given and cannot
    run.
    """
    operands.together("attention", q_weight=q_weight, k_weight=k_weight)
    operands.shaped("attention", (q.shape[-1],), q_weight=q_weight, k_weight=k_weight)
    if k.shape != v.shape or k.shape[-2:] != q.shape[-2:]:
        raise ValueError(
            f"attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: "
            "k and v must agree, and heads and head dim with q"
        )
    scale = operands.scaled("attention", scale, q.shape[-1])
    bounds_q, max_q, batch = _side("q", q, lengths_q, cu_seqlens_q, max_seqlen_q)
    bounds_k, max_k, batch_k = _side("k", k, lengths_k, cu_seqlens_k, max_seqlen_k)
    if batch != batch_k:
        raise ValueError(f"attention: {batch} sequences of queries, {batch_k} of keys")
    q, k, v = operands.of_one_dtype("attention", q=q, k=k, v=v)
    used = {
        "norm": q_weight is not None,
        "lengths": bounds_q is not None or bounds_k is not None,
        "long": max_q >= LONG,
    }
    name = dispatch.choose(Request.of("attention", q, **used), backend)
    return run(name, q, k, v, bounds_q, bounds_k, max_q, max_k, q_weight, k_weight, eps, scale)


def run(backend: str, *arguments: Any) -> Tensor:
    """The op on a backend that can run it; arguments as in the schema of `OP`."""
    if backend == "triton":
        out: Tensor = OP.apply(*arguments)
        return out
    return fallback.padded(fallback.by_xformers if backend == "xformers" else fallback.by_sdpa, *arguments)


def dense(backend: str, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The op without lengths and norms on a backend that can run it: q (B, L, H, D), k and v (B, N, H, D)."""
    return run(backend, q, k, v, None, None, q.shape[1], k.shape[1], None, None, 0.0, scale)

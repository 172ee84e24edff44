"""The public op `selector_attention`: checks, choice of backend, autograd. Its absorbed form stands in absorbed.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from javisc.kernels import dispatch, registration
from javisc.kernels.launch import architecture
from javisc.kernels.selector_attention import configs, reference

# mypy: disable-error-code="no-untyped-call"

OP = "selector_attention"


def _refuse(request: dispatch.Request) -> str | None:
    if request.head_dim > configs.MAX_DIM:
        return f"its kernels take head dims up to {configs.MAX_DIM}, not {request.head_dim}"
    if "many" in request.features:
        return (
            f"the queries stay resident: at most {configs.MAX_QUERIES} of them ({configs.MAX_QUERIES_WIDE} in float32); "
            "use attention"
        )
    return dispatch.refuse_triton(request)


dispatch.register(
    OP,
    "triton",
    needs=f"CUDA (sm_80 or newer), float32/16/bfloat16, at most {configs.MAX_QUERIES} queries "
    f"({configs.MAX_QUERIES_WIDE} in float32), d at most {configs.MAX_DIM}",
    when="on CUDA, whenever it can run",
    refuse=_refuse,
    prefer=lambda request: request.device.type == "cuda",
)
dispatch.register(
    OP,
    "xformers",
    needs="CUDA, float32/16/bfloat16, d a multiple of 8",
    when="on CUDA with too many queries for the Triton kernel",
    refuse=dispatch.refuse_xformers,
    prefer=lambda request: request.device.type == "cuda",
)
dispatch.register(OP, "torch", needs="nothing", when="otherwise: PyTorch's scaled_dot_product_attention")


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    from javisc.kernels.selector_attention import triton as kernels

    return kernels.forward(q, k, v, scale, architecture(q.device))


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    samples, queries, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((samples, heads, queries), dtype=torch.float32)


def _backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from javisc.kernels.selector_attention import triton as kernels

    return kernels.backward(dout, q, k, v, out, lse, scale, architecture(q.device))


def _backward_fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _flops(products: int, q: Tensor, k: Tensor) -> int:
    return products * 2 * q.numel() * k.shape[1]


FORWARD = registration.define(
    "selector_attention_fwd",
    "(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    flops=lambda q, k, v, scale, out_val=None: _flops(2, q, k),
    save=True,
)
BACKWARD = registration.define(
    "selector_attention_bwd",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, float scale) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    flops=lambda dout, q, k, v, out, lse, scale, out_val=None: _flops(5, q, k),
)


class _Selector(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:  # type: ignore[override]
        out, lse = FORWARD(q, k, v, scale)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        return (*BACKWARD(dout, q, k, v, out, lse, ctx.scale), None)


def check(op: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise ValueError unless q is (B, L, H, d), k and v are (B, N, H, d) and their dtypes agree."""
    fits = q.ndim == k.ndim == 4 and k.shape == v.shape and q.shape[::2] == k.shape[::2] and q.shape[3] == k.shape[3]
    if not fits:
        raise ValueError(
            f"{op}: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit: "
            "give (B, L, H, d) and twice (B, N, H, d)"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"{op}: q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}; give one")


def with_torch(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """PyTorch's attention on (B, L, H, d); 0 without keys."""
    if not k.shape[1]:
        return reference.selector_attention(q, k, v, scale)
    out = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), scale=scale
    )
    return out.transpose(1, 2).contiguous()


def with_xformers(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """xformers' memory-efficient attention on (B, L, H, d)."""
    from xformers.ops import memory_efficient_attention

    out: Tensor = memory_efficient_attention(q, k, v, scale=scale)
    return out


def selector_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, backend: str | None = None
) -> Tensor:
    """Return softmax(q·kᵀ·scale)·v per head, (B, S, H, d) in q's dtype: few queries over many keys.

    q (B, S, H, d), k and v (B, N, H, d); slices such as `kv.unbind(2)` are read in place. `scale` is 1/√d unless given. Work
    and memory grow linearly with N; gradients of the Triton kernel are the same to the bit from run to run. Without keys the
    result is 0. Under autocast inputs are cast as for `scaled_dot_product_attention`.

    Raises ValueError for shapes that do not fit, BackendError if `backend` cannot run.
    """
    check(OP, q, k, v)
    q, k, v = (t for t in registration.autocast(q, k, v) if t is not None)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    limit = configs.MAX_QUERIES if q.element_size() == 2 else configs.MAX_QUERIES_WIDE
    features = frozenset({"many"}) if q.shape[1] > limit else frozenset()
    request = dispatch.Request(OP, q.device, q.dtype, q.shape[-1], features)
    name = dispatch.choose(request, backend)
    if name == "torch":
        return with_torch(q, k, v, factor)
    if name == "xformers":
        return with_xformers(q, k, v, factor)
    out: Tensor = _Selector.apply(q, k, v, factor)
    return out

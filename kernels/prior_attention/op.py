"""The public op `prior_attention`: checks, scope, choice of backend, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from javisc.kernels import dispatch, registration
from javisc.kernels.launch import architecture
from javisc.kernels.prior_attention import configs
from javisc.kernels.prior_attention.reference import Scope
from javisc.kernels.selector_attention.op import check, with_torch, with_xformers

# mypy: disable-error-code="no-untyped-call"

OP = "prior_attention"


def _refuse(request: dispatch.Request) -> str | None:
    if request.head_dim > configs.MAX_DIM:
        return f"its kernels take head dims up to {configs.MAX_DIM}, not {request.head_dim}"
    return dispatch.refuse_triton(request)


dispatch.register(
    OP,
    "triton",
    needs=f"CUDA (sm_80 or newer), float32/16/bfloat16, d at most {configs.MAX_DIM}",
    when="on CUDA, whenever it can run",
    refuse=_refuse,
    prefer=lambda request: request.device.type == "cuda",
)
dispatch.register(
    OP,
    "xformers",
    needs="CUDA, float32/16/bfloat16, d a multiple of 8",
    when="on CUDA, heads too wide for the Triton kernel",
    refuse=dispatch.refuse_xformers,
    prefer=lambda request: request.device.type == "cuda",
)
dispatch.register(OP, "torch", needs="nothing", when="otherwise: PyTorch's scaled_dot_product_attention")


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    from javisc.kernels.prior_attention import triton as kernels

    return kernels.forward(q, k, v, scale, architecture(q.device))


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    samples, length, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((samples, heads, length), dtype=torch.float32)


def _backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    from javisc.kernels.prior_attention import triton as kernels

    return kernels.backward(dout, q, k, v, out, lse, scale, architecture(q.device))


def _backward_fake(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


FORWARD = registration.define(
    "prior_attention_fwd",
    "(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    flops=lambda q, k, v, scale, out_val=None: 2 * 2 * q.numel() * k.shape[1],
    save=True,
)
BACKWARD = registration.define(
    "prior_attention_bwd",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, float scale) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    flops=lambda dout, q, k, v, out, lse, scale, out_val=None: 5 * 2 * q.numel() * k.shape[1],
)


class _Prior(torch.autograd.Function):
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


def prior_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scope: Scope, scale: float | None = None, backend: str | None = None
) -> Tensor:
    """Return softmax(q·kᵀ·scale)·v per head, (B, N, H, d) in q's dtype: many queries over the few distinct prior tokens.

    q (B, N, H, d), k and v (B, P, H, d), each prior token once: never repeated over frames or positions. scope "batch": a query
    sees the tokens of all B samples, as the published weights were trained and must be sampled. scope "sample": its own
    sample's. `scale` is 1/√d unless given. Gradients of the Triton kernel are the same to the bit from run to run. Under
    autocast inputs are cast as for `scaled_dot_product_attention`.

    Raises ValueError for shapes that do not fit or another scope, BackendError if `backend` cannot run.
    """
    check(OP, q, k, v)
    if scope not in ("batch", "sample"):
        raise ValueError(
            f"{OP}: scope={scope!r}: give 'batch' (prior tokens of all samples) or 'sample' (of the own one)"
        )
    q, k, v = (t for t in registration.autocast(q, k, v) if t is not None)
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    shape = q.shape
    if scope == "batch":
        q, k, v = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))
    name = dispatch.choose(dispatch.Request(OP, q.device, q.dtype, q.shape[-1]), backend)
    if name == "torch":
        out = with_torch(q, k, v, factor)
    elif name == "xformers":
        out = with_xformers(q, k, v, factor)
    else:
        out = _Prior.apply(q, k, v, factor)
    return out.reshape(shape)

"""The public op `rms_norm_rope`: checks, choice of backend, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from javisc.kernels import dispatch, registration
from javisc.kernels.launch import architecture
from javisc.kernels.rms_norm_rope import configs, reference
from javisc.kernels.rms_norm_rope.reference import EPS

# mypy: disable-error-code="no-untyped-call"

OP = "rms_norm_rope"


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
dispatch.register(OP, "torch", needs="nothing", when="otherwise")


def _forward(x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
    from javisc.kernels.rms_norm_rope import triton as kernels

    return kernels.forward(x, weight, cos, sin, eps, architecture(x.device))


def _forward_fake(x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float) -> Tensor:
    return x.new_empty(x.shape)


def _backward(
    dout: Tensor, x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    from javisc.kernels.rms_norm_rope import triton as kernels

    return kernels.backward(dout, x, weight, cos, sin, eps, architecture(x.device))


def _backward_fake(
    dout: Tensor, x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(0) if weight is None else torch.empty_like(weight)


FORWARD = registration.define(
    "rms_norm_rope_fwd",
    "(Tensor x, Tensor? weight, Tensor? cos, Tensor? sin, float eps) -> Tensor",
    _forward,
    _forward_fake,
    flops=lambda *args, **kwargs: 0,  # elementwise: PyTorch counts products of matrices only
)
BACKWARD = registration.define(
    "rms_norm_rope_bwd",
    "(Tensor dout, Tensor x, Tensor? weight, Tensor? cos, Tensor? sin, float eps) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
    flops=lambda *args, **kwargs: 0,
)


class _NormRope(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, cos, sin)
        ctx.eps = eps
        out: Tensor = FORWARD(x, weight, cos, sin, eps)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        x, weight, cos, sin = ctx.saved_tensors
        dx, dweight = BACKWARD(dout, x, weight, cos, sin, ctx.eps)
        return dx, dweight if weight is not None else None, None, None, None


def rms_norm_rope(
    x: Tensor,
    weight: Tensor | None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    *,
    eps: float = EPS,
    backend: str | None = None,
) -> Tensor:
    """Return the heads of `x` (…, L, H, d) divided by their root mean square, times `weight` (d), turned by their position.

    `cos` and `sin` (L, d/2): the pair (2i, 2i+1) of a head at position l turns by the angle whose cosine is cos[l, i]. Without
    them nothing turns; with weight None nothing is normed. `x` may be a slice such as `qkv[..., 0, :, :]`, which is read in
    place. The result is contiguous, in x's dtype; norm, gain and turn are computed in float32. No gradient flows to the angles.

    Raises ValueError for shapes that do not fit or angles that require gradients, BackendError if `backend` cannot run.
    """
    if x.ndim < 3 or (weight is not None and weight.shape != x.shape[-1:]):
        given = None if weight is None else tuple(weight.shape)
        raise ValueError(f"{OP}: x {tuple(x.shape)}, weight {given}: give (…, L, H, d) and (d,)")
    if (cos is None) != (sin is None):
        raise ValueError(f"{OP}: cos and sin go together: one is given without the other")
    if cos is not None and sin is not None:
        wanted = (x.shape[-3], x.shape[-1] // 2)
        if x.shape[-1] % 2 or cos.shape != wanted or sin.shape != wanted:
            raise ValueError(
                f"{OP}: cos {tuple(cos.shape)}, sin {tuple(sin.shape)} for x {tuple(x.shape)}: give (L, d/2) and an even d"
            )
        if cos.requires_grad or sin.requires_grad:
            raise ValueError(f"{OP}: cos and sin get no gradient: detach them")
        cos, sin = cos.contiguous(), sin.contiguous()
    if dispatch.choose(dispatch.Request(OP, x.device, x.dtype, x.shape[-1]), backend) == "torch":
        return reference.rms_norm_rope(x, weight, cos, sin, eps)
    out: Tensor = _NormRope.apply(x, weight, cos, sin, eps)
    return out

"""The public ops `modulated_layer_norm`, `gated_residual` and the two fused: checks, choice of backend, autograd.

One opaque pair of ops serves all three: what a call does not have is None on the way in and empty on the way out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from javisc.kernels import dispatch, registration
from javisc.kernels.launch import architecture
from javisc.kernels.modulated_norm import configs, reference
from javisc.kernels.modulated_norm.reference import EPS

# mypy: disable-error-code="no-untyped-call"

OPS = ("modulated_layer_norm", "gated_residual", "gated_residual_layer_norm")


def _refuse(request: dispatch.Request) -> str | None:
    if "wide" in request.features:
        return f"a row stays in registers: at most {configs.MAX_CHANNELS} channels"
    return dispatch.refuse_triton(request)


for _op in OPS:
    dispatch.register(
        _op,
        "triton",
        needs=f"CUDA (sm_80 or newer), float32/16/bfloat16, at most {configs.MAX_CHANNELS} channels",
        when="on CUDA, whenever it can run",
        refuse=_refuse,
        prefer=lambda request: request.device.type == "cuda",
    )
    dispatch.register(_op, "torch", needs="nothing", when="otherwise")


def _forward(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    gate0: Tensor | None,
    shift: Tensor | None,
    shift0: Tensor | None,
    scale: Tensor | None,
    scale0: Tensor | None,
    mask: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from javisc.kernels.modulated_norm import triton as kernels

    return kernels.forward(x, y, gate, gate0, shift, shift0, scale, scale0, mask, eps, architecture(x.device))


def _forward_fake(x: Tensor, y: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    norm = rest[2] is not None
    stats = x.new_empty(x.shape[:-1] if norm else (0,), dtype=torch.float32)
    return (
        torch.empty_like(x) if y is not None else x.new_empty(0),
        torch.empty_like(x) if norm else x.new_empty(0),
        stats,
        torch.empty_like(stats),
    )


def _backward(
    dresidual: Tensor | None,
    dout: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    gate0: Tensor | None,
    scale: Tensor | None,
    scale0: Tensor | None,
    mask: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    from javisc.kernels.modulated_norm import triton as kernels

    arch = architecture(x.device)
    return kernels.backward(dresidual, dout, x, y, gate, gate0, scale, scale0, mask, mean, rstd, arch)


def _backward_fake(
    dresidual: Tensor | None,
    dout: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    gate0: Tensor | None,
    scale: Tensor | None,
    scale0: Tensor | None,
    mask: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    kinds = 2 * (scale is not None) + (y is not None)
    like = x if y is None else y
    shape = (kinds, like.shape[0], 1 if mask is None else 2, like.shape[-1])
    return (
        torch.empty_like(x) if scale is not None else x.new_empty(0),
        torch.empty_like(y) if y is not None else x.new_empty(0),
        x.new_empty(shape, dtype=torch.float32),
    )


FORWARD = registration.define(
    "modulated_norm_fwd",
    "(Tensor x, Tensor? y, Tensor? gate, Tensor? gate0, Tensor? shift, Tensor? shift0, Tensor? scale, Tensor? scale0,"
    " Tensor? mask, float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    flops=lambda *args, **kwargs: 0,  # elementwise: PyTorch counts products of matrices only
)
BACKWARD = registration.define(
    "modulated_norm_bwd",
    "(Tensor? dresidual, Tensor? dout, Tensor x, Tensor? y, Tensor? gate, Tensor? gate0, Tensor? scale, Tensor? scale0,"
    " Tensor? mask, Tensor mean, Tensor rstd) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
    flops=lambda *args, **kwargs: 0,
)


class _Fused(torch.autograd.Function):
    """All tensors (B, T, S, C), modulations (B, C). Saves what was normalised, its statistics, and y where there is a gate."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        y: Tensor | None,
        gate: Tensor | None,
        gate0: Tensor | None,
        shift: Tensor | None,
        shift0: Tensor | None,
        scale: Tensor | None,
        scale0: Tensor | None,
        mask: Tensor | None,
        eps: float,
    ) -> Any:
        residual, out, mean, rstd = FORWARD(x, y, gate, gate0, shift, shift0, scale, scale0, mask, eps)
        gated, norm = y is not None, scale is not None
        # Without a norm nothing of x is needed; the kernel still wants a tensor to know device and dtype by.
        kept = (residual if gated else x) if norm else x.new_empty(0)
        ctx.save_for_backward(kept, y, gate, gate0, scale, scale0, mask, mean, rstd)
        ctx.dtypes = [t.dtype if t is not None else None for t in (shift, shift0, scale, scale0, gate, gate0)]
        return (residual, out) if gated and norm else residual if gated else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        kept, y, gate, gate0, scale, scale0, mask, mean, rstd = ctx.saved_tensors
        gated, norm = y is not None, scale is not None
        dresidual = grads[0].contiguous() if gated else None
        dout = grads[-1].contiguous() if norm else None
        dx, dy, sums = BACKWARD(dresidual, dout, kept, y, gate, gate0, scale, scale0, mask, mean, rstd)
        parts: list[Tensor | None] = []
        for kind, dtype, dtype0 in zip((0, 1, sums.shape[0] - 1), ctx.dtypes[::2], ctx.dtypes[1::2]):
            parts.append(None if dtype is None else sums[kind, :, 0].to(dtype))
            parts.append(None if dtype0 is None else sums[kind, :, 1].to(dtype0))
        dshift, dshift0, dscale, dscale0, dgate, dgate0 = parts
        return (
            dx if norm else dresidual,
            dy if gated else None,
            dgate,
            dgate0,
            dshift,
            dshift0,
            dscale,
            dscale0,
            None,
            None,
        )


def _check(x: Tensor, y: Tensor | None, mask: Tensor | None, pairs: dict[str, tuple[Tensor, Tensor | None]]) -> None:
    """Raise ValueError where shapes do not fit."""
    if x.ndim not in (3, 4):
        raise ValueError(f"x has shape {tuple(x.shape)}: give (B, N, C) or (B, T, S, C)")
    if y is not None and y.shape != x.shape:
        raise ValueError(f"y has shape {tuple(y.shape)}, x {tuple(x.shape)}: they must agree")
    if mask is not None:
        frames = mask.shape[1] if mask.ndim == 2 else 0
        fits = frames == x.shape[1] if x.ndim == 4 else frames > 0 and x.shape[1] % frames == 0
        if mask.dtype != torch.bool or mask.ndim != 2 or mask.shape[0] != x.shape[0] or not fits:
            raise ValueError(
                f"mask is {mask.dtype} {tuple(mask.shape)} for x {tuple(x.shape)}: give bool (B, T), T frames of equal length"
            )
    wanted = (x.shape[0], x.shape[-1])
    for name, (value, value0) in pairs.items():
        if (value0 is None) != (mask is None):
            raise ValueError(f"mask and {name}0 go together: one is given without the other")
        for label, tensor in ((name, value), (f"{name}0", value0)):
            if tensor is not None and tensor.shape != wanted:
                raise ValueError(f"{label} has shape {tuple(tensor.shape)}: it must be (B, C) = {wanted}")


def _backend(op: str, x: Tensor, backend: str | None) -> str:
    features = frozenset({"wide"}) if x.shape[-1] > configs.MAX_CHANNELS else frozenset()
    return dispatch.choose(dispatch.Request(op, x.device, x.dtype, features=features), backend)


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    return x.reshape(*reference.frames_of(x, mask), x.shape[-1]).contiguous()


def modulated_layer_norm(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    mask: Tensor | None = None,
    shift0: Tensor | None = None,
    scale0: Tensor | None = None,
    *,
    eps: float = EPS,
    backend: str | None = None,
) -> Tensor:
    """Return LayerNorm(x)·(1 + scale) + shift, no learned affine, in x's dtype; statistics in float32.

    x (B, N, C) or (B, T, S, C); shift and scale (B, C) in any floating dtype. mask (B, T) bool: frames where it is False take
    shift0 and scale0 instead. Raises ValueError for shapes that do not fit, BackendError if `backend` cannot run.
    """
    _check(x, None, mask, {"shift": (shift, shift0), "scale": (scale, scale0)})
    if _backend("modulated_layer_norm", x, backend) == "torch":
        return reference.modulated_layer_norm(x, shift, scale, mask, shift0, scale0, eps)
    out: Tensor = _Fused.apply(_rows(x, mask), None, None, None, shift, shift0, scale, scale0, mask, eps)
    return out.view(x.shape)


def gated_residual(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    mask: Tensor | None = None,
    gate0: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Return x + gate·y in x's dtype; x and y (B, N, C) or (B, T, S, C), gate (B, C); frames with mask False take gate0.

    Raises ValueError for shapes that do not fit, BackendError if `backend` cannot run.
    """
    _check(x, y, mask, {"gate": (gate, gate0)})
    if _backend("gated_residual", x, backend) == "torch":
        return reference.gated_residual(x, y, gate, mask, gate0)
    out: Tensor = _Fused.apply(_rows(x, mask), _rows(y, mask), gate, gate0, None, None, None, None, mask, 0.0)
    return out.view(x.shape)


def gated_residual_layer_norm(
    x: Tensor,
    y: Tensor,
    gate: Tensor,
    shift: Tensor,
    scale: Tensor,
    mask: Tensor | None = None,
    gate0: Tensor | None = None,
    shift0: Tensor | None = None,
    scale0: Tensor | None = None,
    *,
    eps: float = EPS,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Return r = x + gate·y and the modulated norm of r in one pass: `gated_residual`, then `modulated_layer_norm` on its result.

    Shapes and errors as there.
    """
    _check(x, y, mask, {"gate": (gate, gate0), "shift": (shift, shift0), "scale": (scale, scale0)})
    if _backend("gated_residual_layer_norm", x, backend) == "torch":
        return reference.gated_residual_layer_norm(x, y, gate, shift, scale, mask, gate0, shift0, scale0, eps)
    residual, out = _Fused.apply(_rows(x, mask), _rows(y, mask), gate, gate0, shift, shift0, scale, scale0, mask, eps)
    return residual.view(x.shape), out.view(x.shape)

"""The public ops `modulated_layer_norm`, `gated_residual` and the two fused: checks, choice of backend.

One opaque pair of ops serves all three.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from javisc.kernels import dispatch
from javisc.kernels.modulated_norm import configs, host, reference
from javisc.kernels.modulated_norm.reference import EPS
from javisc.kernels.registration import differentiable

OPS = ("modulated_layer_norm", "gated_residual", "gated_residual_layer_norm")


def _refuse(request: dispatch.Request) -> str | None:
    if "wide" in request.features:
        return f"a row stays in registers: at most {configs.MAX_CHANNELS} channels"
    return dispatch.refuse_triton(request)


for _op in OPS:
    dispatch.register_op(
        _op,
        needs=f"CUDA (sm_80 or newer), float32/16/bfloat16, at most {configs.MAX_CHANNELS} channels",
        when="on CUDA, whenever it can run",
        refuse=_refuse,
        prefer=dispatch.on_cuda,
    )

#: All tensors (B, T, S, C), modulations (B, C), mask (B, T). What a call does not have is None.
OP = differentiable(
    "modulated_norm",
    "Tensor x, Tensor? y, Tensor? gate, Tensor? gate0, Tensor? shift, Tensor? shift0, Tensor? scale, Tensor? scale0, "
    "Tensor? mask, float eps",
    host,
    gradients=("x", "y", "gate", "gate0", "shift", "shift0", "scale", "scale0"),
    results=lambda x, y, gate, gate0, shift, *_: 1 + (y is not None and shift is not None),
    # Backward sees what was normalised: the residual where there is a gate, and nothing where there is no norm.
    unsaved=lambda x, y, *_: () if y is None else ("x",),
    straight=lambda x, y, gate, gate0, shift, *_: {} if shift is not None else {"x": 0},
    like=lambda grads, x, *modulated: (grads[-1], *modulated[:7]),
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


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    return x.reshape(*reference.frames_of(x, mask), x.shape[-1]).contiguous()


def _run(
    op: str, x: Tensor, y: Tensor | None, mask: Tensor | None, eps: float, backend: str | None,
    **pairs: tuple[Tensor, Tensor | None],
) -> Any:  # fmt: skip
    """One of the ops, checked, on the backend chosen for it. pairs: both sets of the modulations gate, shift, scale."""
    _check(x, y, mask, pairs)
    given = {f"{name}{zero}": value for name, pair in pairs.items() for zero, value in zip(("", "0"), pair)}
    request = dispatch.Request.of(op, x, head_dim=0, wide=x.shape[-1] > configs.MAX_CHANNELS)
    if dispatch.choose(request, backend) == "torch":
        return reference.definition(x, y, mask=mask, eps=eps, **given)
    sets = [given.get(f"{name}{zero}") for name in ("gate", "shift", "scale") for zero in ("", "0")]
    made = OP.apply(_rows(x, mask), None if y is None else _rows(y, mask), *sets, mask, eps)
    return made.view(x.shape) if isinstance(made, Tensor) else tuple(each.view(x.shape) for each in made)


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
    pairs = {"shift": (shift, shift0), "scale": (scale, scale0)}
    out: Tensor = _run("modulated_layer_norm", x, None, mask, eps, backend, **pairs)
    return out


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
    out: Tensor = _run("gated_residual", x, y, mask, EPS, backend, gate=(gate, gate0))
    return out


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
    pairs = {"gate": (gate, gate0), "shift": (shift, shift0), "scale": (scale, scale0)}
    residual, out = _run("gated_residual_layer_norm", x, y, mask, eps, backend, **pairs)
    return residual, out

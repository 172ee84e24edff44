"""Modulated layer norm and gated residual in plain torch: the definition that every other backend is tested against.

B samples, T frames, S tokens per frame, C channels. Modulations are (B, C). With a mask (B, T), frames where it is True take the
first set of modulations (frames being generated, timestep t) and the others the second (given frames, timestep 0).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6  # of every LayerNorm in the STDiT3 family


def frames_of(x: Tensor, mask: Tensor | None) -> tuple[int, int, int]:
    """Return (B, T, S) of `x` (B, T, S, C) or (B, N, C). Without a mask a sample is one long frame."""
    samples = x.shape[0]
    tokens = x.shape[1:-1].numel()
    if mask is None:
        return samples, 1, tokens
    frames = mask.shape[1]
    return samples, frames, tokens // frames if frames else 0


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def choose(value: Tensor, value0: Tensor | None, mask: Tensor | None) -> Tensor:
    """Return the modulation of every frame, (B, T or 1, 1, C)."""
    per_frame = _wide(value)[:, None, None, :]
    if mask is None or value0 is None:
        return per_frame
    return torch.where(mask[:, :, None, None], per_frame, _wide(value0)[:, None, None, :])


def definition(
    x: Tensor, y: Tensor | None = None, gate: Tensor | None = None, shift: Tensor | None = None, scale: Tensor | None = None,
    mask: Tensor | None = None, gate0: Tensor | None = None, shift0: Tensor | None = None, scale0: Tensor | None = None,
    eps: float = EPS,
) -> Any:  # fmt: skip
    """Return r = x + gate·y where there is a gate, LayerNorm(r)·(1 + scale) + shift without learned affine where there is a shift
    (of x where there is no gate), both where there are both: in x's dtype, computed in float32 (float64 stays)."""
    shape, made = (*frames_of(x, mask), x.shape[-1]), []
    if gate is not None and y is not None:
        rows = _wide(x).reshape(shape) + choose(gate, gate0, mask) * _wide(y).reshape(shape)
        x = rows.reshape(x.shape).to(x.dtype)
        made.append(x)
    if shift is not None and scale is not None:
        normed = F.layer_norm(_wide(x).reshape(shape), shape[-1:], eps=eps)
        out = normed * (1 + choose(scale, scale0, mask)) + choose(shift, shift0, mask)
        made.append(out.reshape(x.shape).to(x.dtype))
    return made[0] if len(made) == 1 else tuple(made)

"""Modulated layer norm and gated residual in plain torch: the definition that every other backend is tested against.

B samples, T frames, S tokens per frame, C channels. Modulations are (B, C). With a mask (B, T), frames where it is True take the
first set of modulations (frames being generated, timestep t) and the others the second (given frames, timestep 0).
"""

from __future__ import annotations

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


def modulated_layer_norm(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    mask: Tensor | None = None,
    shift0: Tensor | None = None,
    scale0: Tensor | None = None,
    eps: float = EPS,
) -> Tensor:
    """Return LayerNorm(x)·(1 + scale) + shift without learned affine, in x's dtype, computed in float32 (float64 stays)."""
    rows = _wide(x).reshape(*frames_of(x, mask), x.shape[-1])
    normed = F.layer_norm(rows, rows.shape[-1:], eps=eps)
    out = normed * (1 + choose(scale, scale0, mask)) + choose(shift, shift0, mask)
    return out.reshape(x.shape).to(x.dtype)


def gated_residual(
    x: Tensor, y: Tensor, gate: Tensor, mask: Tensor | None = None, gate0: Tensor | None = None
) -> Tensor:
    """Return x + gate·y in x's dtype."""
    shape = (*frames_of(x, mask), x.shape[-1])
    out = _wide(x).reshape(shape) + choose(gate, gate0, mask) * _wide(y).reshape(shape)
    return out.reshape(x.shape).to(x.dtype)


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
    eps: float = EPS,
) -> tuple[Tensor, Tensor]:
    """Return r = x + gate·y and LayerNorm(r)·(1 + scale) + shift, as the two functions above in turn."""
    residual = gated_residual(x, y, gate, mask, gate0)
    return residual, modulated_layer_norm(residual, shift, scale, mask, shift0, scale0, eps)

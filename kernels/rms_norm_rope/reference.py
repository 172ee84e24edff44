"""RMS norm of query and key heads, then rope, in plain torch: the definition that every other backend is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

# mypy: disable-error-code="no-untyped-call"

EPS = 1e-6


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def rms_norm_rope(
    x: Tensor, weight: Tensor | None, cos: Tensor | None = None, sin: Tensor | None = None, eps: float = EPS
) -> Tensor:
    """Return the heads of `x` (…, L, H, d), divided by their root mean square, times `weight` (d), turned by position.

    `cos` and `sin` (L, d/2): the pair (2i, 2i+1) at position l turns by the angle whose cosine is cos[l, i]. Either part may
    be left out. Computed in float32 (float64 stays), returned in x's dtype.
    """
    out = _wide(x)
    if weight is not None:
        out = out * torch.rsqrt(out.square().mean(-1, keepdim=True) + eps) * _wide(weight)
    if cos is not None and sin is not None:
        pairs = out.unflatten(-1, (-1, 2))
        a, b = pairs[..., 0], pairs[..., 1]
        c, s = _wide(cos)[:, None, :], _wide(sin)[:, None, :]
        out = torch.stack((a * c - b * s, b * c + a * s), -1).flatten(-2)
    return out.to(x.dtype)

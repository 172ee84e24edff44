"""Selector attention in plain torch: the definition that every other backend is tested against.

B samples, S queries, N context tokens, H heads of width d.
"""

from __future__ import annotations

import torch
from torch import Tensor

# mypy: disable-error-code="no-untyped-call"


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def selector_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """Return softmax(q·kᵀ·scale)·v per head, (B, S, H, d), for q (B, S, H, d) and k, v (B, N, H, d); 0 without keys.

    `scale` is 1/√d unless given. Computed in float32 (float64 stays), returned in q's dtype.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    logits = torch.einsum("bshd,bnhd->bhsn", _wide(q), _wide(k)) * factor
    out = torch.einsum("bhsn,bnhd->bshd", logits.softmax(-1), _wide(v))
    return out.to(q.dtype)

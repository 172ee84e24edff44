"""Selector attention in plain torch: the definition that every other backend is tested against.

B samples, S queries, N context tokens, H heads of width d, D context width.
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


def absorbed_selector_attention(
    q: Tensor,
    context: Tensor,
    w_k: Tensor,
    b_k: Tensor | None,
    w_v: Tensor,
    b_v: Tensor | None,
    scale: float | None = None,
) -> Tensor:
    """Return selector attention over keys w_k·c + b_k and values w_v·c + b_v of `context` (B, N, D); weights (H·d, D).

    This definition forms keys and values; the fast form does not.
    """
    heads = q.shape[2:]
    wide = _wide(context)
    k = torch.nn.functional.linear(wide, _wide(w_k), None if b_k is None else _wide(b_k)).unflatten(-1, heads)
    v = torch.nn.functional.linear(wide, _wide(w_v), None if b_v is None else _wide(b_v)).unflatten(-1, heads)
    return selector_attention(_wide(q), k, v, scale).to(q.dtype)

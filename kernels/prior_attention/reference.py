"""Attention to the distinct prior tokens in plain torch: the definition that every other backend is tested against.

B samples, N queries, P prior tokens per sample, H heads of width d.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from javisc.kernels.attention.reference import attention_reference

Scope = Literal["batch", "sample"]


def prior_attention(q: Tensor, k: Tensor, v: Tensor, scope: Scope, scale: float | None = None) -> Tensor:
    """Return softmax(q·kᵀ·scale)·v per head, (B, N, H, d), for q (B, N, H, d) and k, v (B, P, H, d).

    scope "batch": a query sees the prior tokens of all B samples, as the published weights were trained. The reference
    recipe repeats every key T or S times; equal multiplicities cancel in the softmax, so each stands here once.
    scope "sample": a query sees its own sample's tokens. `scale` is 1/√d unless given.
    """
    if scope == "sample":
        return attention_reference(q, k, v, scale=scale)
    q_all, k_all, v_all = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))
    return attention_reference(q_all, k_all, v_all, scale=scale).reshape(q.shape)

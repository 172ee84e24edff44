"""Runs the Triton kernels of `temporal_attention`: whole sequences in a tile where they fit, streamed beyond."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from javisc.kernels.attention import host as attention
from javisc.kernels.launch import architecture, launch
from javisc.kernels.layout import ceil_div, head_blocks
from javisc.kernels.temporal_attention.configs import configuration, longest_tile

#: Rows per program of the two kernels that frame attention.
ROW_BLOCK = 32


def _streams(qkv: Tensor) -> bool:
    return qkv.numel() > 0 and qkv.shape[1] > longest_tile(qkv.shape[-1], architecture(qkv.device))


def forward(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float,
    scale: float,
) -> list[Tensor]:  # fmt: skip
    """Output (B, T, S, H, D), and for streamed sequences their logsumexps (H, B·S·T)."""
    from javisc.kernels.temporal_attention.triton import temporal_fwd

    b, t, s, _, h, d = qkv.shape
    o = qkv.new_empty((b, t, s, h, d))
    if qkv.numel() == 0:
        return [o]
    if _streams(qkv):
        q, k, v = _prepare(qkv, q_weight, k_weight, cos, sin, eps)
        out, lse = attention.forward(q, k, v, None, None, t, t, None, None, 0.0, scale)
        o.copy_(out.view(b, s, t, h, d).transpose(1, 2))
        return [o, lse]
    config = configuration("fwd", t, d, architecture(qkv.device), qkv.element_size())
    groups = ceil_div(s, config.rows // config.columns)
    launch(
        temporal_fwd, b * groups * h,
        qkv, o, q_weight, k_weight, cos, sin, groups, t, s, h, scale * math.log2(math.e), eps,
        d, head_blocks(d), config.rows, config.columns, q_weight is not None, cos is not None, **config.options,
    )  # fmt: skip
    return [o]


def backward(
    grads: Sequence[Tensor], qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None,
    sin: Tensor | None, eps: float, scale: float, made: Sequence[Tensor], needs: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of qkv and both gains."""
    from javisc.kernels.temporal_attention.triton import temporal_bwd

    (do,) = grads
    b, t, s, _, h, d = qkv.shape
    dqkv = torch.empty_like(qkv)
    if _streams(qkv):
        return _stream_backward(do, qkv, made, dqkv, q_weight, k_weight, cos, sin, eps, scale, needs)
    config = configuration("bwd", max(t, 1), d, architecture(qkv.device), qkv.element_size())
    groups = ceil_div(s, config.rows // config.columns)
    programs = b * groups * h if qkv.numel() else 0
    parts = attention.gain_parts(qkv, programs, q_weight is not None)
    launch(
        temporal_bwd, programs,
        qkv, do, dqkv, q_weight, k_weight, *parts, cos, sin, groups, t, s, h,
        scale * math.log2(math.e), scale, eps,
        d, head_blocks(d), config.rows, config.columns, q_weight is not None, cos is not None, **config.options,
    )  # fmt: skip
    return [dqkv, *attention.gain_sums(parts, (q_weight, k_weight), needs[1:])]


def _prepare(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float
) -> Sequence[Tensor]:
    """q, k, v as `attention` reads them, B·S sequences of T rows: views of one tensor, queries and keys normed and turned."""
    from javisc.kernels.temporal_attention.triton import temporal_prepare

    b, t, s, _, h, d = qkv.shape
    out = qkv.new_empty((b * s, t, 3, h, d))
    launch(
        temporal_prepare, ceil_div(b * t * s, ROW_BLOCK) * h,
        qkv, out, q_weight, k_weight, cos, sin, b * t * s, t, s, h, eps,
        d, head_blocks(d), ROW_BLOCK, q_weight is not None, cos is not None, num_warps=4,
    )  # fmt: skip
    return out.unbind(2)


def _stream_backward(
    do: Tensor, qkv: Tensor, made: Sequence[Tensor], dqkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None,
    cos: Tensor | None, sin: Tensor | None, eps: float, scale: float, needs: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    from javisc.kernels.temporal_attention.triton import temporal_unprepare

    (b, t, s, _, h, d), lse = qkv.shape, made[1]
    q, k, v = _prepare(qkv, q_weight, k_weight, cos, sin, eps)
    o, do = (x.transpose(1, 2).contiguous().view(q.shape) for x in (made[0], do))
    inputs = (q, k, v, None, None, t, t, None, None, 0.0, scale)
    grads = attention.backward([do], *inputs, [o, lse], (True, True, True, False, False))[:3]
    programs = ceil_div(b * t * s, ROW_BLOCK) * h
    parts = attention.gain_parts(qkv, programs, q_weight is not None)
    launch(
        temporal_unprepare, programs,
        qkv, *grads, dqkv, q_weight, k_weight, *parts, cos, sin, b * t * s, t, s, h, eps,
        d, head_blocks(d), ROW_BLOCK, q_weight is not None, cos is not None, num_warps=4,
    )  # fmt: skip
    return [dqkv, *attention.gain_sums(parts, (q_weight, k_weight), needs[1:])]


def forward_fake(qkv: Tensor, *_: Any) -> list[Tensor]:
    b, t, s, _three, h, d = qkv.shape
    lse = [qkv.new_empty((h, b * s * t), dtype=torch.float32)] if _streams(qkv) else []
    return [qkv.new_empty((b, t, s, h, d)), *lse]


def _products(qkv: Any) -> int:
    b, t, s, _, h, d = qkv.shape
    return 2 * b * s * h * t * t * d


def forward_flops(qkv: Any, *_: Any, **__: Any) -> int:
    """Two products per pair of times; norms and rotations are not counted."""
    return 2 * _products(qkv)


def backward_flops(grads: Any, qkv: Any, *_: Any, **__: Any) -> int:
    """Five products: the logits again, one gradient of probabilities, three of the inputs."""
    return 5 * _products(qkv)

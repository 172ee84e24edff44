"""Runs the Triton kernels of `temporal_attention`: whole sequences in a tile where they fit, streamed beyond."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from javisc.kernels.attention import host as streaming
from javisc.kernels.launch import architecture, head_tiles, launches
from javisc.kernels.temporal_attention.configs import configuration, longest_tile

#: Rows per program of the two kernels that frame streaming.
ROW_BLOCK = 32
Gradients = tuple[Tensor, Tensor, Tensor]


def _streams(qkv: Tensor) -> bool:
    return qkv.numel() > 0 and qkv.shape[1] > longest_tile(qkv.shape[-1], architecture(qkv.device))


def _empty(weight: Tensor | None, like: Tensor, programs: int) -> Tensor:
    return torch.empty(
        (programs, like.shape[-1]) if weight is not None else (0,), dtype=torch.float32, device=like.device
    )


def _gain_gradient(parts: Tensor, weight: Tensor | None) -> Tensor:
    """The second stage of the gains' gradient: programs' parts summed in a fixed order."""
    return parts if weight is None else parts.sum(0).to(weight.dtype)


def forward(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Output (B, T, S, H, D), and for streamed sequences their logsumexps (B, H, S·T); empty otherwise."""
    from javisc.kernels.temporal_attention.triton import temporal_fwd

    qkv = qkv.contiguous()
    b, t, s, _, h, d = qkv.shape
    o = torch.empty((b, t, s, h, d), dtype=qkv.dtype, device=qkv.device)
    if qkv.numel() == 0:
        return o, qkv.new_empty(0, dtype=torch.float32)
    if _streams(qkv):
        return _stream_forward(_prepare(qkv, q_weight, k_weight, cos, sin, eps), qkv, o, scale)
    config = configuration("fwd", t, d, architecture(qkv.device), qkv.element_size())
    groups = -(-s // (config.rows // config.times))
    for first, programs in launches(b * groups * h):
        temporal_fwd[(programs,)](
            qkv, o, q_weight, k_weight, cos, sin, first, groups, t, s, h, scale * math.log2(math.e), eps,
            d, *head_tiles(d), config.rows, config.times, q_weight is not None, cos is not None,
            num_warps=config.warps, num_stages=1,
        )  # fmt: skip
    return o, qkv.new_empty(0, dtype=torch.float32)


def backward(
    do: Tensor, qkv: Tensor, o: Tensor, lse: Tensor, q_weight: Tensor | None, k_weight: Tensor | None,
    cos: Tensor | None, sin: Tensor | None, eps: float, scale: float,
) -> Gradients:  # fmt: skip
    """Gradients of qkv and (empty without norms) of both gains."""
    from javisc.kernels.temporal_attention.triton import temporal_bwd

    qkv, do = qkv.contiguous(), do.contiguous()
    b, t, s, _, h, d = qkv.shape
    dqkv = torch.empty_like(qkv)
    if _streams(qkv):
        return _stream_backward(do, qkv, o, lse, dqkv, q_weight, k_weight, cos, sin, eps, scale)
    config = configuration("bwd", max(t, 1), d, architecture(qkv.device), qkv.element_size())
    groups = -(-s // (config.rows // config.times))
    programs = b * groups * h if qkv.numel() else 0
    dwq, dwk = _empty(q_weight, qkv, programs), _empty(k_weight, qkv, programs)
    for first, count in launches(programs):
        temporal_bwd[(count,)](
            qkv, do, dqkv, q_weight, k_weight, dwq, dwk, cos, sin, first, groups, t, s, h, scale * math.log2(math.e), scale, eps,
            d, *head_tiles(d), config.rows, config.times, q_weight is not None, cos is not None,
            num_warps=config.warps, num_stages=1,
        )  # fmt: skip
    return dqkv, _gain_gradient(dwq, q_weight), _gain_gradient(dwk, k_weight)


def _prepare(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float
) -> Tensor:
    """Normed and rotated queries and keys, (B, T, S, 2, H, D)."""
    from javisc.kernels.temporal_attention.triton import temporal_prepare

    b, t, s, _, h, d = qkv.shape
    qk = torch.empty((b, t, s, 2, h, d), dtype=qkv.dtype, device=qkv.device)
    for first, programs in launches(-(-b * t * s // ROW_BLOCK) * h):
        temporal_prepare[(programs,)](
            qkv, qk, q_weight, k_weight, cos, sin, first, b * t * s, t, s, h, eps,
            d, *head_tiles(d), ROW_BLOCK, q_weight is not None, cos is not None, num_warps=4,
        )  # fmt: skip
    return qk


def _sequences(x: Tensor) -> Tensor:
    """(T, S, H, D) of one sample as the S sequences of T rows that `attention` reads with strides: no copy."""
    return x.transpose(0, 1)


def _stream_forward(qk: Tensor, qkv: Tensor, o: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    b, t, s, _, h, _ = qkv.shape
    lse = torch.empty((b, h, s * t), dtype=torch.float32, device=qkv.device)
    for i in range(b):
        q, k, v = (_sequences(x) for x in (qk[i, :, :, 0], qk[i, :, :, 1], qkv[i, :, :, 2]))
        out, sample, _, _ = streaming.forward(q, k, v, None, None, t, t, None, None, 0.0, scale)
        o[i], lse[i] = _sequences(out), sample
    return o, lse


def _stream_backward(
    do: Tensor, qkv: Tensor, o: Tensor, lse: Tensor, dqkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None,
    cos: Tensor | None, sin: Tensor | None, eps: float, scale: float,
) -> Gradients:  # fmt: skip
    from javisc.kernels.temporal_attention.triton import temporal_unprepare

    b, t, s, _, h, d = qkv.shape
    qk = _prepare(qkv, q_weight, k_weight, cos, sin, eps)
    dq, dk = (torch.empty((b, t, s, h, d), dtype=qkv.dtype, device=qkv.device) for _ in range(2))
    none = lse.new_empty(0)
    for i in range(b):
        q, k, v = (_sequences(x) for x in (qk[i, :, :, 0], qk[i, :, :, 1], qkv[i, :, :, 2]))
        out, grad = _sequences(o[i]).contiguous(), _sequences(do[i])
        got = streaming.backward(grad, q, k, v, out, lse[i], none, none, None, None, t, t, None, None, scale)
        dq[i], dk[i], dqkv[i, :, :, 2] = (_sequences(x) for x in got[:3])
    programs = -(-b * t * s // ROW_BLOCK) * h
    dwq, dwk = _empty(q_weight, qkv, programs), _empty(k_weight, qkv, programs)
    for first, count in launches(programs):
        temporal_unprepare[(count,)](
            qkv, dq, dk, dqkv, q_weight, k_weight, dwq, dwk, cos, sin, first, b * t * s, t, s, h, eps,
            d, *head_tiles(d), ROW_BLOCK, q_weight is not None, cos is not None, num_warps=4,
        )  # fmt: skip
    return dqkv, _gain_gradient(dwq, q_weight), _gain_gradient(dwk, k_weight)


def forward_fake(
    qkv: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    cos: Tensor | None,
    sin: Tensor | None,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    b, t, s, _, h, d = qkv.shape
    lse = (b, h, s * t) if _streams(qkv) else (0,)
    return qkv.new_empty((b, t, s, h, d)), qkv.new_empty(lse, dtype=torch.float32)


def backward_fake(
    do: Tensor, qkv: Tensor, o: Tensor, lse: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, *_: Any
) -> Gradients:
    gains = [qkv.new_empty(0, dtype=torch.float32) if w is None else w.new_empty(w.shape) for w in (q_weight, k_weight)]
    return qkv.new_empty(qkv.shape), gains[0], gains[1]


def _products(qkv: Any) -> int:
    b, t, s, _, h, d = qkv.shape
    return 2 * b * s * h * t * t * d


def forward_flops(qkv: Any, *_: Any, **__: Any) -> int:
    """Two products per pair of times; norms and rotations are not counted."""
    return 2 * _products(qkv)


def backward_flops(do: Any, qkv: Any, *_: Any, **__: Any) -> int:
    """Five products: the logits again, one gradient of probabilities, three of the inputs."""
    return 5 * _products(qkv)

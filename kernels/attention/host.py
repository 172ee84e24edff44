"""Runs the Triton kernels of `attention`: allocates, picks configurations, launches. Also fakes and FLOP formulas."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from javisc.kernels.attention.configs import configuration
from javisc.kernels.launch import architecture, head_tiles, launches, multiprocessors

DENSE, PACKED, PADDED = 0, 1, 2
Result = tuple[Tensor, Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
#: Vectors per program of the two small row kernels.
ROW_BLOCK = 32


def _mode(x: Tensor, bounds: Tensor | None) -> int:
    return PACKED if x.ndim == 3 else DENSE if bounds is None else PADDED


def _rows(x: Tensor) -> int:
    return x.shape[0] if x.ndim == 3 else x.shape[0] * x.shape[1]


def _strides(x: Tensor) -> tuple[int, int, int]:
    """(sequence, row, head) strides in units of 8 elements; a packed tensor has one sequence as far as strides go."""
    b, n, h = (0, *x.stride()[:2]) if x.ndim == 3 else x.stride()[:3]
    return b // 8, n // 8, h // 8


def aligned(x: Tensor) -> Tensor:
    """x itself if its rows start on multiples of 8 elements, as the kernels read them; else a contiguous copy."""
    fits = x.stride(-1) == 1 and not any(s % 8 for s in x.stride()[:-1]) and x.storage_offset() % 8 == 0
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def _batch(q: Tensor, bounds_q: Tensor | None) -> int:
    if q.ndim == 4:
        return q.shape[0]
    assert bounds_q is not None
    return bounds_q.shape[0] - 1


def _empty(like: Tensor, bounds: Tensor | None, *lead: int, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous tensor of x's shape. Packed ones are zeroed: their kernels do not visit rows beyond the last sequence."""
    make = torch.zeros if like.ndim == 3 and bounds is not None else torch.empty
    return make((*lead, *like.shape), dtype=dtype or like.dtype, device=like.device)


def delta(o: Tensor, do: Tensor) -> Tensor:
    """Σ_d O·dO as (H, rows) float32, for two contiguous (…, H, D) tensors."""
    from javisc.kernels.attention.triton import attention_delta

    h, d = o.shape[-2:]
    rows = o.numel() // (h * d)
    out = torch.empty((h, rows), dtype=torch.float32, device=o.device)
    for first, programs in launches(-(-rows * h // ROW_BLOCK)):
        attention_delta[(programs,)](o, do, out, first, rows, h, d, _pow2(d), ROW_BLOCK, num_warps=4)
    return out


def _pow2(d: int) -> int:
    return 1 << (d - 1).bit_length()


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    from javisc.kernels.attention.triton import attention_rms

    h, d = x.shape[-2:]
    rows = _rows(x)
    out = torch.empty((h, rows), dtype=torch.float32, device=x.device)
    length = x.shape[1] if x.ndim == 4 else max(rows, 1)
    for first, programs in launches(-(-rows * h // ROW_BLOCK)):
        attention_rms[(programs,)](
            x, out, first, rows, h, *_strides(x), length, eps, d, _pow2(d), ROW_BLOCK, num_warps=4
        )
    return out


def forward(
    q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor | None, bounds_k: Tensor | None, max_q: int, max_k: int,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, scale: float,
) -> Result:  # fmt: skip
    """Output, logsumexp (H, rows; base 2), and with norms the inverse RMS of queries and keys (H, rows)."""
    from javisc.kernels.attention.triton import attention_fwd

    q, k, v = aligned(q), aligned(k), aligned(v)
    h, d = q.shape[-2:]
    q_rows, k_rows, norm = _rows(q), _rows(k), q_weight is not None
    o = _empty(q, bounds_q)
    lse = torch.empty((h, q_rows), dtype=torch.float32, device=q.device)
    rq = torch.empty((h, q_rows) if norm else (0,), dtype=torch.float32, device=q.device)
    rk = _inverse_rms(k, eps) if norm else torch.empty(0, dtype=torch.float32, device=q.device)
    config = configuration("fwd", d, architecture(q.device), max_q, q.element_size(), norm)
    tiles = -(-max_q // config.bm)
    for first, programs in launches(tiles * h * _batch(q, bounds_q)):
        attention_fwd[(programs,)](
            q, k, v, o, lse, rq, rk, q_weight, k_weight, bounds_q, bounds_k, first, tiles, h, max_q, max_k, q_rows, k_rows,
            *_strides(q), *_strides(k), *_strides(v), scale * math.log2(math.e), eps,
            d, *head_tiles(d), config.bm, config.bn, _mode(q, bounds_q), _mode(k, bounds_k), norm,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return o, lse, rq, rk


def splits_for(programs: int, query_tiles: int, device: torch.device) -> int:
    """Into how many parts the queries of a key tile are cut so that two waves of programs exist; each part has ≥ 4 tiles."""
    wanted = -(-2 * multiprocessors(device) // max(programs, 1))
    return max(1, min(wanted, query_tiles // 4, 64))


def backward(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, rq: Tensor, rk: Tensor,
    bounds_q: Tensor | None, bounds_k: Tensor | None, max_q: int, max_k: int,
    q_weight: Tensor | None, k_weight: Tensor | None, scale: float,
) -> Gradients:  # fmt: skip
    """Gradients of q, k, v and (empty without norms) of both gains, all summed in a fixed order."""
    from javisc.kernels.attention.triton import attention_bwd_dkv, attention_bwd_dq

    q, k, v = aligned(q), aligned(k), aligned(v)
    h, d = q.shape[-2:]
    q_rows, k_rows, norm, batch = _rows(q), _rows(k), q_weight is not None, _batch(q, bounds_q)
    arch, device = architecture(q.device), q.device
    do = do.contiguous()
    row_delta = delta(o, do)
    modes = (_mode(q, bounds_q), _mode(k, bounds_k))
    shapes = (
        h,
        max_q,
        max_k,
        q_rows,
        k_rows,
        *_strides(q),
        *_strides(k),
        *_strides(v),
        scale * math.log2(math.e),
        scale,
    )

    config = configuration("dkv", d, arch, max_k, q.element_size(), norm)
    tiles = -(-max_k // config.bn)
    splits = 1 if norm else splits_for(tiles * h * batch, -(-max_q // config.bm), device)
    programs = tiles * splits * h * batch
    dw = torch.empty((programs, d) if norm else (0,), dtype=torch.float32, device=device)
    lead, partial = ((splits,), torch.float32) if splits > 1 else ((), None)
    dk, dv = _empty(k, bounds_k, *lead, dtype=partial), _empty(v, bounds_k, *lead, dtype=partial)
    for first, count in launches(programs):
        attention_bwd_dkv[(count,)](
            q, k, v, do, lse, row_delta, dk, dv, rq, rk, q_weight, k_weight, dw, bounds_q, bounds_k,
            first, tiles, splits, *shapes, d, *head_tiles(d), config.bm, config.bn, *modes, norm,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    if splits > 1:
        dk, dv = dk.sum(0).to(k.dtype), dv.sum(0).to(v.dtype)

    dq = _empty(q, bounds_q)
    config = configuration("dq", d, arch, max_q, q.element_size(), norm)
    tiles = -(-max_q // config.bm)
    for first, count in launches(tiles * h * batch):
        attention_bwd_dq[(count,)](
            q, k, v, do, lse, row_delta, dq, rq, rk, q_weight, k_weight, bounds_q, bounds_k, first, tiles, *shapes,
            d, *head_tiles(d), config.bm, config.bn, *modes, norm, num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    if q_weight is None or k_weight is None:
        return dq, dk, dv, dw, torch.empty_like(dw)
    product = dw.sum(0)
    return dq, dk, dv, (product * k_weight.float()).to(q_weight.dtype), (product * q_weight.float()).to(k_weight.dtype)


def forward_fake(
    q: Tensor, k: Tensor, v: Tensor, bounds_q: Tensor | None, bounds_k: Tensor | None, max_q: int, max_k: int,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, scale: float,
) -> Result:  # fmt: skip
    h, norm = q.shape[-2], q_weight is not None
    lse = q.new_empty((h, _rows(q)), dtype=torch.float32)
    rq = q.new_empty((h, _rows(q)) if norm else (0,), dtype=torch.float32)
    rk = q.new_empty((h, _rows(k)) if norm else (0,), dtype=torch.float32)
    return q.new_empty(q.shape), lse, rq, rk


def backward_fake(
    do: Tensor, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, rq: Tensor, rk: Tensor,
    bounds_q: Tensor | None, bounds_k: Tensor | None, max_q: int, max_k: int,
    q_weight: Tensor | None, k_weight: Tensor | None, scale: float,
) -> Gradients:  # fmt: skip
    gains = [q.new_empty(0, dtype=torch.float32) if w is None else w.new_empty(w.shape) for w in (q_weight, k_weight)]
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), gains[0], gains[1]


def _pairs(q: Tensor, bounds_q: Tensor | None, bounds_k: Tensor | None, max_q: int, max_k: int) -> int:
    """Query-key pairs of the batch; from the real lengths unless they are fake, then from the longest."""
    batch = _batch(q, bounds_q)
    known = not any(
        isinstance(b, torch._subclasses.FakeTensor) or (b is not None and b.is_meta) for b in (bounds_q, bounds_k)
    )
    if not known:
        return batch * max_q * max_k
    lengths = []
    for bounds, longest in ((bounds_q, max_q), (bounds_k, max_k)):
        if bounds is None:
            lengths.append([longest] * batch)
        else:
            lengths.append((bounds.diff() if bounds.shape[0] == batch + 1 else bounds).tolist())
    return sum(a * b for a, b in zip(*lengths, strict=True))


def forward_flops(
    q: Any, k: Any, v: Any, bounds_q: Any, bounds_k: Any, max_q: int, max_k: int, *_: Any, **__: Any
) -> int:
    """Two products of 2·D per query-key pair and head."""
    return 4 * q.shape[-2] * q.shape[-1] * _pairs(q, bounds_q, bounds_k, max_q, max_k)


def backward_flops(
    do: Any, q: Any, k: Any, v: Any, o: Any, lse: Any, rq: Any, rk: Any, bounds_q: Any, bounds_k: Any, max_q: int, max_k: int,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    """Five products, as PyTorch counts its own flash backward (the second recomputation of the two-pass form is overhead)."""
    return 10 * q.shape[-2] * q.shape[-1] * _pairs(q, bounds_q, bounds_k, max_q, max_k)

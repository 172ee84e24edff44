"""Runs the Triton kernels of `attention`: allocates, picks configurations, launches. Also fakes and FLOP formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from javisc.kernels.attention.configs import configuration
from javisc.kernels.launch import architecture, is_long, launch, parts, ranges
from javisc.kernels.layout import ceil_div, head_blocks

DENSE, PACKED, PADDED = 0, 1, 2
Bounds = Tensor | None
#: Vectors per program of the two small row kernels.
ROW_BLOCK = 32


def _mode(x: Tensor, bounds: Bounds) -> int:
    return PACKED if x.ndim == 3 else DENSE if bounds is None else PADDED


def _bounded(ranges: bool, norm: bool, *bounds: Bounds) -> bool:
    """Whether a launch takes the variant that knows bounds: where there are some, and wherever the models have them in some
    calls, so that one variant serves all. They have none with norms, nor where a kernel cuts dense sequences into ranges."""
    return not (ranges or norm) or any(b is not None for b in bounds)


def _ints(bounded: bool, bounds: Bounds, other: Tensor) -> Bounds:
    """The bounds; without them what a bounded variant never reads: another tensor's memory as integers."""
    return other.view(torch.int32) if bounded and bounds is None else bounds


def _rows(x: Tensor) -> int:
    return x.shape[0] if x.ndim == 3 else x.shape[0] * x.shape[1]


def strides(x: Tensor) -> tuple[int, int, int]:
    """(sequence, row, head) strides in units of 8 elements; a packed tensor has one sequence as far as strides go."""
    b, n, h = (0, *x.stride()[:2]) if x.ndim == 3 else x.stride()[:3]
    return b // 8, n // 8, h // 8


def aligned(x: Tensor) -> Tensor:
    """x itself if its rows start on multiples of 8 elements, as the kernels read them; else a contiguous copy."""
    fits = x.stride(-1) == 1 and not any(s % 8 for s in x.stride()[:-1]) and x.storage_offset() % 8 == 0
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def far_apart(rows: int, *tensors: Tensor) -> bool:
    """Whether `rows` rows of one of these (B, L, H, D) or (N, H, D) tensors lie further apart than 32-bit offsets reach."""
    return any(is_long(x.stride(-3), rows) for x in tensors)


def _batch(q: Tensor, bounds_q: Bounds) -> int:
    if q.ndim == 4:
        return q.shape[0]
    assert bounds_q is not None
    return bounds_q.shape[0] - 1


def _empty(like: Tensor, bounds: Bounds, *lead: int, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous tensor of x's shape. Packed ones are zeroed: their kernels do not visit rows beyond the last sequence."""
    make = torch.zeros if like.ndim == 3 and bounds is not None else torch.empty
    return make((*lead, *like.shape), dtype=dtype or like.dtype, device=like.device)


def delta(o: Tensor, do: Tensor) -> Tensor:
    """Σ_d O·dO as (H, rows) float32, for two contiguous (…, H, D) tensors."""
    from javisc.kernels.attention.triton import attention_delta

    h, d = o.shape[-2:]
    rows = o.numel() // (h * d)
    out = torch.empty((h, rows), dtype=torch.float32, device=o.device)
    programs = ceil_div(rows * h, ROW_BLOCK)
    launch(attention_delta, programs, o, do, out, rows, h, d, head_blocks(d), ROW_BLOCK, num_warps=4)
    return out


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    from javisc.kernels.attention.triton import attention_rms

    h, d = x.shape[-2:]
    rows = _rows(x)
    out = torch.empty((h, rows), dtype=torch.float32, device=x.device)
    length = x.shape[1] if x.ndim == 4 else max(rows, 1)
    sizes = (rows, h, *strides(x), length, eps, d, head_blocks(d), ROW_BLOCK)
    launch(attention_rms, ceil_div(rows * h, ROW_BLOCK), x, out, *sizes, num_warps=4)
    return out


def gain_parts(like: Tensor, programs: int, norm: bool) -> list[Tensor | None]:
    """Where programs leave their parts of both gains' gradients; None without norms."""
    return [like.new_empty((1, programs, like.shape[-1]), dtype=torch.float32) if norm else None for _ in "qk"]


def gain_sums(
    parts: Sequence[Tensor | None], weights: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of both gains as far as they are needed, summed in a fixed order."""
    from javisc.kernels.tiles import ordered_sum

    return [
        ordered_sum(part, w.dtype)[0] if need and part is not None and w is not None else None
        for part, w, need in zip(parts, weights, needs)
    ]


def forward(
    q: Tensor, k: Tensor, v: Tensor, bounds_q: Bounds, bounds_k: Bounds, max_q: int, max_k: int,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, scale: float,
) -> list[Tensor]:  # fmt: skip
    """Output, logsumexp (H, rows; base 2), and with norms the inverse RMS of queries and keys (H, rows)."""
    from javisc.kernels.attention.triton import attention_fwd
    from javisc.kernels.tiles import merge

    q, k, v = aligned(q), aligned(k), aligned(v)
    h, d = q.shape[-2:]
    q_rows, k_rows, norm = _rows(q), _rows(k), q_weight is not None
    o, lse = _empty(q, bounds_q), torch.empty((h, q_rows), dtype=torch.float32, device=q.device)
    inverses = [torch.empty_like(lse), _inverse_rms(k, eps)] if norm else []
    config = configuration("fwd", d, architecture(q.device), max_q, max_k, q.element_size(), norm)
    tiles, batch, modes = ceil_div(max_q, config.rows), _batch(q, bounds_q), (_mode(q, bounds_q), _mode(k, bounds_k))
    splits = 1
    if modes == (DENSE, DENSE) and not norm:
        splits = max(ranges(tiles * h * batch, max_k, config.columns, q.device)[0], 1)
    part, lse_part = o, lse
    if splits > 1:
        part = o.new_empty((batch, h, splits, max_q, d), dtype=torch.float32)
        lse_part = part.new_empty(part.shape[:-1])
    bounded = _bounded(splits > 1, norm, bounds_q, bounds_k)
    launch(
        attention_fwd, tiles * splits * h * batch,
        q, k, v, part, lse_part, *(inverses or (lse, lse)), q_weight, k_weight,
        _ints(bounded, bounds_q, lse), _ints(bounded, bounds_k, lse), *modes, tiles, splits, h,
        max_q, max_k, q_rows, k_rows, *strides(q), *strides(k), *strides(v), scale * math.log2(math.e), eps,
        d, head_blocks(d), config.rows, config.columns, bounded, splits > 1, norm, far_apart(128, q, k, v), **config.options,
    )  # fmt: skip
    if splits > 1:
        merge(part, lse_part, o, lse.view(h, batch, max_q).transpose(0, 1))
    return [o, lse, *inverses]


def backward(
    grads: Sequence[Tensor], q: Tensor, k: Tensor, v: Tensor, bounds_q: Bounds, bounds_k: Bounds, max_q: int, max_k: int,
    q_weight: Tensor | None, k_weight: Tensor | None, eps: float, scale: float, made: Sequence[Tensor], needs: Sequence[bool],
) -> list[Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and both gains, all summed in a fixed order; of frozen queries none, of frozen keys, values and gains
    none."""
    from javisc.kernels.attention.triton import attention_bwd
    from javisc.kernels.tiles import ordered_sum

    (do,), (o, lse, *inverses) = grads, made
    rq, rk = inverses or (lse, lse)  # without norms never read
    q, k, v = aligned(q), aligned(k), aligned(v)
    (h, d), norm, batch = q.shape[-2:], q_weight is not None, _batch(q, bounds_q)
    row_delta = torch.empty_like(lse) if needs[0] else delta(o, do)
    queries, keys = (q, do, rq, q_weight, bounds_q, max_q), (k, v, rk, k_weight, bounds_k, max_k)
    dense = bounds_q is None and bounds_k is None

    def gradients(kind: str, *likes: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """Of queries ("dq") or of keys and values ("dkv"), and the programs' parts of the gains', own and other."""
        (x, x2, rx, wx, bx, lx), (y, y2, ry, wy, by, ly) = (keys, queries) if kind == "dkv" else (queries, keys)
        config = configuration(kind, d, architecture(q.device), lx, ly, q.element_size(), norm)
        own, other = (config.columns, config.rows) if kind == "dkv" else (config.rows, config.columns)
        programs = ceil_div(lx, own) * h * batch
        may_split = not norm and (dense or kind == "dkv")
        splits = parts(programs, ceil_div(ly, other), q.device, least=4) if may_split else 1
        lead, dtype = ((splits,), torch.float32) if splits > 1 else ((), None)
        out = [_empty(like, bx, *lead, dtype=dtype) for like in likes]
        dw = gain_parts(q, programs, norm and kind == "dkv")
        bounded = _bounded(splits > 1 and kind == "dq", norm, bx, by)
        launch(
            attention_bwd, programs * splits,
            x, x2, y, y2, o, lse, row_delta, out[0], out[-1], rx, ry, wx, wy, *dw,
            _ints(bounded, bx, lse), _ints(bounded, by, lse), _mode(x, bx), _mode(y, by),
            ceil_div(lx, own), splits, h, lx, ly, _rows(x), _rows(y),
            *strides(x), *strides(x2), *strides(y), *strides(y2), scale * math.log2(math.e), scale,
            d, head_blocks(d), own, other, bounded, kind == "dkv", splits > 1, norm, far_apart(128, q, k, v), **config.options,
        )  # fmt: skip
        if splits > 1:
            out = [ordered_sum(g.view(1, splits, -1), q.dtype).view(x.shape) for g in out]
        return out, dw

    found: list[Tensor | None] = [None] * 5
    if needs[0]:  # first: it leaves the sums that the other pass reads
        (found[0],), _ = gradients("dq", q)
    if any(needs[1:]):
        found[1:3], (k_parts, q_parts) = gradients("dkv", k, v)
        found[3:] = gain_sums((q_parts, k_parts), (q_weight, k_weight), needs[3:])
    return found


def forward_fake(
    q: Tensor, k: Tensor, v: Tensor, bounds_q: Bounds, bounds_k: Bounds, max_q: int, max_k: int,
    q_weight: Tensor | None, *_: Any,
) -> list[Tensor]:  # fmt: skip
    stats = [(q.shape[-2], _rows(q)), *([(q.shape[-2], _rows(x)) for x in (q, k)] if q_weight is not None else [])]
    return [q.new_empty(q.shape), *(q.new_empty(shape, dtype=torch.float32) for shape in stats)]


def _pairs(q: Tensor, bounds_q: Bounds, bounds_k: Bounds, max_q: int, max_k: int) -> int:
    """Query-key pairs of the batch; from the real lengths unless they are fake, then from the longest."""
    batch = _batch(q, bounds_q)
    if any(isinstance(b, torch._subclasses.FakeTensor) or (b is not None and b.is_meta) for b in (bounds_q, bounds_k)):
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


def backward_flops(grads: Any, *inputs: Any, **__: Any) -> int:
    """Five products, as PyTorch counts its own flash backward (the second recomputation of the two-pass form is overhead)."""
    return forward_flops(*inputs) * 5 // 2

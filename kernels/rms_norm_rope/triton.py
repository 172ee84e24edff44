"""Head norm and rope in one pass; the backward recomputes the norm, and sums the gain's gradient in two ordered stages.

A tile is (heads, pairs, 2): the pairs that rope turns lie side by side in memory, and in one thread's registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from javisc.kernels.blocks import ordered_sum
from javisc.kernels.launch import launches
from javisc.kernels.layout import as_tokens, ceil_div
from javisc.kernels.rms_norm_rope import configs

# mypy: disable-error-code="no-untyped-def, assignment"


@triton.jit
def _angles(cos_ptr, sin_ptr, position, pair, inside, PAIRS_IN_HEAD: tl.constexpr):
    at = position[:, None] * PAIRS_IN_HEAD + pair[None, :]
    wanted = inside[:, None] & (pair < PAIRS_IN_HEAD)[None, :]
    c = tl.load(cos_ptr + at, mask=wanted, other=0.0).to(tl.float32)
    s = tl.load(sin_ptr + at, mask=wanted, other=0.0).to(tl.float32)
    return c, s


@triton.jit(do_not_specialize=["launched"])
def rms_norm_rope_fwd(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, launched, rows, L, H, stride, own, eps,
    D: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    program = (launched + tl.program_id(0)).to(tl.int64)
    first = program * own
    last = tl.minimum(first + own, rows)
    pair = tl.arange(0, PAIRS)
    cols = pair[None, :, None] * 2 + tl.arange(0, 2)[None, None, :]
    if NORM:
        gain = tl.load(weight_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
    for start in range(first, last, ROWS):
        r = start + tl.arange(0, ROWS)
        token = r // H
        inside = (r < last)[:, None, None] & (cols < D)
        at = (token * stride + (r % H) * D)[:, None, None] + cols
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            square = tl.sum(tl.sum(x * x, 2), 1)
            x = x * tl.rsqrt(square / D + eps)[:, None, None] * gain
        if ROPE:
            c, s = _angles(cos_ptr, sin_ptr, token % L, pair, r < last, D // 2)
            a, b = tl.split(x)
            x = tl.join(a * c - b * s, b * c + a * s)
        tl.store(out_ptr + (r * D)[:, None, None] + cols, x.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["launched"])
def rms_norm_rope_bwd(
    dout_ptr, x_ptr, weight_ptr, cos_ptr, sin_ptr, dx_ptr, partial_ptr, launched, rows, L, H, stride, own, eps,
    D: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    program = (launched + tl.program_id(0)).to(tl.int64)
    first = program * own
    last = tl.minimum(first + own, rows)
    pair = tl.arange(0, PAIRS)
    cols = pair[None, :, None] * 2 + tl.arange(0, 2)[None, None, :]
    if NORM:
        gain = tl.load(weight_ptr + cols, mask=cols < D, other=0.0).to(tl.float32)
        dgain = tl.zeros([ROWS, PAIRS, 2], tl.float32)
    for start in range(first, last, ROWS):
        r = start + tl.arange(0, ROWS)
        token = r // H
        inside = (r < last)[:, None, None] & (cols < D)
        dz = tl.load(dout_ptr + (r * D)[:, None, None] + cols, mask=inside, other=0.0).to(tl.float32)
        if ROPE:
            c, s = _angles(cos_ptr, sin_ptr, token % L, pair, r < last, D // 2)
            a, b = tl.split(dz)
            dz = tl.join(a * c + b * s, b * c - a * s)
        if NORM:
            at = (token * stride + (r % H) * D)[:, None, None] + cols
            x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
            rstd = tl.rsqrt(tl.sum(tl.sum(x * x, 2), 1) / D + eps)[:, None, None]
            hat = x * rstd
            dgain += dz * hat
            grad = dz * gain
            along = tl.sum(tl.sum(grad * hat, 2), 1) / D
            dz = (grad - hat * along[:, None, None]) * rstd
        tl.store(dx_ptr + (r * D)[:, None, None] + cols, dz.to(dx_ptr.dtype.element_ty), mask=inside)
    if NORM:
        total = tl.sum(dgain, 0)[None, :, :]
        tl.store(partial_ptr + program * D + cols, total, mask=cols < D)


def forward(x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float, arch: int) -> Tensor:
    """Return the normed and turned heads of x (…, L, H, d), contiguous."""
    out = x.new_empty(x.shape)
    if not out.numel():
        return out
    length, heads, dim = x.shape[-3:]
    x, stride = as_tokens(x)
    launch = configs.config("fwd", dim, arch)
    rows = x.numel() // dim
    own = configs.rows_per_program(rows, launch.rows)
    for launched, programs in launches(ceil_div(rows, own)):
        rms_norm_rope_fwd[(programs,)](
            x, weight, cos, sin, out, launched, rows, length, heads, stride, own, eps,
            D=dim, PAIRS=triton.next_power_of_2(ceil_div(dim, 2)), ROWS=launch.rows, NORM=weight is not None,
            ROPE=cos is not None, num_warps=launch.warps,
        )  # fmt: skip
    return out


def backward(
    dout: Tensor, x: Tensor, weight: Tensor | None, cos: Tensor | None, sin: Tensor | None, eps: float, arch: int
) -> tuple[Tensor, Tensor]:
    """Return dx, contiguous, and the gain's gradient (d) in its dtype; the latter is empty without a gain."""
    dx = x.new_empty(x.shape)
    length, heads, dim = x.shape[-3:]
    if not dx.numel():
        return dx, x.new_empty(0) if weight is None else torch.zeros_like(weight)
    x, stride = as_tokens(x)
    launch = configs.config("bwd", dim, arch)
    rows = x.numel() // dim
    own = configs.rows_per_program(rows, launch.rows)
    programs = ceil_div(rows, own)
    partial = x.new_empty((1, programs if weight is not None else 0, dim), dtype=torch.float32)
    dout = dout.contiguous()
    for launched, count in launches(programs):
        rms_norm_rope_bwd[(count,)](
            dout, x, weight, cos, sin, dx, partial, launched, rows, length, heads, stride, own, eps,
            D=dim, PAIRS=triton.next_power_of_2(ceil_div(dim, 2)), ROWS=launch.rows, NORM=weight is not None,
            ROPE=cos is not None, num_warps=launch.warps,
        )  # fmt: skip
    return dx, x.new_empty(0) if weight is None else ordered_sum(partial, weight.dtype).view(dim)

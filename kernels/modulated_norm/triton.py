"""Gate, residual, LayerNorm and modulation in one pass over the rows; gradients of the modulations in two ordered stages.

One program owns up to `own` consecutive rows of one frame, so the choice between the two timesteps is made once per program.
A row is held in registers as a tuple of power-of-two column blocks (`BLOCKS`, see layout.column_blocks).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from javisc.kernels.launch import launches
from javisc.kernels.layout import ceil_div, column_blocks
from javisc.kernels.modulated_norm import configs

# ruff: noqa: RUF005  Triton knows sums of tuples, not unpacking
# mypy: disable-error-code="no-untyped-def, assignment"


@triton.jit
def _modulation(ptr, ptr0, sample, chosen, cols, C, HAS_MASK: tl.constexpr):
    if HAS_MASK:
        if chosen:
            out = tl.load(ptr + sample + cols, mask=cols < C, other=0.0).to(tl.float32)
        else:
            out = tl.load(ptr0 + sample + cols, mask=cols < C, other=0.0).to(tl.float32)
    else:
        out = tl.load(ptr + sample + cols, mask=cols < C, other=0.0).to(tl.float32)
    return out


@triton.jit(do_not_specialize=["launched"])
def modulated_norm_fwd(
    x_ptr, y_ptr, gate_ptr, gate0_ptr, shift_ptr, shift0_ptr, scale_ptr, scale0_ptr, mask_ptr,
    residual_ptr, out_ptr, mean_ptr, rstd_ptr, launched,
    frames, rows, own, chunks, C, eps,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, HAS_MASK: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    program = launched + tl.program_id(0)
    frame = program // chunks
    first = (program % chunks) * own
    last = tl.minimum(first + own, rows)
    sample = (frame // frames).to(tl.int64) * C
    chosen = True
    if HAS_MASK:
        chosen = tl.load(mask_ptr + frame) != 0
    gates = ()
    shifts = ()
    scales = ()
    for i in tl.static_range(len(BLOCKS)):
        cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
        if GATED:
            gates = gates + (_modulation(gate_ptr, gate0_ptr, sample, chosen, cols, C, HAS_MASK),)
        if NORM:
            shifts = shifts + (_modulation(shift_ptr, shift0_ptr, sample, chosen, cols, C, HAS_MASK),)
            scales = scales + (_modulation(scale_ptr, scale0_ptr, sample, chosen, cols, C, HAS_MASK) + 1.0,)
    for start in range(first, last, ROWS):
        r = start + tl.arange(0, ROWS)
        row = frame.to(tl.int64) * rows + r
        at = row[:, None] * C
        xs = ()
        total = tl.zeros([ROWS], tl.float32)
        for i in tl.static_range(len(BLOCKS)):
            cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
            inside = (r < last)[:, None] & (cols < C)[None, :]
            x = tl.load(x_ptr + at + cols[None, :], mask=inside, other=0.0).to(tl.float32)
            if GATED:
                y = tl.load(y_ptr + at + cols[None, :], mask=inside, other=0.0).to(tl.float32)
                # The norm sees the residual as it is stored, rounded: so it does when the two ops run apart.
                kept = (x + gates[i][None, :] * y).to(residual_ptr.dtype.element_ty)
                tl.store(residual_ptr + at + cols[None, :], kept, mask=inside)
                x = kept.to(tl.float32)
            total += tl.sum(x, 1)
            xs = xs + (x,)
        if NORM:
            mean = total / C
            square = tl.zeros([ROWS], tl.float32)
            for i in tl.static_range(len(BLOCKS)):
                cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
                centred = tl.where((cols < C)[None, :], xs[i] - mean[:, None], 0.0)
                square += tl.sum(centred * centred, 1)
            rstd = tl.rsqrt(square / C + eps)
            tl.store(mean_ptr + row, mean, mask=r < last)
            tl.store(rstd_ptr + row, rstd, mask=r < last)
            for i in tl.static_range(len(BLOCKS)):
                cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
                inside = (r < last)[:, None] & (cols < C)[None, :]
                normed = (xs[i] - mean[:, None]) * rstd[:, None]
                out = normed * scales[i][None, :] + shifts[i][None, :]
                tl.store(out_ptr + at + cols[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["launched"])
def modulated_norm_bwd_dx(
    dresidual_ptr, dout_ptr, x_ptr, y_ptr, gate_ptr, gate0_ptr, scale_ptr, scale0_ptr, mask_ptr, mean_ptr, rstd_ptr,
    dx_ptr, dy_ptr, partial_ptr, launched,
    frames, rows, own, chunks, C, programs,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, HAS_MASK: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    program = launched + tl.program_id(0)
    frame = program // chunks
    first = (program % chunks) * own
    last = tl.minimum(first + own, rows)
    sample = (frame // frames).to(tl.int64) * C
    chosen = True
    if HAS_MASK:
        chosen = tl.load(mask_ptr + frame) != 0
    gates = ()
    scales = ()
    dshifts = ()
    dscales = ()
    dgates = ()
    for i in tl.static_range(len(BLOCKS)):
        cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
        if GATED:
            gates = gates + (_modulation(gate_ptr, gate0_ptr, sample, chosen, cols, C, HAS_MASK),)
            dgates = dgates + (tl.zeros_like(gates[i]),)
        if NORM:
            scales = scales + (_modulation(scale_ptr, scale0_ptr, sample, chosen, cols, C, HAS_MASK) + 1.0,)
            dshifts = dshifts + (tl.zeros_like(scales[i]),)
            dscales = dscales + (tl.zeros_like(scales[i]),)
    for start in range(first, last, ROWS):
        r = start + tl.arange(0, ROWS)
        row = frame.to(tl.int64) * rows + r
        at = row[:, None] * C
        normed = ()
        grads = ()
        if NORM:
            mean = tl.load(mean_ptr + row, mask=r < last, other=0.0)
            rstd = tl.load(rstd_ptr + row, mask=r < last, other=0.0)
            along = tl.zeros([ROWS], tl.float32)
            total = tl.zeros([ROWS], tl.float32)
            next_dshifts = ()
            next_dscales = ()
            for i in tl.static_range(len(BLOCKS)):
                cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
                inside = (r < last)[:, None] & (cols < C)[None, :]
                x = tl.load(x_ptr + at + cols[None, :], mask=inside, other=0.0).to(tl.float32)
                dout = tl.load(dout_ptr + at + cols[None, :], mask=inside, other=0.0).to(tl.float32)
                hat = (x - mean[:, None]) * rstd[:, None]  # outside the row dout is 0, so hat never counts there
                grad = dout * scales[i][None, :]
                next_dshifts = next_dshifts + (dshifts[i] + tl.sum(dout, 0),)
                next_dscales = next_dscales + (dscales[i] + tl.sum(dout * hat, 0),)
                total += tl.sum(grad, 1)
                along += tl.sum(grad * hat, 1)
                normed = normed + (hat,)
                grads = grads + (grad,)
            dshifts = next_dshifts
            dscales = next_dscales
            total = total / C
            along = along / C
        next_dgates = ()
        for i in tl.static_range(len(BLOCKS)):
            cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
            inside = (r < last)[:, None] & (cols < C)[None, :]
            if NORM:
                dx = (grads[i] - total[:, None] - normed[i] * along[:, None]) * rstd[:, None]
            if GATED:
                dresidual = tl.load(dresidual_ptr + at + cols[None, :], mask=inside, other=0.0).to(tl.float32)
                if NORM:
                    dx = tl.where(inside, dx + dresidual, 0.0)
                else:
                    dx = dresidual
                y = tl.load(y_ptr + at + cols[None, :], mask=inside, other=0.0).to(tl.float32)
                next_dgates = next_dgates + (dgates[i] + tl.sum(dx * y, 0),)
                dy = dx * gates[i][None, :]
                tl.store(dy_ptr + at + cols[None, :], dy.to(dy_ptr.dtype.element_ty), mask=inside)
            if NORM:
                tl.store(dx_ptr + at + cols[None, :], dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dgates = next_dgates
    # Partial sums (kind, program, C): shift, scale, gate, as far as the op has them.
    for i in tl.static_range(len(BLOCKS)):
        cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
        at_partial = partial_ptr + program.to(tl.int64) * C + cols
        step = programs.to(tl.int64) * C
        if NORM:
            tl.store(at_partial, dshifts[i], mask=cols < C)
            tl.store(at_partial + step, dscales[i], mask=cols < C)
            if GATED:
                tl.store(at_partial + 2 * step, dgates[i], mask=cols < C)
        else:
            tl.store(at_partial, dgates[i], mask=cols < C)


@triton.jit(do_not_specialize=["launched"])
def modulated_norm_bwd_reduce(
    partial_ptr, mask_ptr, out_ptr, launched, samples, frames, chunks, C,
    GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    # out (kind, sample, group, C); group 0 gathers the frames whose mask is True, group 1 the others.
    blocks = tl.cdiv(C, COLUMNS)
    program = launched + tl.program_id(0)
    cols = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    slot = program // blocks
    group = slot % GROUPS
    kind_sample = slot // GROUPS
    sample = kind_sample % samples
    count = frames * chunks
    base = kind_sample.to(tl.int64) * count
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, count, ROWS):
        p = start + tl.arange(0, ROWS)
        wanted = p < count
        if GROUPS == 2:
            chosen = tl.load(mask_ptr + sample * frames + p // chunks, mask=wanted, other=0) != 0
            wanted = wanted & (chosen == (group == 0))
        part = tl.load(
            partial_ptr + (base + p)[:, None] * C + cols[None, :], mask=wanted[:, None] & (cols < C)[None, :], other=0.0
        )
        total += tl.sum(part, 0)
    tl.store(out_ptr + slot.to(tl.int64) * C + cols, total, mask=cols < C)


def _same_rows(values: list[Tensor | None]) -> list[Tensor | None]:
    return [None if value is None else value.contiguous() for value in values]


def forward(
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    gate0: Tensor | None,
    shift: Tensor | None,
    shift0: Tensor | None,
    scale: Tensor | None,
    scale0: Tensor | None,
    mask: Tensor | None,
    eps: float,
    arch: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (residual, out, mean, rstd); what the op does not have is an empty tensor. x (B, T, S, C), all rows contiguous."""
    samples, frames, rows, channels = x.shape
    gated, norm = y is not None, shift is not None
    launch = configs.config("fwd", channels, arch)
    residual = torch.empty_like(x) if gated else x.new_empty(0)
    out = torch.empty_like(x) if norm else x.new_empty(0)
    mean = x.new_empty(x.shape[:-1] if norm else (0,), dtype=torch.float32)
    rstd = torch.empty_like(mean)
    own = configs.rows_per_program(samples * frames * rows, launch.rows)
    chunks = ceil_div(rows, own)
    programs = samples * frames * chunks
    if programs:
        gate, gate0, shift, shift0, scale, scale0, mask = _same_rows([gate, gate0, shift, shift0, scale, scale0, mask])
        for launched, count in launches(programs):
            modulated_norm_fwd[(count,)](
                x, y, gate, gate0, shift, shift0, scale, scale0, mask, residual, out, mean, rstd, launched,
                frames, rows, own, chunks, channels, eps,
                ROWS=launch.rows, BLOCKS=column_blocks(channels), HAS_MASK=mask is not None, GATED=gated, NORM=norm,
                num_warps=launch.warps,
            )  # fmt: skip
    return residual, out, mean, rstd


def backward(
    dresidual: Tensor | None,
    dout: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    gate: Tensor | None,
    gate0: Tensor | None,
    scale: Tensor | None,
    scale0: Tensor | None,
    mask: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    arch: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dx, dy, sums): sums (shift, scale, gate as far as present; B; groups; C) in float32.

    `x` is what was normalised (the residual, where there is a gate). Without a norm dx is empty: it equals dresidual.
    """
    gated, norm = y is not None, scale is not None
    samples, frames, rows, channels = (y if y is not None else x).shape
    launch = configs.config("bwd", channels, arch)
    dx = torch.empty_like(x) if norm else x.new_empty(0)
    dy = torch.empty_like(y) if y is not None else x.new_empty(0)
    own = configs.rows_per_program(samples * frames * rows, launch.rows)
    chunks = ceil_div(rows, own)
    programs = samples * frames * chunks
    kinds = 2 * norm + gated
    groups = 1 if mask is None else 2
    sums = x.new_empty((kinds, samples, groups, channels), dtype=torch.float32)
    if not programs:
        return dx, dy, sums.zero_()
    partial = x.new_empty((kinds, programs, channels), dtype=torch.float32)
    gate, gate0, scale, scale0, mask = _same_rows([gate, gate0, scale, scale0, mask])
    for launched, count in launches(programs):
        modulated_norm_bwd_dx[(count,)](
            dresidual, dout, x, y, gate, gate0, scale, scale0, mask, mean, rstd, dx, dy, partial, launched,
            frames, rows, own, chunks, channels, programs,
            ROWS=launch.rows, BLOCKS=column_blocks(channels), HAS_MASK=mask is not None, GATED=gated, NORM=norm,
            num_warps=launch.warps,
        )  # fmt: skip
    for launched, count in launches(kinds * samples * groups * ceil_div(channels, configs.REDUCE_COLUMNS)):
        modulated_norm_bwd_reduce[(count,)](
            partial, mask, sums, launched, samples, frames, chunks, channels,
            GROUPS=groups, ROWS=configs.REDUCE_ROWS, COLUMNS=configs.REDUCE_COLUMNS, num_warps=4,
        )  # fmt: skip
    return dx, dy, sums

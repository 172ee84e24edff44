"""What several kernels share: loads and stores of column blocks, and sums of partials in a fixed order."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from javisc.kernels.launch import launches

# mypy: disable-error-code="no-untyped-def, assignment"


@triton.jit
def load_block(base, rows, inside, D: tl.constexpr, WIDTH: tl.constexpr, FIRST: tl.constexpr):
    """Columns FIRST … FIRST + WIDTH of the rows that start at `base + rows`; 0 where a row is not `inside` or past D."""
    cols = FIRST + tl.arange(0, WIDTH)
    return tl.load(base + rows[:, None] + cols[None, :], mask=inside[:, None] & (cols < D)[None, :], other=0.0)


@triton.jit
def store_block(base, rows, inside, D: tl.constexpr, value, WIDTH: tl.constexpr, FIRST: tl.constexpr):
    """The counterpart of `load_block`; casts to the pointer's type."""
    cols = FIRST + tl.arange(0, WIDTH)
    at = base + rows[:, None] + cols[None, :]
    tl.store(at, value.to(base.dtype.element_ty), mask=inside[:, None] & (cols < D)[None, :])


@triton.jit(do_not_specialize=["launched"])
def ordered_sum_kernel(partial_ptr, out_ptr, launched, count, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    blocks = tl.cdiv(C, COLUMNS)
    program = launched + tl.program_id(0)
    slot = (program // blocks).to(tl.int64)
    cols = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, count, ROWS):
        p = start + tl.arange(0, ROWS)
        inside = (p < count)[:, None] & (cols < C)[None, :]
        part = tl.load(partial_ptr + (slot * count + p)[:, None] * C + cols[None, :], mask=inside, other=0.0)
        total += tl.sum(part, 0)
    tl.store(out_ptr + slot * C + cols, total.to(out_ptr.dtype.element_ty), mask=cols < C)


SUM_ROWS, SUM_COLUMNS, SUM_WARPS = 16, 128, 4


def ordered_sum(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of `partial` (K, P, C) float32 over P, in the order of P: the same bits every time, without atomics."""
    slots, count, width = partial.shape
    out = partial.new_empty((slots, width), dtype=dtype)
    for launched, programs in launches(slots * triton.cdiv(width, SUM_COLUMNS)):
        ordered_sum_kernel[(programs,)](
            partial, out, launched, count, width, ROWS=SUM_ROWS, COLUMNS=SUM_COLUMNS, num_warps=SUM_WARPS
        )
    return out

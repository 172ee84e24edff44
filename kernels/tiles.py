"""Pieces that the Triton kernels share: rows as tuples of column blocks, products of them, ranges of sequences, ordered sums.

Legend of the kernel files: H heads, D width of a row, BLOCKS its cut into powers of two as ((width, first column), …), see
`layout.column_blocks`: a row of 72 is a tuple of two blocks, 64 and 16 wide. BM and BN are rows of a query and of a key tile.
Loops carry scalar base pointers and add offsets within a tile, of 32 bits unless LONG says that its rows lie further apart.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from javisc.kernels.launch import launches
from javisc.kernels.layout import ceil_div

# ruff: noqa: RUF005  Triton knows sums of tuples, not unpacking
# mypy: disable-error-code="no-untyped-def, assignment"

#: float32 products run as three TF32 products on tensor cores, with about float32's error; 16-bit inputs ignore it.
PRECISION = tl.constexpr("tf32x3")
DENSE = tl.constexpr(0)
PACKED = tl.constexpr(1)
PADDED = tl.constexpr(2)


@triton.jit
def elements(stride, LONG: tl.constexpr):
    """A stride given in units of 8 elements, in elements."""
    if LONG:
        out = tl.cast(stride, tl.int64) * 8
    else:
        out = stride * 8
    return out


@triton.jit
def far(stride):
    """A stride between sequences or heads, given in units of 8 elements, in elements: once per program, so always 64 bits."""
    return tl.cast(stride, tl.int64) * 8


@triton.jit
def load(base, offsets, inside, D: tl.constexpr, BLOCKS: tl.constexpr):
    """The rows that start at `base + offsets` as a tuple of blocks; zeros beyond D and where not `inside` (None: all are)."""
    out = ()
    for i in tl.static_range(len(BLOCKS)):
        columns = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
        at = base + offsets[:, None] + columns[None, :]
        if BLOCKS[i][0] + BLOCKS[i][1] > D:
            if inside is None:
                x = tl.load(at, mask=(columns < D)[None, :], other=0.0)
            else:
                x = tl.load(at, mask=inside[:, None] & (columns < D)[None, :], other=0.0)
        else:
            if inside is None:
                x = tl.load(at)
            else:
                x = tl.load(at, mask=inside[:, None], other=0.0)
        out = out + (x,)
    return out


@triton.jit
def store(base, offsets, inside, values, D: tl.constexpr, BLOCKS: tl.constexpr):
    """The counterpart of `load`; casts to the pointer's type."""
    for i in tl.static_range(len(BLOCKS)):
        columns = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
        at = base + offsets[:, None] + columns[None, :]
        tl.store(at, values[i].to(base.dtype.element_ty), mask=inside[:, None] & (columns < D)[None, :])


@triton.jit
def load_vector(base, D: tl.constexpr, BLOCKS: tl.constexpr):
    """A vector of D as a tuple of blocks in float32; zeros beyond D."""
    out = ()
    for i in tl.static_range(len(BLOCKS)):
        columns = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
        if BLOCKS[i][0] + BLOCKS[i][1] > D:
            x = tl.load(base + columns, mask=columns < D, other=0.0)
        else:
            x = tl.load(base + columns)
        out = out + (x.to(tl.float32),)
    return out


@triton.jit
def store_vector(base, values, D: tl.constexpr, BLOCKS: tl.constexpr):
    """The counterpart of `load_vector`."""
    for i in tl.static_range(len(BLOCKS)):
        columns = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
        tl.store(base + columns, values[i].to(base.dtype.element_ty), mask=columns < D)


@triton.jit
def zeros(ROWS: tl.constexpr, BLOCKS: tl.constexpr):
    """`ROWS` rows of zeros in float32."""
    out = ()
    for i in tl.static_range(len(BLOCKS)):
        out = out + (tl.full([ROWS, BLOCKS[i][0]], 0.0, tl.float32),)
    return out


@triton.jit
def zero_vector(BLOCKS: tl.constexpr):
    """A vector of zeros as a tuple of blocks in float32."""
    out = ()
    for i in tl.static_range(len(BLOCKS)):
        out = out + (tl.full([BLOCKS[i][0]], 0.0, tl.float32),)
    return out


@triton.jit
def wide(rows):
    """The rows in float32."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + (rows[i].to(tl.float32),)
    return out


@triton.jit
def scaled(rows, factor):
    """Every block times the factor, which broadcasts against it."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + (rows[i] * factor,)
    return out


@triton.jit
def added(rows, others):
    """The sum of two tuples of blocks."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + (rows[i] + others[i],)
    return out


@triton.jit
def chosen(condition, rows):
    """The rows where the condition (rows, 1) holds, zeros elsewhere."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + (tl.where(condition, rows[i], 0.0),)
    return out


@triton.jit
def row_sums(rows, others):
    """Σ of rows · others along each row, in float32."""
    out = tl.sum(rows[0].to(tl.float32) * others[0].to(tl.float32), 1)
    for i in tl.static_range(1, len(rows)):
        out += tl.sum(rows[i].to(tl.float32) * others[i].to(tl.float32), 1)
    return out


@triton.jit
def dot_rows(a, b):
    """a · bᵀ over the whole width, in float32."""
    out = tl.dot(a[0], tl.trans(b[0]), input_precision=PRECISION)
    for i in tl.static_range(1, len(a)):
        out = tl.dot(a[i], tl.trans(b[i]), out, input_precision=PRECISION)
    return out


@triton.jit
def dot(p, rows):
    """p · rows, a tuple of blocks in float32."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + (tl.dot(p, rows[i], input_precision=PRECISION),)
    return out


@triton.jit
def dot_add(p, rows, sums):
    """sums + p · rows."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + (tl.dot(p, rows[i], sums[i], input_precision=PRECISION),)
    return out


@triton.jit
def sequence(bounds, b, length, rows, MODE: tl.constexpr):
    """Sequence b of a batch: its first row in the flattened rows, how many rows it has, how many rows it owns.

    DENSE: every sequence has `length` rows. PACKED: bounds are cumulated lengths, within `rows`. PADDED: bounds are lengths,
    within `length`. What lies outside is cut off, so that no row of another sequence or tensor is read.
    """
    start = b * length
    n = length
    owned = length
    if MODE == PACKED:
        low = tl.minimum(tl.maximum(tl.load(bounds + b), 0), rows).to(tl.int32)
        n = tl.maximum(tl.minimum(tl.load(bounds + b + 1), rows).to(tl.int32) - low, 0)
        start = low.to(tl.int64)
        owned = n
    if MODE == PADDED:
        n = tl.minimum(tl.maximum(tl.load(bounds + b), 0), length).to(tl.int32)
    return start, n, owned


@triton.jit(do_not_specialize=["first", "count", "pieces"])
def ordered_sum_kernel(
    PART, OUT, first, count, pieces, C, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EACH: tl.constexpr
):
    """OUT[slot, piece] = Σ_p PART[slot, p] over the EACH p of that piece. Program: COLUMNS columns of one piece."""
    blocks = tl.cdiv(C, COLUMNS)
    program = first + tl.program_id(0)
    out = (program // blocks).to(tl.int64)
    columns = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    slot = out // pieces
    low = (out % pieces).to(tl.int32) * EACH
    last = tl.minimum(low + EACH, count)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(low, last, ROWS):
        p = start + tl.arange(0, ROWS)
        inside = (p < last)[:, None] & (columns < C)[None, :]
        part = tl.load(PART + (slot * count + p)[:, None] * C + columns[None, :], mask=inside, other=0.0)
        total += tl.sum(part, 0)
    tl.store(OUT + out * C + columns, total.to(OUT.dtype.element_ty), mask=columns < C)


SUM_ROWS, SUM_COLUMNS, SUM_EACH = 16, 128, 256


def ordered_sum(partial: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the sum of `partial` (K, P, C) float32 over P in an order that depends on P alone: the same bits every time, without
    atomics. Many terms are summed in pieces of SUM_EACH first: one program would take them one after another."""
    slots, count, width = partial.shape
    pieces = max(ceil_div(count, SUM_EACH), 1)
    out = partial.new_empty((slots, pieces, width), dtype=dtype if pieces == 1 else torch.float32)
    for first, programs in launches(slots * pieces * ceil_div(width, SUM_COLUMNS)):
        ordered_sum_kernel[(programs,)](
            partial, out, first, count, pieces, width, SUM_ROWS, SUM_COLUMNS, SUM_EACH, num_warps=4
        )
    return out[:, 0] if pieces == 1 else ordered_sum(out, dtype)

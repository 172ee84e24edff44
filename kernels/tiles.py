"""Pieces that the Triton kernels share: rows as tuples of column blocks, products of them, ranges of sequences, ordered sums.

Legend of the kernel files: H heads, D width of a row, BLOCKS its cut into powers of two as ((width, first column), …), see
`layout.column_blocks`: a row of 72 is a tuple of two blocks, 64 and 16 wide. BM and BN are rows of a query and of a key tile.
Loops carry scalar base pointers and add offsets within a tile, of 32 bits unless LONG says that its rows lie further apart.
"""

from __future__ import annotations

import math

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from javisc.kernels.launch import launch
from javisc.kernels.layout import ceil_div, head_blocks

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
    return [x.to(tl.float32) for x in rows]


@triton.jit
def scaled(rows, factor):
    """Every block times the factor, which broadcasts against it."""
    return [x * factor for x in rows]


@triton.jit
def added(rows, others):
    """The sum of two tuples of blocks."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + (rows[i] + others[i],)
    return out


@triton.jit
def times(rows, others):
    """The product of two tuples of blocks, element by element."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + (rows[i] * others[i],)
    return out


@triton.jit
def chosen(condition, rows):
    """The rows where the condition (rows, 1) holds, zeros elsewhere."""
    return [tl.where(condition, x, 0.0) for x in rows]


@triton.jit
def vector_sum(values):
    """Σ of a vector's elements."""
    out = tl.sum(values[0], 0)
    for i in tl.static_range(1, len(values)):
        out += tl.sum(values[i], 0)
    return out


@triton.jit
def column_sums(rows):
    """Σ of each column, a vector as a tuple of blocks."""
    return [tl.sum(x, 0) for x in rows]


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
    return [tl.dot(p, x, input_precision=PRECISION) for x in rows]


@triton.jit
def dot_add(p, rows, sums):
    """sums + p · rows."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + (tl.dot(p, rows[i], sums[i], input_precision=PRECISION),)
    return out


@triton.jit
def norm_bwd(x, g, w, r, D: tl.constexpr):
    """Gradient of x from g, that of its norm times w: r·(g·w − x·r·mean), with mean over D of x·r·g·w."""
    mean = tl.sum(x[0] * g[0] * w[0][None, :], 1) * r / D
    for i in tl.static_range(1, len(x)):
        mean += tl.sum(x[i] * g[i] * w[i][None, :], 1) * r / D
    out = ()
    for i in tl.static_range(len(x)):
        out = out + ((g[i] * w[i][None, :] - x[i] * (r * mean)[:, None]) * r[:, None],)
    return out


@triton.jit
def sequence(bounds, b, length, rows, mode, BOUNDED: tl.constexpr):
    """Sequence b of a batch: its first row in the flattened rows, how many of these its address must skip, how many rows it has,
    how many rows it owns.

    DENSE: every sequence has `length` rows. With BOUNDED also PACKED: bounds are cumulated lengths, within `rows`; PADDED: bounds
    are lengths, within `length`. What lies outside is cut off, so that no row of another sequence or tensor is read.
    """
    start = b * length
    skipped = start * 0
    n = length
    owned = length
    if BOUNDED:
        if mode == PACKED:
            low = tl.minimum(tl.maximum(tl.load(bounds + b), 0), rows).to(tl.int32)
            n = tl.maximum(tl.minimum(tl.load(bounds + b + 1), rows).to(tl.int32) - low, 0)
            start = low.to(tl.int64)
            skipped = start
            owned = n
        if mode == PADDED:
            n = tl.minimum(tl.maximum(tl.load(bounds + b), 0), length).to(tl.int32)
    return start, skipped, n, owned


@triton.jit
def origin(X, b, h, row, batch_stride, stride, head_stride):
    """Where that row of head h of sequence b lies; the row's stride is in elements, the others in units of 8."""
    return X + b * far(batch_stride) + h * far(head_stride) + tl.cast(row, tl.int64) * stride


@triton.jit(do_not_specialize=["first", "splits", "rows", "L", "low", "slb", "slh"])
def merge_kernel(
    first, PART, LSE_PART, O, LSE, splits, rows, H, L, low, slb, slh,
    D: tl.constexpr, BLOCKS: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """Join softmaxes over disjoint keys, each by its share: PART (B, H, splits, rows, D) and LSE_PART (B, H, splits, rows), base
    2, into rows `low`… of O (B, L, H, D) and of LSE, by its strides. Program: one row of one head, PIECES parts a step.
    """
    pid = first + tl.program_id(0).to(tl.int64)
    row = low + pid % rows
    h = pid // rows % H
    b = pid // rows // H
    if row >= L:
        return
    slot = pid // rows * splits * rows + pid % rows
    part = tl.arange(0, PIECES)
    top = float("-inf")
    for start in range(0, splits, PIECES):
        lse = tl.load(LSE_PART + slot + (start + part) * rows, mask=start + part < splits, other=float("-inf"))
        top = tl.maximum(top, tl.max(lse, 0))
    # A row that sees nothing in any part is zero.
    floor = tl.where(top == float("-inf"), 0.0, top)
    mass = 0.0
    out = zero_vector(BLOCKS)
    for start in range(0, splits, PIECES):
        inside = start + part < splits
        at = slot + (start + part) * rows
        weight = tl.exp2(tl.load(LSE_PART + at, mask=inside, other=float("-inf")) - floor)
        mass += tl.sum(weight, 0)
        values = scaled(load(PART, at * D, inside, D, BLOCKS), weight[:, None])
        out = added(out, column_sums(values))
    mass = tl.where(mass > 0, mass, 1.0)
    tl.store(LSE + b * slb + h * slh + row, tl.where(top == float("-inf"), top, floor + tl.log2(mass)))
    store_vector(O + ((b * L + row) * H + h) * D, [x / mass for x in out], D, BLOCKS)


#: Parts that one step of merging takes: as many as most calls have.
MERGE_PIECES = 16


def merge(part: Tensor, lse_part: Tensor, out: Tensor, lse: Tensor, low: int = 0) -> None:
    """Join attention over disjoint ranges of keys: part (B, H, splits, rows, D) and lse_part (B, H, splits, rows; base 2) into
    out (B, L, H, D) and lse (B, H, L), from row `low` on as far as there are rows."""
    (b, length, h, d), (splits, rows) = out.shape, lse_part.shape[2:]
    sizes = (splits, rows, h, length, low, *lse.stride()[:2], d, head_blocks(d), MERGE_PIECES)
    launch(merge_kernel, b * h * rows, part, lse_part, out, lse, *sizes, num_warps=1)


@triton.jit(do_not_specialize=["first", "grouped", "count", "pieces", "samples", "each"])
def ordered_sum_kernel(
    first, PART, MASK, OUT, grouped, count, pieces, samples, each, C,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """OUT[slot, piece] = Σ_p PART[slot, p] over the EACH p of that piece. Program: COLUMNS columns of one piece.

    grouped: OUT[kind, group, sample, piece], of PART[kind, sample, p]; group 0 takes the p of which `each` share a true element
    of MASK, group 1 the others.
    """
    blocks = tl.cdiv(C, COLUMNS)
    program = first + tl.program_id(0)
    out = program // blocks
    columns = (program % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    slot = out // pieces
    sample = slot % samples
    first_group = slot // samples % 2 == 0
    if grouped != 0:
        slot = slot // samples // 2 * samples + sample
    low = out % pieces * EACH
    last = tl.minimum(low + EACH, count)
    total = tl.zeros([COLUMNS], tl.float32)
    for start in range(low, last, ROWS):
        p = start + tl.arange(0, ROWS)
        inside = p < last
        if grouped != 0:
            true = tl.load(MASK + (sample * count + p) // each, mask=inside, other=0) != 0
            inside = inside & (true == first_group)
        at = PART + (slot.to(tl.int64) * count + p)[:, None] * C + columns[None, :]
        total += tl.sum(tl.load(at, mask=inside[:, None] & (columns < C)[None, :], other=0.0), 0)
    tl.store(OUT + out.to(tl.int64) * C + columns, total.to(OUT.dtype.element_ty), mask=columns < C)


SUM_ROWS, SUM_COLUMNS, SUM_EACH = 16, 128, 256


def ordered_sum(partial: Tensor, dtype: torch.dtype, mask: Tensor | None = None) -> Tensor:
    """Return the sum of `partial` (K, P, C) float32 over P in an order that depends on P alone: the same bits every time, without
    atomics. Many terms are summed in pieces of SUM_EACH first: one program would take them one after another.

    With a mask (B, T) of booleans, each of whose elements is for P / T terms: partial (K, B, P, C) → (K, 2, B, C), the sums of
    the terms where it is true, and of the others.
    """
    count, width = partial.shape[-2:]
    lead = partial.shape[:1] if mask is None else (partial.shape[0], 2, partial.shape[1])
    samples, each = (1, 1) if mask is None else (mask.shape[0], count // max(mask.shape[1], 1))
    pieces = max(ceil_div(count, SUM_EACH), 1)
    out = partial.new_empty((*lead, pieces, width), dtype=dtype if pieces == 1 else torch.float32)
    programs = math.prod(lead) * pieces * ceil_div(width, SUM_COLUMNS)
    sizes = (int(mask is not None), count, pieces, samples, each, width, SUM_ROWS, SUM_COLUMNS, SUM_EACH)
    launch(
        ordered_sum_kernel,
        programs,
        partial,
        (partial if mask is None else mask).view(torch.uint8),
        out,
        *sizes,
        num_warps=4,
    )
    return out[..., 0, :] if pieces == 1 else ordered_sum(out.flatten(0, -3), dtype).view(*lead, width)

"""Pieces that the Triton kernels share: tiles of a row-major matrix, ranges of sequences, dot products in two tiles.

Legend of the kernel files: H heads, D head dim, D0 and D1 the two tiles that cover it (D1 = 0: one is enough), BM and BN rows of
a query and of a key tile, `n` rows that exist. Loops carry scalar base pointers and add 32-bit offsets inside a tile, so that
64-bit arithmetic stays out of the inner loop while no tensor is too large.
"""

# mypy: disable-error-code="no-untyped-def"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

#: float32 products run as three TF32 products on tensor cores, with about float32's error; 16-bit inputs ignore it.
PRECISION = tl.constexpr("tf32x3")
DENSE = tl.constexpr(0)
PACKED = tl.constexpr(1)
PADDED = tl.constexpr(2)


@triton.jit
def load_tile(base, rows, stride, n, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, MASK: tl.constexpr):
    """Columns OFFSET… of `rows` of an (n, D) matrix; zeros beyond D and, with MASK, beyond n."""
    columns = OFFSET + tl.arange(0, WIDTH)
    pointers = base + rows[:, None] * stride + columns[None, :]
    if OFFSET + WIDTH > D:
        if MASK:
            x = tl.load(pointers, mask=(rows[:, None] < n) & (columns[None, :] < D), other=0.0)
        else:
            x = tl.load(pointers, mask=columns[None, :] < D, other=0.0)
    else:
        if MASK:
            x = tl.load(pointers, mask=rows[:, None] < n, other=0.0)
        else:
            x = tl.load(pointers)
    return x


@triton.jit
def store_tile(base, x, rows, stride, n, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """Write the part of the tile that lies inside the (n, D) matrix."""
    columns = OFFSET + tl.arange(0, WIDTH)
    mask = (rows[:, None] < n) & (columns[None, :] < D)
    tl.store(base + rows[:, None] * stride + columns[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def load_vector(base, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """Elements OFFSET… of a vector of D, in float32; zeros beyond D."""
    columns = OFFSET + tl.arange(0, WIDTH)
    return tl.load(base + columns, mask=columns < D, other=0.0).to(tl.float32)


@triton.jit
def sequence(bounds, b, length, MODE: tl.constexpr):
    """Sequence b of a batch: its first row in the flattened rows, how many rows it has, how many rows it owns.

    DENSE: every sequence has `length` rows. PACKED: bounds are cumulated lengths. PADDED: bounds are lengths, within `length`.
    """
    start = b * length
    n = length
    owned = length
    if MODE == PACKED:
        first = tl.load(bounds + b).to(tl.int32)
        n = tl.load(bounds + b + 1).to(tl.int32) - first
        start = first.to(tl.int64)
        owned = n
    if MODE == PADDED:
        n = tl.load(bounds + b).to(tl.int32)
    return start, n, owned


@triton.jit
def dot_rows(a0, a1, b0, b1, D1: tl.constexpr):
    """a · bᵀ over both tiles of the head dim, in float32."""
    s = tl.dot(a0, tl.trans(b0), input_precision=PRECISION)
    if D1 > 0:
        s = tl.dot(a1, tl.trans(b1), s, input_precision=PRECISION)
    return s

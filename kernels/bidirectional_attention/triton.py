"""Triton kernels of `bidirectional_attention`: rows i (the long side) are streamed, a tile of columns j (the short) is resident.

One product Sᵀ = k qᵀ per tile feeds both directions. The softmax over columns, for each row, is finished inside a launch's
column tile; that over rows, for each column, runs online along the stream; each keeps its own maxima. A program handles one
head of one sample and one part of the rows. Parts leave partial column results, merged afterwards in order. If the short side
has several column tiles, launches follow one another: each merges its rows' output with what the previous tile left
(HAS_PREVIOUS), so memory stays proportional to L1 + L2 and the logits are computed once. Logsumexps are in base 2. Strides
arrive in units of 8 elements.
"""

# mypy: disable-error-code="no-untyped-def"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import PRECISION, dot_rows, load_tile, store_tile

RUNTIME = ["first", "splits", "L1", "L2", "rows1", "col0", "part"]
#: How two padding masks are joined.
NONE = tl.constexpr(0)
AND = tl.constexpr(1)
OR = tl.constexpr(2)


@triton.jit
def _allowed(row_mask, col_seen, rows, cols, n1, n2, MASK: tl.constexpr):
    """(cols, rows) of booleans: both exist, and the padding masks let them see each other."""
    inside = (cols < n2)[:, None] & (rows < n1)[None, :]
    if MASK != NONE:
        row_seen = tl.load(row_mask + rows, mask=rows < n1, other=0) != 0
        if MASK == AND:
            inside = inside & (col_seen[:, None] & row_seen[None, :])
        else:
            inside = inside & (col_seen[:, None] | row_seen[None, :])
    return inside


@triton.jit
def _row_tile(base, rows, stride, n, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, SELECT: tl.constexpr):
    """Columns OFFSET… of a streamed tile; zeros for rows from n on.

    SELECT changes no value: a second select keeps the compiler from turning the tile, on sm_80, into the product's transposed
    operand right where it is loaded, a copy of it in the registers of every warp. It does so with what comes from loads alone.
    """
    x = load_tile(base, rows, stride, n, OFFSET, WIDTH, D, True)
    if SELECT:
        x = tl.where((rows < n)[:, None], x, 0.0)
    return x


@triton.jit
def _fwd_step(
    k0, k1, w0, w1, m, l, acc0, acc1, q, v, o, prev, lse, row_mask, col_seen, rows, cols, sqn, svn, son, n1, n2, scale2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr, HAS_PREVIOUS: tl.constexpr, SELECT: tl.constexpr,
):  # fmt: skip
    q0 = _row_tile(q, rows, sqn, n1, 0, D0, D, SELECT)
    v0 = _row_tile(v, rows, svn, n1, 0, D0, D, SELECT)
    q1 = q0
    v1 = v0
    if D1 > 0:
        q1 = _row_tile(q, rows, sqn, n1, D0, D1, D, SELECT)
        v1 = _row_tile(v, rows, svn, n1, D0, D1, D, SELECT)
    s = dot_rows(k0, k1, q0, q1, D1) * scale2
    s = tl.where(_allowed(row_mask, col_seen, rows, cols, n1, n2, MASK), s, float("-inf"))

    # For each row, over the resident columns: complete within this column tile.
    top = tl.max(s, 0)
    safe = tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp2(s - safe[None, :])
    total = tl.sum(p, 0)
    here = tl.where(total > 0, safe + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    p = tl.trans((p * tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)[None, :]).to(w0.dtype))
    o0 = tl.dot(p, w0, input_precision=PRECISION)
    o1 = o0
    if D1 > 0:
        o1 = tl.dot(p, w1, input_precision=PRECISION)
    if HAS_PREVIOUS:
        before = tl.load(lse + rows, mask=rows < n1, other=float("-inf"))
        high = tl.maximum(before, here)
        high = tl.where(high == float("-inf"), 0.0, high)
        mass = tl.exp2(before - high) + tl.exp2(here - high)
        share = 1.0 / tl.where(mass > 0, mass, 1.0)
        o0 = o0 * (tl.exp2(here - high) * share)[:, None]
        o0 += load_tile(prev, rows, son, n1, 0, D0, D, True) * (tl.exp2(before - high) * share)[:, None]
        if D1 > 0:
            o1 = o1 * (tl.exp2(here - high) * share)[:, None]
            o1 += load_tile(prev, rows, son, n1, D0, D1, D, True) * (tl.exp2(before - high) * share)[:, None]
        here = tl.where(mass > 0, high + tl.log2(tl.where(mass > 0, mass, 1.0)), float("-inf"))
    tl.store(lse + rows, here, mask=rows < n1)
    store_tile(o, o0, rows, son, n1, 0, D0, D)
    if D1 > 0:
        store_tile(o, o1, rows, son, n1, D0, D1, D)

    # For each column, over the rows so far.
    m_new = tl.maximum(m, tl.max(s, 1))
    safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(s - safe[:, None])
    alpha = tl.exp2(m - safe)
    l = l * alpha + tl.sum(p, 1)
    p = p.to(v0.dtype)
    acc0 = tl.dot(p, v0, acc0 * alpha[:, None], input_precision=PRECISION)
    if D1 > 0:
        acc1 = tl.dot(p, v1, acc1 * alpha[:, None], input_precision=PRECISION)
    return m_new, l, acc0, acc1


@triton.jit(do_not_specialize=RUNTIME)
def bidirectional_fwd(
    Q, K, VR, VC, O, PREVIOUS, LSE_ROW, PART, LSE_PART, MASK_ROW, MASK_COL, first, splits, H, L1, L2, rows1, col0, part,
    sqb, sqn, sqh, skb, skn, skh, swb, swn, swh, svb, svn, svh, scale2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr,
    MASK: tl.constexpr, HAS_PREVIOUS: tl.constexpr, SELECT: tl.constexpr,
):  # fmt: skip
    """O (B, L1, H, D), LSE_ROW (H, B·L1); PART (B, H, splits, COLS, D) and LSE_PART (B, H, splits, COLS) of this column tile."""
    pid = first + tl.program_id(0).to(tl.int64)
    split = (pid % splits).to(tl.int32)
    bh = pid // splits
    h = bh % H
    b = bh // H
    low = split * part
    n1 = tl.minimum(L1 - low, part)
    n2 = L2 - col0
    q = Q + (b * sqb + h * sqh + low.to(tl.int64) * sqn) * 8
    v = VC + (b * svb + h * svh + low.to(tl.int64) * svn) * 8
    k = K + (b * skb + h * skh + tl.cast(col0, tl.int64) * skn) * 8
    w = VR + (b * swb + h * swh + tl.cast(col0, tl.int64) * swn) * 8
    token = b * L1 + low
    row_mask = MASK_ROW
    rows = tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    col_seen = cols < n2
    if MASK != NONE:
        row_mask = MASK_ROW + b * L1 + low
        col_seen = tl.load(MASK_COL + b * L2 + col0 + cols, mask=cols < n2, other=0) != 0
    k0 = load_tile(k, cols, skn * 8, n2, 0, D0, D, True)
    w0 = load_tile(w, cols, swn * 8, n2, 0, D0, D, True)
    k1 = k0
    w1 = w0
    if D1 > 0:
        k1 = load_tile(k, cols, skn * 8, n2, D0, D1, D, True)
        w1 = load_tile(w, cols, swn * 8, n2, D0, D1, D, True)
    m = tl.full([COLS], float("-inf"), tl.float32)
    l = tl.zeros([COLS], tl.float32)
    acc0 = tl.zeros([COLS, D0], tl.float32)
    acc1 = tl.zeros([COLS, D1 if D1 > 0 else 16], tl.float32)
    for start in range(0, n1, ROWS):
        row = ((token + start) * H + h) * D
        m, l, acc0, acc1 = _fwd_step(
            k0, k1, w0, w1, m, l, acc0, acc1, q, v, O + row, PREVIOUS + row, LSE_ROW + h * rows1 + token + start,
            row_mask, col_seen, rows, cols, sqn * 8, svn * 8, H * D, n1 - start, n2, scale2,
            D, D0, D1, MASK, HAS_PREVIOUS, SELECT,
        )  # fmt: skip
        q += ROWS * sqn * 8
        v += ROWS * svn * 8
        if MASK != NONE:
            row_mask += ROWS
    inverse = tl.where(l > 0, 1.0 / tl.where(l > 0, l, 1.0), 0.0)
    slot = pid * COLS
    tl.store(LSE_PART + slot + cols, tl.where(l > 0, m + tl.log2(tl.where(l > 0, l, 1.0)), float("-inf")))
    store_tile(PART + slot * D, acc0 * inverse[:, None], cols, D, COLS, 0, D0, D)
    if D1 > 0:
        store_tile(PART + slot * D, acc1 * inverse[:, None], cols, D, COLS, D0, D1, D)


@triton.jit(do_not_specialize=["first", "splits", "L2", "cols2", "col0"])
def bidirectional_merge(
    PART, LSE_PART, O, LSE_COL, first, splits, H, L2, cols2, col0,
    D: tl.constexpr, DP: tl.constexpr, COLS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Join the parts' column results, in order, into O (B, L2, H, D) and LSE_COL (H, B·L2). Program: BC columns of one head."""
    pid = first + tl.program_id(0).to(tl.int64)
    bh = pid // (COLS // BC)
    local = (pid % (COLS // BC)).to(tl.int32) * BC + tl.arange(0, BC)
    h = bh % H
    b = bh // H
    slot = bh * splits * COLS + local
    high = tl.full([BC], float("-inf"), tl.float32)
    for part in range(splits):
        high = tl.maximum(high, tl.load(LSE_PART + slot + part * COLS))
    high = tl.where(high == float("-inf"), 0.0, high)
    columns = tl.arange(0, DP)
    mass = tl.zeros([BC], tl.float32)
    acc = tl.zeros([BC, DP], tl.float32)
    for part in range(splits):
        weight = tl.exp2(tl.load(LSE_PART + slot + part * COLS) - high)
        mass += weight
        values = tl.load(
            PART + (slot + part * COLS)[:, None] * D + columns[None, :], mask=(columns < D)[None, :], other=0.0
        )
        acc += values * weight[:, None]
    exists = col0 + local < L2
    safe = tl.where(mass > 0, mass, 1.0)
    tl.store(
        LSE_COL + h * cols2 + b * L2 + col0 + local,
        tl.where(mass > 0, high + tl.log2(safe), float("-inf")),
        mask=exists,
    )
    out = O + ((b * L2 + col0 + local) * H + h)[:, None] * D + columns[None, :]
    tl.store(out, (acc / safe[:, None]).to(O.dtype.element_ty), mask=exists[:, None] & (columns < D)[None, :])


@triton.jit
def _bwd_step(
    k0, k1, w0, w1, g0, g1, lse_col, delta_col, dk0, dk1, dw0, dw1, q, v, do, lse, delta, dq, dv, prev_dq, prev_dv,
    row_mask, col_seen, rows, cols, sqn, svn, son, n1, n2, scale2, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, MASK: tl.constexpr, HAS_PREVIOUS: tl.constexpr, SELECT: tl.constexpr,
):  # fmt: skip
    q0 = _row_tile(q, rows, sqn, n1, 0, D0, D, SELECT)
    v0 = _row_tile(v, rows, svn, n1, 0, D0, D, SELECT)
    do0 = _row_tile(do, rows, son, n1, 0, D0, D, SELECT)
    q1 = q0
    v1 = v0
    do1 = do0
    if D1 > 0:
        q1 = _row_tile(q, rows, sqn, n1, D0, D1, D, SELECT)
        v1 = _row_tile(v, rows, svn, n1, D0, D1, D, SELECT)
        do1 = _row_tile(do, rows, son, n1, D0, D1, D, SELECT)
    # Reduced from a column: loaded as a row, every thread would hold the addresses of all the rows it needs.
    exists = (rows < n1)[:, None]
    lse_row = tl.max(tl.load(lse + rows[:, None], mask=exists, other=float("inf")), 1)
    lse_row = tl.where(lse_row == float("-inf"), float("inf"), lse_row)
    delta_row = tl.max(tl.load(delta + rows[:, None], mask=exists, other=0.0), 1)
    s = dot_rows(k0, k1, q0, q1, D1) * scale2
    s = tl.where(_allowed(row_mask, col_seen, rows, cols, n1, n2, MASK), s, float("-inf"))
    p = tl.exp2(s - lse_row[None, :])
    ds = p * (dot_rows(w0, w1, do0, do1, D1) - delta_row[None, :])
    p = p.to(do0.dtype)
    dw0 = tl.dot(p, do0, dw0, input_precision=PRECISION)
    if D1 > 0:
        dw1 = tl.dot(p, do1, dw1, input_precision=PRECISION)
    p = tl.exp2(s - lse_col[:, None])
    ds += p * (dot_rows(g0, g1, v0, v1, D1) - delta_col[:, None])
    p = tl.trans(p.to(g0.dtype))
    dv0 = tl.dot(p, g0, input_precision=PRECISION)
    if HAS_PREVIOUS:
        dv0 += load_tile(prev_dv, rows, son, n1, 0, D0, D, True)
    store_tile(dv, dv0, rows, son, n1, 0, D0, D)
    if D1 > 0:
        dv1 = tl.dot(p, g1, input_precision=PRECISION)
        if HAS_PREVIOUS:
            dv1 += load_tile(prev_dv, rows, son, n1, D0, D1, D, True)
        store_tile(dv, dv1, rows, son, n1, D0, D1, D)
    ds = ds.to(q0.dtype)
    dk0 = tl.dot(ds, q0, dk0, input_precision=PRECISION)
    if D1 > 0:
        dk1 = tl.dot(ds, q1, dk1, input_precision=PRECISION)
    ds = tl.trans(ds)
    dq0 = tl.dot(ds, k0, input_precision=PRECISION) * scale
    if HAS_PREVIOUS:
        dq0 += load_tile(prev_dq, rows, son, n1, 0, D0, D, True)
    store_tile(dq, dq0, rows, son, n1, 0, D0, D)
    if D1 > 0:
        dq1 = tl.dot(ds, k1, input_precision=PRECISION) * scale
        if HAS_PREVIOUS:
            dq1 += load_tile(prev_dq, rows, son, n1, D0, D1, D, True)
        store_tile(dq, dq1, rows, son, n1, D0, D1, D)
    return dk0, dk1, dw0, dw1


@triton.jit(do_not_specialize=[*RUNTIME, "cols2"])
def bidirectional_bwd(
    Q, K, VR, VC, DO_ROW, DO_COL, LSE_ROW, LSE_COL, DELTA_ROW, DELTA_COL, DQ, DVC, PREVIOUS_DQ, PREVIOUS_DVC, DK, DVR,
    MASK_ROW, MASK_COL, first, splits, H, L1, L2, rows1, cols2, col0, part,
    sqb, sqn, sqh, skb, skn, skh, swb, swn, swh, svb, svn, svh, scale2, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr,
    MASK: tl.constexpr, HAS_PREVIOUS: tl.constexpr, SELECT: tl.constexpr,
):  # fmt: skip
    """DQ, DVC (B, L1, H, D), with what earlier column tiles gave; DK, DVR (B, H, splits, COLS, D) of this column tile.

    Seven products: the logits, two of probabilities' gradients (their sum is formed once), and those of the four inputs.
    """
    pid = first + tl.program_id(0).to(tl.int64)
    split = (pid % splits).to(tl.int32)
    h = pid // splits % H
    b = pid // splits // H
    low = split * part
    n1 = tl.minimum(L1 - low, part)
    n2 = L2 - col0
    q = Q + (b * sqb + h * sqh + low.to(tl.int64) * sqn) * 8
    v = VC + (b * svb + h * svh + low.to(tl.int64) * svn) * 8
    k = K + (b * skb + h * skh + tl.cast(col0, tl.int64) * skn) * 8
    w = VR + (b * swb + h * swh + tl.cast(col0, tl.int64) * swn) * 8
    token = b * L1 + low
    g = DO_COL + ((b * L2 + col0) * H + h) * D
    row_mask = MASK_ROW
    rows = tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    col_seen = cols < n2
    if MASK != NONE:
        row_mask = MASK_ROW + b * L1 + low
        col_seen = tl.load(MASK_COL + b * L2 + col0 + cols, mask=cols < n2, other=0) != 0
    k0 = load_tile(k, cols, skn * 8, n2, 0, D0, D, True)
    w0 = load_tile(w, cols, swn * 8, n2, 0, D0, D, True)
    g0 = load_tile(g, cols, H * D, n2, 0, D0, D, True)
    k1 = k0
    w1 = w0
    g1 = g0
    if D1 > 0:
        k1 = load_tile(k, cols, skn * 8, n2, D0, D1, D, True)
        w1 = load_tile(w, cols, swn * 8, n2, D0, D1, D, True)
        g1 = load_tile(g, cols, H * D, n2, D0, D1, D, True)
    lse_col = tl.load(LSE_COL + h * cols2 + b * L2 + col0 + cols, mask=cols < n2, other=float("inf"))
    lse_col = tl.where(lse_col == float("-inf"), float("inf"), lse_col)
    delta_col = tl.load(DELTA_COL + h * cols2 + b * L2 + col0 + cols, mask=cols < n2, other=0.0)
    dk0 = tl.zeros([COLS, D0], tl.float32)
    dw0 = tl.zeros([COLS, D0], tl.float32)
    dk1 = tl.zeros([COLS, D1 if D1 > 0 else 16], tl.float32)
    dw1 = tl.zeros([COLS, D1 if D1 > 0 else 16], tl.float32)
    for start in range(0, n1, ROWS):
        row = ((token + start) * H + h) * D
        stat = h * rows1 + token + start
        dk0, dk1, dw0, dw1 = _bwd_step(
            k0, k1, w0, w1, g0, g1, lse_col, delta_col, dk0, dk1, dw0, dw1, q, v, DO_ROW + row, LSE_ROW + stat, DELTA_ROW + stat,
            DQ + row, DVC + row, PREVIOUS_DQ + row, PREVIOUS_DVC + row,
            row_mask, col_seen, rows, cols, sqn * 8, svn * 8, H * D, n1 - start, n2, scale2, scale,
            D, D0, D1, MASK, HAS_PREVIOUS, SELECT,
        )  # fmt: skip
        q += ROWS * sqn * 8
        v += ROWS * svn * 8
        if MASK != NONE:
            row_mask += ROWS
    slot = pid * COLS * D
    store_tile(DK + slot, dk0 * scale, cols, D, COLS, 0, D0, D)
    store_tile(DVR + slot, dw0, cols, D, COLS, 0, D0, D)
    if D1 > 0:
        store_tile(DK + slot, dk1 * scale, cols, D, COLS, D0, D1, D)
        store_tile(DVR + slot, dw1, cols, D, COLS, D0, D1, D)

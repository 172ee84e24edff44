"""Triton kernels of `bidirectional_attention`: rows i (the long side) are streamed, a tile of columns j (the short) is resident.

One product Sᵀ = k qᵀ per tile feeds both directions. The softmax over columns, for each row, is finished inside a launch's
column tile; that over rows, for each column, runs online along the stream; each keeps its own maxima. A program handles one
head of one sample and one part of the rows. Parts leave partial column results, merged afterwards in order. If the short side
has several column tiles, launches follow one another: each merges its rows' output with what the previous tile left
(HAS_PREVIOUS), so memory stays proportional to L1 + L2 and the logits are computed once. Logsumexps are in base 2. Strides
arrive in units of 8 elements.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import added, chosen, dot, dot_add, dot_rows, elements, load, origin, scaled, store, zeros

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
def _program(
    first, Q, K, VR, VC, MASK_COL, splits, H, L1, L2, col0, part,
    sqb, sqn, sqh, skb, skn, skh, swb, swn, swh, svb, svn, svh,
    D: tl.constexpr, BLOCKS: tl.constexpr, COLS: tl.constexpr, MASK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """Of a program: its number, head and sample; its first row, how many it has, how many columns there are from col0 on; where
    its rows of queries and of the columns' values lie, and how far apart; which columns its mask shows; their keys, their values.
    """
    pid = first + tl.program_id(0).to(tl.int64)
    split = (pid % splits).to(tl.int32)
    h = pid // splits % H
    b = pid // splits // H
    low = split * part
    n2 = L2 - col0
    sqn = elements(sqn, LONG)
    svn = elements(svn, LONG)
    skn = elements(skn, LONG)
    swn = elements(swn, LONG)
    token = b * L1 + low
    cols = tl.arange(0, COLS)
    col_seen = cols < n2
    if MASK != NONE:
        col_seen = tl.load(MASK_COL + b * L2 + col0 + cols, mask=cols < n2, other=0) != 0
    ks = load(origin(K, b, h, col0, skb, skn, skh), cols * skn, cols < n2, D, BLOCKS)
    ws = load(origin(VR, b, h, col0, swb, swn, swh), cols * swn, cols < n2, D, BLOCKS)
    q = origin(Q, b, h, low, sqb, sqn, sqh)
    v = origin(VC, b, h, low, svb, svn, svh)
    return pid, h, b, token, tl.minimum(L1 - low, part), n2, q, v, sqn, svn, col_seen, ks, ws


@triton.jit
def _streamed(base, offsets, inside, D: tl.constexpr, BLOCKS: tl.constexpr, SELECT: tl.constexpr):
    """Rows of a streamed tile; zeros where they are not inside.

    SELECT changes no value: a second select keeps the compiler from turning the tile, on sm_80, into the product's transposed
    operand right where it is loaded, a copy of it in the registers of every warp. It does so with what comes from loads alone.
    """
    x = load(base, offsets, inside, D, BLOCKS)
    if SELECT:
        x = chosen(inside[:, None], x)
    return x


@triton.jit
def _fwd_step(
    k, w, m, l, acc, Q, V, O, PREVIOUS, LSE, row_mask, col_seen, rows, cols, sqn, svn, son, n1, n2, scale2,
    D: tl.constexpr, BLOCKS: tl.constexpr, MASK: tl.constexpr, HAS_PREVIOUS: tl.constexpr, SELECT: tl.constexpr,
):  # fmt: skip
    inside = rows < n1
    q = _streamed(Q, rows * sqn, inside, D, BLOCKS, SELECT)
    v = _streamed(V, rows * svn, inside, D, BLOCKS, SELECT)
    s = dot_rows(k, q) * scale2
    s = tl.where(_allowed(row_mask, col_seen, rows, cols, n1, n2, MASK), s, float("-inf"))

    # For each row, over the resident columns: complete within this column tile.
    top = tl.max(s, 0)
    safe = tl.where(top == float("-inf"), 0.0, top)
    p = tl.exp2(s - safe[None, :])
    total = tl.sum(p, 0)
    here = tl.where(total > 0, safe + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    p = tl.trans((p * tl.where(total > 0, 1.0 / tl.where(total > 0, total, 1.0), 0.0)[None, :]).to(w[0].dtype))
    o = dot(p, w)
    if HAS_PREVIOUS:
        before = tl.load(LSE + rows, mask=inside, other=float("-inf"))
        earlier = load(PREVIOUS, rows * son, inside, D, BLOCKS)
        # What is read here is overwritten below, in other threads' registers perhaps: all read before one writes.
        tl.debug_barrier()
        high = tl.maximum(before, here)
        high = tl.where(high == float("-inf"), 0.0, high)
        mass = tl.exp2(before - high) + tl.exp2(here - high)
        share = 1.0 / tl.where(mass > 0, mass, 1.0)
        o = added(
            scaled(o, (tl.exp2(here - high) * share)[:, None]),
            scaled(earlier, (tl.exp2(before - high) * share)[:, None]),
        )
        here = tl.where(mass > 0, high + tl.log2(tl.where(mass > 0, mass, 1.0)), float("-inf"))
    tl.store(LSE + rows, here, mask=inside)
    store(O, rows * son, inside, o, D, BLOCKS)

    # For each column, over the rows so far.
    m_new = tl.maximum(m, tl.max(s, 1))
    safe = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(s - safe[:, None])
    alpha = tl.exp2(m - safe)
    l = l * alpha + tl.sum(p, 1)
    acc = dot_add(p.to(v[0].dtype), v, scaled(acc, alpha[:, None]))
    return m_new, l, acc


@triton.jit(do_not_specialize=RUNTIME)
def bidirectional_fwd(
    first, Q, K, VR, VC, O, PREVIOUS, LSE_ROW, PART, LSE_PART, MASK_ROW, MASK_COL, splits, H, L1, L2, rows1, col0, part,
    sqb, sqn, sqh, skb, skn, skh, swb, swn, swh, svb, svn, svh, scale2,
    D: tl.constexpr, BLOCKS: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr,
    MASK: tl.constexpr, HAS_PREVIOUS: tl.constexpr, SELECT: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """O (B, L1, H, D), LSE_ROW (H, B·L1); PART (B, H, splits, COLS, D) and LSE_PART (B, H, splits, COLS) of this column tile."""
    pid, h, _, token, n1, n2, q, v, sqn, svn, col_seen, ks, ws = _program(
        first, Q, K, VR, VC, MASK_COL, splits, H, L1, L2, col0, part,
        sqb, sqn, sqh, skb, skn, skh, swb, swn, swh, svb, svn, svh, D, BLOCKS, COLS, MASK, LONG,
    )  # fmt: skip
    row_mask = MASK_ROW if MASK == NONE else MASK_ROW + token
    rows = tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    m = tl.full([COLS], float("-inf"), tl.float32)
    l = tl.zeros([COLS], tl.float32)
    acc = zeros(COLS, BLOCKS)
    for start in range(0, n1, ROWS):
        row = ((token + start) * H + h) * D
        m, l, acc = _fwd_step(
            ks, ws, m, l, acc, q, v, O + row, PREVIOUS + row, LSE_ROW + h * rows1 + token + start,
            row_mask, col_seen, rows, cols, sqn, svn, H * D, n1 - start, n2, scale2,
            D, BLOCKS, MASK, HAS_PREVIOUS, SELECT,
        )  # fmt: skip
        q += ROWS * sqn
        v += ROWS * svn
        if MASK != NONE:
            row_mask += ROWS
    inverse = tl.where(l > 0, 1.0 / tl.where(l > 0, l, 1.0), 0.0)
    slot = pid * COLS
    tl.store(LSE_PART + slot + cols, tl.where(l > 0, m + tl.log2(tl.where(l > 0, l, 1.0)), float("-inf")))
    store(PART + slot * D, cols * D, cols < COLS, scaled(acc, inverse[:, None]), D, BLOCKS)


@triton.jit
def _bwd_step(
    k, w, g, lse_col, delta_col, dk, dw, Q, V, DO, LSE, DELTA, DQ, DV, PREV_DQ, PREV_DV,
    row_mask, col_seen, rows, cols, sqn, svn, son, n1, n2, scale2, scale,
    D: tl.constexpr, BLOCKS: tl.constexpr, MASK: tl.constexpr, HAS_PREVIOUS: tl.constexpr, SELECT: tl.constexpr,
):  # fmt: skip
    inside = rows < n1
    q = _streamed(Q, rows * sqn, inside, D, BLOCKS, SELECT)
    v = _streamed(V, rows * svn, inside, D, BLOCKS, SELECT)
    do = _streamed(DO, rows * son, inside, D, BLOCKS, SELECT)
    # Reduced from a column: loaded as a row, every thread would hold the addresses of all the rows it needs.
    exists = inside[:, None]
    lse_row = tl.max(tl.load(LSE + rows[:, None], mask=exists, other=float("inf")), 1)
    lse_row = tl.where(lse_row == float("-inf"), float("inf"), lse_row)
    delta_row = tl.max(tl.load(DELTA + rows[:, None], mask=exists, other=0.0), 1)
    s = dot_rows(k, q) * scale2
    s = tl.where(_allowed(row_mask, col_seen, rows, cols, n1, n2, MASK), s, float("-inf"))
    p = tl.exp2(s - lse_row[None, :])
    ds = p * (dot_rows(w, do) - delta_row[None, :])
    dw = dot_add(p.to(do[0].dtype), do, dw)
    p = tl.exp2(s - lse_col[:, None])
    ds += p * (dot_rows(g, v) - delta_col[:, None])
    dv = dot(tl.trans(p.to(g[0].dtype)), g)
    if HAS_PREVIOUS:
        dv = added(dv, load(PREV_DV, rows * son, inside, D, BLOCKS))
        tl.debug_barrier()  # as in `_fwd_step`
    store(DV, rows * son, inside, dv, D, BLOCKS)
    ds = ds.to(q[0].dtype)
    dk = dot_add(ds, q, dk)
    dq = scaled(dot(tl.trans(ds), k), scale)
    if HAS_PREVIOUS:
        dq = added(dq, load(PREV_DQ, rows * son, inside, D, BLOCKS))
        tl.debug_barrier()
    store(DQ, rows * son, inside, dq, D, BLOCKS)
    return dk, dw


@triton.jit(do_not_specialize=[*RUNTIME, "cols2"])
def bidirectional_bwd(
    first, Q, K, VR, VC, DO_ROW, DO_COL, LSE_ROW, LSE_COL, DELTA_ROW, DELTA_COL, DQ, DVC, PREVIOUS_DQ, PREVIOUS_DVC, DK, DVR,
    MASK_ROW, MASK_COL, splits, H, L1, L2, rows1, cols2, col0, part,
    sqb, sqn, sqh, skb, skn, skh, swb, swn, swh, svb, svn, svh, scale2, scale,
    D: tl.constexpr, BLOCKS: tl.constexpr, COLS: tl.constexpr, ROWS: tl.constexpr,
    MASK: tl.constexpr, HAS_PREVIOUS: tl.constexpr, SELECT: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """DQ, DVC (B, L1, H, D), with what earlier column tiles gave; DK, DVR (B, H, splits, COLS, D) of this column tile.

    Seven products: the logits, two of probabilities' gradients (their sum is formed once), and those of the four inputs.
    """
    pid, h, b, token, n1, n2, q, v, sqn, svn, col_seen, ks, ws = _program(
        first, Q, K, VR, VC, MASK_COL, splits, H, L1, L2, col0, part,
        sqb, sqn, sqh, skb, skn, skh, swb, swn, swh, svb, svn, svh, D, BLOCKS, COLS, MASK, LONG,
    )  # fmt: skip
    row_mask = MASK_ROW if MASK == NONE else MASK_ROW + token
    rows = tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    gs = load(DO_COL + ((b * L2 + col0) * H + h) * D, cols * (H * D), cols < n2, D, BLOCKS)
    own = h * cols2 + b * L2 + col0 + cols
    lse_col = tl.load(LSE_COL + own, mask=cols < n2, other=float("inf"))
    lse_col = tl.where(lse_col == float("-inf"), float("inf"), lse_col)
    delta_col = tl.load(DELTA_COL + own, mask=cols < n2, other=0.0)
    dk = zeros(COLS, BLOCKS)
    dw = zeros(COLS, BLOCKS)
    for start in range(0, n1, ROWS):
        row = ((token + start) * H + h) * D
        stat = h * rows1 + token + start
        dk, dw = _bwd_step(
            ks, ws, gs, lse_col, delta_col, dk, dw, q, v, DO_ROW + row, LSE_ROW + stat, DELTA_ROW + stat,
            DQ + row, DVC + row, PREVIOUS_DQ + row, PREVIOUS_DVC + row,
            row_mask, col_seen, rows, cols, sqn, svn, H * D, n1 - start, n2, scale2, scale,
            D, BLOCKS, MASK, HAS_PREVIOUS, SELECT,
        )  # fmt: skip
        q += ROWS * sqn
        v += ROWS * svn
        if MASK != NONE:
            row_mask += ROWS
    slot = pid * COLS * D
    store(DK + slot, cols * D, cols < COLS, scaled(dk, scale), D, BLOCKS)
    store(DVR + slot, cols * D, cols < COLS, dw, D, BLOCKS)

"""Triton kernels of `attention`: softmax streamed over key tiles; backward in two passes of one kernel, for queries and for keys,
that own their rows, so that no sum depends on timing. Logsumexps are kept in base 2.

With NORM the logits are those of RMS-normed queries and keys without these ever being stored: q̂ = q · rq · w, where rq is the
query's inverse RMS and w the product of both gains, and the key's inverse RMS rk multiplies the logits' column. The gains'
gradients follow from that of w.

Strides arrive in units of 8 elements: so the compiler knows that every row starts on 16 bytes, which a stride of 72 hides.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import (
    chosen,
    column_sums,
    dot_add,
    dot_rows,
    elements,
    far,
    load,
    load_vector,
    norm_bwd,
    origin,
    row_sums,
    scaled,
    sequence,
    store,
    store_vector,
    times,
    wide,
    zero_vector,
    zeros,
)

# ruff: noqa: RUF005  Triton knows sums of tuples, not unpacking

#: Sizes that differ from batch to batch: no variant is compiled for those that happen to be 1 or multiples of 16.
SIZES = ["first", "tiles", "splits"]


@triton.jit(do_not_specialize=["first", "rows", "length"])
def attention_rms(
    first, X, R, rows, H, sxb, sxn, sxh, length, eps, D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr
):
    """R[h, row] = 1 / sqrt(mean(x²) + eps), over `rows` × H vectors. Program: BM vectors, head fastest."""
    item = (first + tl.program_id(0).to(tl.int64)) * BM + tl.arange(0, BM)
    row = item // H
    h = item % H
    x = load(X, row // length * far(sxb) + row % length * far(sxn) + h * far(sxh), row < rows, D, BLOCKS)
    tl.store(R + h * rows + row, tl.rsqrt(row_sums(x, x) / D + eps), mask=row < rows)


@triton.jit(do_not_specialize=["first", "rows"])
def attention_delta(first, O, DO, DELTA, rows, H, D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr):
    """DELTA[h, row] = Σ_d O·dO, both contiguous (rows, H, D). Program: BM vectors."""
    item = (first + tl.program_id(0).to(tl.int64)) * BM + tl.arange(0, BM)
    row = item // H
    sums = row_sums(load(O, item * D, row < rows, D, BLOCKS), load(DO, item * D, row < rows, D, BLOCKS))
    tl.store(DELTA + item % H * rows + row, sums, mask=row < rows)


@triton.jit
def gains(WQ, WK, D: tl.constexpr, BLOCKS: tl.constexpr):
    """The product of both gains, as a tuple of blocks."""
    return times(load_vector(WQ, D, BLOCKS), load_vector(WK, D, BLOCKS))


@triton.jit
def normed(rows, r, w):
    """rows · r · w, rounded to the rows' dtype."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + ((rows[i].to(tl.float32) * r[:, None] * w[i][None, :]).to(rows[i].dtype),)
    return out


@triton.jit
def _part(slot, splits, n, TILE: tl.constexpr):
    """Of n rows, cut into as many parts of whole tiles: where a program's own starts, and how many it has."""
    part = tl.cdiv(tl.cdiv(n, TILE), splits) * TILE
    low = (slot % splits).to(tl.int32) * part
    return low, tl.maximum(tl.minimum(n - low, part), 0)


@triton.jit
def _fwd_step(
    q, acc, m, l, K, V, RK, cols, skn, svn, n, scale2,
    D: tl.constexpr, BLOCKS: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    inside = (cols < n) if MASK else None
    k = load(K, cols * skn, inside, D, BLOCKS)
    v = load(V, cols * svn, inside, D, BLOCKS)
    s = dot_rows(q, k)
    if NORM:
        s *= tl.load(RK + cols, mask=cols < n, other=0.0)[None, :]
    if MASK:
        s = tl.where((cols < n)[None, :], s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1) * scale2)
    p = tl.exp2(s * scale2 - m_new[:, None])
    alpha = tl.exp2(m - m_new)
    l = l * alpha + tl.sum(p, 1)
    acc = dot_add(p.to(v[0].dtype), v, scaled(acc, alpha[:, None]))
    return acc, m_new, l


@triton.jit(do_not_specialize=[*SIZES, "q_mode", "k_mode", "LQ", "LK", "q_rows", "k_rows"])
def attention_fwd(
    first, Q, K, V, O, LSE, RQ, RK, WQ, WK, BQ, BK, q_mode, k_mode, tiles, splits, H, LQ, LK, q_rows, k_rows,
    sqb, sqn, sqh, skb, skn, skh, svb, svn, svh, scale2, eps,
    D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BOUNDED: tl.constexpr, SPLIT: tl.constexpr, NORM: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """O (q_rows, H, D) and LSE (H, q_rows). Program: one query tile of one head of one sequence, tile fastest.

    SPLIT, for dense sequences: against one of `splits` parts of the keys; O (B, H, splits, LQ, D) and LSE (B, H, splits, LQ).

    A packed sequence that is longer than LQ or LK says is NaN: nothing else would tell that some of its rows were left out.
    """
    pid = first + tl.program_id(0).to(tl.int64)
    m0 = (pid % tiles).to(tl.int32) * BM
    slot = pid // tiles
    bh = slot // splits if SPLIT else slot
    h = bh % H
    b = bh // H
    q_start, q_skipped, nq, q_owned = sequence(BQ, b, LQ, q_rows, q_mode, BOUNDED)
    k_start, k_skipped, nk, _ = sequence(BK, b, LK, k_rows, k_mode, BOUNDED)
    if m0 >= q_owned:
        return
    nk = tl.where(m0 < nq, nk, 0)
    low = 0
    if SPLIT:
        low, nk = _part(slot, splits, nk, BN)
    sqn = elements(sqn, LONG)
    skn = elements(skn, LONG)
    svn = elements(svn, LONG)
    q = origin(Q, b, h, q_skipped + m0, sqb, sqn, sqh)
    k = origin(K, b, h, k_skipped + low, skb, skn, skh)
    v = origin(V, b, h, k_skipped + low, svb, svn, svh)
    rk = RK + h * k_rows + k_start
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    qs = load(q, rows * sqn, rows < nq - m0, D, BLOCKS)
    row = q_start + m0 + rows
    if NORM:
        r = tl.rsqrt(row_sums(qs, qs) / D + eps)
        tl.store(RQ + h * q_rows + row, r, mask=m0 + rows < q_owned)
        qs = normed(qs, r, gains(WQ, WK, D, BLOCKS))
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = zeros(BM, BLOCKS)
    whole = nk // BN * BN
    for _ in range(0, whole, BN):
        acc, m, l = _fwd_step(qs, acc, m, l, k, v, rk, cols, skn, svn, BN, scale2, D, BLOCKS, NORM, False)
        k += BN * skn
        v += BN * svn
        rk += BN
    if whole < nk:
        acc, m, l = _fwd_step(qs, acc, m, l, k, v, rk, cols, skn, svn, nk - whole, scale2, D, BLOCKS, NORM, True)
    seen = (l > 0) & (m0 + rows < nq)
    inverse = tl.where(seen, 1.0 / tl.where(seen, l, 1.0), 0.0)
    if BOUNDED:
        inverse = tl.where((nq > LQ) | (nk > LK), float("nan"), inverse)
    lse = LSE + h * q_rows + q_start + m0
    o = O + ((q_start + m0) * H + h) * D
    apart = H * D
    if SPLIT:
        lse = LSE + slot * LQ + m0
        o = O + (slot * LQ + m0) * D
        apart = D
    owned = rows < q_owned - m0
    tl.store(lse + rows, tl.where(seen, m + tl.log2(tl.where(seen, l, 1.0)), float("inf")), mask=owned)
    store(o, rows * apart, owned, scaled(acc, inverse[:, None]), D, BLOCKS)


@triton.jit
def _bwd_step(
    x, x2, dx, dx2, lse, delta, Y, Y2, LSE, DELTA, RY, rows, syn, sy2n, n, scale2,
    D: tl.constexpr, BLOCKS: tl.constexpr, KEYS: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    inside = (rows < n) if MASK else None
    y = load(Y, rows * syn, inside, D, BLOCKS)
    y2 = load(Y2, rows * sy2n, inside, D, BLOCKS)
    if KEYS:
        # Rows beyond n have an infinite logsumexp, hence zero probability.
        lse = tl.load(LSE + rows, mask=rows < n, other=float("inf"))[None, :]
        delta = tl.load(DELTA + rows, mask=rows < n, other=0.0)[None, :]
    s = dot_rows(x, y)
    r = delta
    if NORM:
        r = tl.load(RY + rows, mask=rows < n, other=0.0)[None, :]
        s *= r
    p = tl.exp2(s * scale2 - lse)
    if KEYS:
        dx2 = dot_add(p.to(y2[0].dtype), y2, dx2)
    elif MASK:
        p = tl.where((rows < n)[None, :], p, 0.0)
    ds = p * (dot_rows(x2, y2) - delta)
    if NORM:
        ds *= r
    dx = dot_add(ds.to(y[0].dtype), y, dx)
    return dx, dx2


@triton.jit(do_not_specialize=[*SIZES, "x_mode", "y_mode", "LX", "LY", "x_rows", "y_rows"])
def attention_bwd(
    first, X, X2, Y, Y2, O, LSE, DELTA, DX, DX2, RX, RY, WX, WY, DWX, DWY, BX, BY, x_mode, y_mode,
    tiles, splits, H, LX, LY, x_rows, y_rows,
    sxb, sxn, sxh, sx2b, sx2n, sx2h, syb, syn, syh, sy2b, sy2n, sy2h, scale2, scale,
    D: tl.constexpr, BLOCKS: tl.constexpr, OWN: tl.constexpr, OTHER: tl.constexpr,
    BOUNDED: tl.constexpr, KEYS: tl.constexpr, SPLIT: tl.constexpr, NORM: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """The gradients of one side, x. Program: one tile of one head of one sequence of x, past which the other side, y, is
    streamed, with SPLIT one of `splits` parts of it.

    Of queries: x are queries and x2 is dO, y are keys and y2 values; DX (splits, x_rows, H, D), and DELTA (H, x_rows), Σ_d O·dO,
    for the other pass. KEYS: x are keys and x2 values, y are queries and y2 is dO; DX and DX2, and with NORM (one split) DWX, DWY
    (programs, D): each program's part of the gains' gradients.
    """
    pid = first + tl.program_id(0).to(tl.int64)
    x0 = (pid % tiles).to(tl.int32) * OWN
    slot = pid // tiles
    bh = slot // splits if SPLIT else slot
    h = bh % H
    b = bh // H
    x_start, x_skipped, nx, owned = sequence(BX, b, LX, x_rows, x_mode, BOUNDED)
    y_start, y_skipped, ny, _ = sequence(BY, b, LY, y_rows, y_mode, BOUNDED)
    if x0 >= owned:
        if KEYS and NORM:
            store_vector(DWX + pid * D, zero_vector(BLOCKS), D, BLOCKS)
            store_vector(DWY + pid * D, zero_vector(BLOCKS), D, BLOCKS)
        return
    ny = tl.where(x0 < nx, ny, 0)
    low = 0
    if SPLIT:
        low, ny = _part(slot, splits, ny, OTHER)
    sxn = elements(sxn, LONG)
    sx2n = elements(sx2n, LONG)
    syn = elements(syn, LONG)
    sy2n = elements(sy2n, LONG)
    x = origin(X, b, h, x_skipped + x0, sxb, sxn, sxh)
    x2 = origin(X2, b, h, x_skipped + x0, sx2b, sx2n, sx2h)
    y = origin(Y, b, h, y_skipped + low, syb, syn, syh)
    y2 = origin(Y2, b, h, y_skipped + low, sy2b, sy2n, sy2h)
    own = tl.arange(0, OWN)
    rows = tl.arange(0, OTHER)
    exists = own < nx - x0
    # The statistics are those of queries.
    stat = h * y_rows + y_start + low if KEYS else h * x_rows + x_start + x0
    lse_at = LSE + stat
    delta_at = DELTA + stat
    lse = 0.0
    delta = 0.0
    x2s = load(x2, own * sx2n, exists, D, BLOCKS)
    if not KEYS:
        lse = tl.load(lse_at + own, mask=exists, other=float("inf"))[:, None]
        o = load(O + ((x_start + x0) * H + h) * D, own * (H * D), exists, D, BLOCKS)
        delta = row_sums(o, x2s)[:, None]
        tl.store(delta_at + own[:, None], delta, mask=exists[:, None])
    rx = RX + h * x_rows + x_start + x0
    ry = RY + h * y_rows + y_start + low
    xs = load(x, own * sxn, exists, D, BLOCKS)
    if NORM:
        r = tl.load(rx + own, mask=exists, other=0.0)
        xs = normed(xs, r, gains(WX, WY, D, BLOCKS))
    dx = zeros(OWN, BLOCKS)
    dx2 = zeros(OWN, BLOCKS)
    whole = ny // OTHER * OTHER
    for _ in range(0, whole, OTHER):
        dx, dx2 = _bwd_step(
            xs, x2s, dx, dx2, lse, delta, y, y2, lse_at, delta_at, ry, rows, syn, sy2n, OTHER, scale2,
            D, BLOCKS, KEYS, NORM, False,
        )  # fmt: skip
        y += OTHER * syn
        y2 += OTHER * sy2n
        lse_at += OTHER
        delta_at += OTHER
        ry += OTHER
    if whole < ny:
        dx, dx2 = _bwd_step(
            xs, x2s, dx, dx2, lse, delta, y, y2, lse_at, delta_at, ry, rows, syn, sy2n, ny - whole, scale2,
            D, BLOCKS, KEYS, NORM, True,
        )  # fmt: skip
    dx = scaled(dx, scale)
    out = ((x_start + x0) * H + h) * D
    if SPLIT:
        out += slot % splits * x_rows * H * D
    if KEYS:
        # Keys beyond nx were zeros with probabilities of their own, without meaning and perhaps infinite.
        dx = chosen(exists[:, None], dx)
        store(DX2 + out, own * (H * D), own < owned - x0, chosen(exists[:, None], dx2), D, BLOCKS)
    if NORM:
        r = tl.load(rx + own, mask=exists, other=0.0)
        xs = wide(load(x, own * sxn, exists, D, BLOCKS))
        if KEYS:
            dw = column_sums(scaled(times(xs, dx), r[:, None]))
            store_vector(DWX + pid * D, times(dw, load_vector(WY, D, BLOCKS)), D, BLOCKS)
            store_vector(DWY + pid * D, times(dw, load_vector(WX, D, BLOCKS)), D, BLOCKS)
        dx = norm_bwd(xs, dx, gains(WX, WY, D, BLOCKS), r, D)
    store(DX + out, own * (H * D), own < owned - x0, dx, D, BLOCKS)

"""Triton kernels of `attention`: softmax streamed over key tiles; backward in two passes that own their rows, so that no sum
depends on timing. Logsumexps are kept in base 2.

With NORM the logits are those of RMS-normed queries and keys without these ever being stored: q̂ = q · rq · w, where rq is the
query's inverse RMS and w the product of both gains, and the key's inverse RMS rk multiplies the logits' column. The gains'
gradients follow from that of w.

Strides arrive in units of 8 elements: so the compiler knows that every row starts on 16 bytes, which a stride of 72 hides.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import (
    PACKED,
    chosen,
    dot_add,
    dot_rows,
    elements,
    far,
    load,
    load_vector,
    row_sums,
    scaled,
    sequence,
    store,
    store_vector,
    wide,
    zero_vector,
    zeros,
)

# ruff: noqa: RUF005  Triton knows sums of tuples, not unpacking

#: Sizes that differ from batch to batch: no variant is compiled for those that happen to be 1 or multiples of 16.
RUNTIME = ["first", "tiles", "LQ", "LK", "q_rows", "k_rows"]


@triton.jit(do_not_specialize=["first", "rows", "length"])
def attention_rms(
    X, R, first, rows, H, sxb, sxn, sxh, length, eps, D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr
):
    """R[h, row] = 1 / sqrt(mean(x²) + eps), over `rows` × H vectors. Program: BM vectors, head fastest."""
    item = (first + tl.program_id(0).to(tl.int64)) * BM + tl.arange(0, BM)
    row = item // H
    h = item % H
    x = load(X, row // length * far(sxb) + row % length * far(sxn) + h * far(sxh), row < rows, D, BLOCKS)
    tl.store(R + h * rows + row, tl.rsqrt(row_sums(x, x) / D + eps), mask=row < rows)


@triton.jit(do_not_specialize=["first", "rows"])
def attention_delta(O, DO, DELTA, first, rows, H, D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr):
    """DELTA[h, row] = Σ_d O·dO, both contiguous (rows, H, D). Program: BM vectors."""
    item = (first + tl.program_id(0).to(tl.int64)) * BM + tl.arange(0, BM)
    row = item // H
    sums = row_sums(load(O, item * D, row < rows, D, BLOCKS), load(DO, item * D, row < rows, D, BLOCKS))
    tl.store(DELTA + item % H * rows + row, sums, mask=row < rows)


@triton.jit
def attention_gains(DW, WQ, WK, DWQ, DWK, D: tl.constexpr, BLOCKS: tl.constexpr):
    """DWQ, DWK (D) of both gains from DW (D), that of their product."""
    dw = load_vector(DW, D, BLOCKS)
    wq = load_vector(WQ, D, BLOCKS)
    wk = load_vector(WK, D, BLOCKS)
    dwq = ()
    dwk = ()
    for i in tl.static_range(len(BLOCKS)):
        dwq = dwq + (dw[i] * wk[i],)
        dwk = dwk + (dw[i] * wq[i],)
    store_vector(DWQ, dwq, D, BLOCKS)
    store_vector(DWK, dwk, D, BLOCKS)


@triton.jit
def gains(WQ, WK, D: tl.constexpr, BLOCKS: tl.constexpr):
    """The product of both gains, as a tuple of blocks."""
    wq = load_vector(WQ, D, BLOCKS)
    wk = load_vector(WK, D, BLOCKS)
    out = ()
    for i in tl.static_range(len(BLOCKS)):
        out = out + (wq[i] * wk[i],)
    return out


@triton.jit
def normed(rows, r, w):
    """rows · r · w, rounded to the rows' dtype."""
    out = ()
    for i in tl.static_range(len(rows)):
        out = out + ((rows[i].to(tl.float32) * r[:, None] * w[i][None, :]).to(rows[i].dtype),)
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


@triton.jit(do_not_specialize=RUNTIME)
def attention_fwd(
    Q, K, V, O, LSE, RQ, RK, WQ, WK, BQ, BK, first, tiles, H, LQ, LK, q_rows, k_rows,
    sqb, sqn, sqh, skb, skn, skh, svb, svn, svh, scale2, eps,
    D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MODE_Q: tl.constexpr, MODE_K: tl.constexpr, NORM: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """O (q_rows, H, D) and LSE (H, q_rows). Program: one query tile of one head of one sequence, tile fastest.

    A packed sequence that is longer than LQ or LK says is NaN: nothing else would tell that some of its rows were left out.
    """
    pid = first + tl.program_id(0).to(tl.int64)
    m0 = (pid % tiles).to(tl.int32) * BM
    h = pid // tiles % H
    b = pid // tiles // H
    q_start, nq, q_owned = sequence(BQ, b, LQ, q_rows, MODE_Q)
    k_start, nk, _ = sequence(BK, b, LK, k_rows, MODE_K)
    if m0 >= q_owned:
        return
    nk = tl.where(m0 < nq, nk, 0)
    sqn = elements(sqn, LONG)
    skn = elements(skn, LONG)
    svn = elements(svn, LONG)
    q = Q + (q_start * sqn if MODE_Q == PACKED else b * far(sqb)) + h * far(sqh) + m0.to(tl.int64) * sqn
    k = K + (k_start * skn if MODE_K == PACKED else b * far(skb)) + h * far(skh)
    v = V + (k_start * svn if MODE_K == PACKED else b * far(svb)) + h * far(svh)
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
    if MODE_Q == PACKED:
        inverse = tl.where(nq > LQ, float("nan"), inverse)
    if MODE_K == PACKED:
        inverse = tl.where(nk > LK, float("nan"), inverse)
    tl.store(
        LSE + h * q_rows + row,
        tl.where(seen, m + tl.log2(tl.where(seen, l, 1.0)), float("inf")),
        mask=m0 + rows < q_owned,
    )
    o = O + ((q_start + m0) * H + h) * D
    store(o, rows * (H * D), rows < q_owned - m0, scaled(acc, inverse[:, None]), D, BLOCKS)


@triton.jit
def _dkv_step(
    k, v, dk, dv, Q, DO, LSE, DELTA, RQ, rows, sqn, son, n, scale2,
    D: tl.constexpr, BLOCKS: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    inside = (rows < n) if MASK else None
    q = load(Q, rows * sqn, inside, D, BLOCKS)
    do = load(DO, rows * son, inside, D, BLOCKS)
    # Rows beyond n have an infinite logsumexp, hence zero probability.
    lse = tl.load(LSE + rows, mask=rows < n, other=float("inf"))
    delta = tl.load(DELTA + rows, mask=rows < n, other=0.0)
    s = dot_rows(k, q)
    r = lse
    if NORM:
        r = tl.load(RQ + rows, mask=rows < n, other=0.0)
        s *= r[None, :]
    p = tl.exp2(s * scale2 - lse[None, :])
    dv = dot_add(p.to(do[0].dtype), do, dv)
    ds = p * (dot_rows(v, do) - delta[None, :])
    if NORM:
        ds *= r[None, :]
    dk = dot_add(ds.to(q[0].dtype), q, dk)
    return dk, dv


@triton.jit(do_not_specialize=[*RUNTIME, "splits"])
def attention_bwd_dkv(
    Q, K, V, DO, LSE, DELTA, DK, DV, RQ, RK, WQ, WK, DW, BQ, BK, first, tiles, splits, H, LQ, LK, q_rows, k_rows,
    sqb, sqn, sqh, skb, skn, skh, svb, svn, svh, scale2, scale,
    D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MODE_Q: tl.constexpr, MODE_K: tl.constexpr, NORM: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """DK, DV (splits, k_rows, H, D), and with NORM (one split) DW (programs, D), the gradient of the gains' product.

    Program: one key tile of one head of one sequence, against one of `splits` parts of the queries.
    """
    pid = first + tl.program_id(0).to(tl.int64)
    n0 = (pid % tiles).to(tl.int32) * BN
    split = (pid // tiles % splits).to(tl.int32)
    h = pid // tiles // splits % H
    b = pid // tiles // splits // H
    q_start, nq, _ = sequence(BQ, b, LQ, q_rows, MODE_Q)
    k_start, nk, k_owned = sequence(BK, b, LK, k_rows, MODE_K)
    if n0 >= k_owned:
        if NORM:
            store_vector(DW + pid * D, zero_vector(BLOCKS), D, BLOCKS)
        return
    nq = tl.where(n0 < nk, nq, 0)
    part = tl.cdiv(tl.cdiv(nq, BM), splits) * BM
    low = split * part
    span = tl.minimum(nq - low, part)
    sqn = elements(sqn, LONG)
    skn = elements(skn, LONG)
    svn = elements(svn, LONG)
    q = Q + (q_start * sqn if MODE_Q == PACKED else b * far(sqb)) + h * far(sqh) + low.to(tl.int64) * sqn
    k = K + (k_start * skn if MODE_K == PACKED else b * far(skb)) + h * far(skh) + n0.to(tl.int64) * skn
    v = V + (k_start * svn if MODE_K == PACKED else b * far(svb)) + h * far(svh) + n0.to(tl.int64) * svn
    do = DO + ((q_start + low) * H + h) * D
    stat = h * q_rows + q_start + low
    lse = LSE + stat
    delta = DELTA + stat
    rq = RQ + stat
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    exists = cols < nk - n0
    ks = load(k, cols * skn, exists, D, BLOCKS)
    vs = load(v, cols * svn, exists, D, BLOCKS)
    if NORM:
        r = tl.load(RK + h * k_rows + k_start + n0 + cols, mask=exists, other=0.0)
        ks = normed(ks, r, gains(WQ, WK, D, BLOCKS))
    dk = zeros(BN, BLOCKS)
    dv = zeros(BN, BLOCKS)
    whole = tl.maximum(span, 0) // BM * BM
    for _ in range(0, whole, BM):
        dk, dv = _dkv_step(ks, vs, dk, dv, q, do, lse, delta, rq, rows, sqn, H * D, BM, scale2, D, BLOCKS, NORM, False)
        q += BM * sqn
        do += BM * H * D
        lse += BM
        delta += BM
        rq += BM
    if whole < span:
        dk, dv = _dkv_step(
            ks, vs, dk, dv, q, do, lse, delta, rq, rows, sqn, H * D, span - whole, scale2, D, BLOCKS, NORM, True
        )
    # Keys beyond nk were zeros with probabilities of their own, without meaning and perhaps infinite.
    dk = chosen(exists[:, None], scaled(dk, scale))
    dv = chosen(exists[:, None], dv)
    out = ((split.to(tl.int64) * k_rows + k_start + n0) * H + h) * D
    owned = cols < k_owned - n0
    store(DV + out, cols * (H * D), owned, dv, D, BLOCKS)
    if NORM:
        r = tl.load(RK + h * k_rows + k_start + n0 + cols, mask=exists, other=0.0)
        x = wide(load(k, cols * skn, exists, D, BLOCKS))
        dw = ()
        for i in tl.static_range(len(BLOCKS)):
            dw = dw + (tl.sum(x[i] * dk[i] * r[:, None], 0),)
        store_vector(DW + pid * D, dw, D, BLOCKS)
        dk = norm_bwd(x, dk, gains(WQ, WK, D, BLOCKS), r, D)
    store(DK + out, cols * (H * D), owned, dk, D, BLOCKS)


@triton.jit
def _dq_step(
    q, do, dq, lse, delta, K, V, RK, cols, skn, svn, n, scale2,
    D: tl.constexpr, BLOCKS: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    inside = (cols < n) if MASK else None
    k = load(K, cols * skn, inside, D, BLOCKS)
    v = load(V, cols * svn, inside, D, BLOCKS)
    s = dot_rows(q, k)
    r = lse
    if NORM:
        r = tl.load(RK + cols, mask=cols < n, other=0.0)
        s *= r[None, :]
    p = tl.exp2(s * scale2 - lse[:, None])
    if MASK:
        p = tl.where((cols < n)[None, :], p, 0.0)
    ds = p * (dot_rows(do, v) - delta[:, None])
    if NORM:
        ds *= r[None, :]
    return dot_add(ds.to(k[0].dtype), k, dq)


@triton.jit(do_not_specialize=RUNTIME)
def attention_bwd_dq(
    Q, K, V, DO, LSE, DELTA, DQ, RQ, RK, WQ, WK, BQ, BK, first, tiles, H, LQ, LK, q_rows, k_rows,
    sqb, sqn, sqh, skb, skn, skh, svb, svn, svh, scale2, scale,
    D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MODE_Q: tl.constexpr, MODE_K: tl.constexpr, NORM: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """DQ (q_rows, H, D). Program: as in `attention_fwd`."""
    pid = first + tl.program_id(0).to(tl.int64)
    m0 = (pid % tiles).to(tl.int32) * BM
    h = pid // tiles % H
    b = pid // tiles // H
    q_start, nq, q_owned = sequence(BQ, b, LQ, q_rows, MODE_Q)
    k_start, nk, _ = sequence(BK, b, LK, k_rows, MODE_K)
    if m0 >= q_owned:
        return
    nk = tl.where(m0 < nq, nk, 0)
    sqn = elements(sqn, LONG)
    skn = elements(skn, LONG)
    svn = elements(svn, LONG)
    q = Q + (q_start * sqn if MODE_Q == PACKED else b * far(sqb)) + h * far(sqh) + m0.to(tl.int64) * sqn
    k = K + (k_start * skn if MODE_K == PACKED else b * far(skb)) + h * far(skh)
    v = V + (k_start * svn if MODE_K == PACKED else b * far(svb)) + h * far(svh)
    do = DO + ((q_start + m0) * H + h) * D
    row = h * q_rows + q_start + m0
    rk = RK + h * k_rows + k_start
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    exists = rows < nq - m0
    qs = load(q, rows * sqn, exists, D, BLOCKS)
    dos = load(do, rows * (H * D), exists, D, BLOCKS)
    if NORM:
        r = tl.load(RQ + row + rows, mask=exists, other=0.0)
        qs = normed(qs, r, gains(WQ, WK, D, BLOCKS))
    lse = tl.load(LSE + row + rows, mask=exists, other=float("inf"))
    delta = tl.load(DELTA + row + rows, mask=exists, other=0.0)
    dq = zeros(BM, BLOCKS)
    whole = nk // BN * BN
    for _ in range(0, whole, BN):
        dq = _dq_step(qs, dos, dq, lse, delta, k, v, rk, cols, skn, svn, BN, scale2, D, BLOCKS, NORM, False)
        k += BN * skn
        v += BN * svn
        rk += BN
    if whole < nk:
        dq = _dq_step(qs, dos, dq, lse, delta, k, v, rk, cols, skn, svn, nk - whole, scale2, D, BLOCKS, NORM, True)
    dq = scaled(dq, scale)
    if NORM:
        r = tl.load(RQ + row + rows, mask=exists, other=0.0)
        x = wide(load(q, rows * sqn, exists, D, BLOCKS))
        dq = norm_bwd(x, dq, gains(WQ, WK, D, BLOCKS), r, D)
    store(DQ + ((q_start + m0) * H + h) * D, rows * (H * D), rows < q_owned - m0, dq, D, BLOCKS)

"""Triton kernels of `attention`: softmax streamed over key tiles; backward in two passes that own their rows, so that no sum
depends on timing. Logsumexps are kept in base 2.

With NORM the logits are those of RMS-normed queries and keys without these ever being stored: q̂ = q · rq · w, where rq is the
query's inverse RMS and w the product of both gains, and the key's inverse RMS rk multiplies the logits' column. The gains'
gradients follow from that of w.

Strides arrive in units of 8 elements: so the compiler knows that every row starts on 16 bytes, which a stride of 72 hides.
"""

# mypy: disable-error-code="no-untyped-def"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import PACKED, PRECISION, dot_rows, load_tile, load_vector, sequence, store_tile

#: Sizes that differ from batch to batch: no variant is compiled for those that happen to be 1 or multiples of 16.
RUNTIME = ["first", "tiles", "LQ", "LK", "q_rows", "k_rows"]


@triton.jit(do_not_specialize=["first", "rows"])
def attention_rms(
    X, R, first, rows, H, sxb, sxn, sxh, length, eps, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr
):
    """R[h, row] = 1 / sqrt(mean(x²) + eps), over `rows` × H vectors. Program: BM vectors, head fastest."""
    item = (first + tl.program_id(0).to(tl.int64)) * BM + tl.arange(0, BM)
    row = item // H
    h = item % H
    columns = tl.arange(0, DP)
    pointers = X + (((row // length) * sxb + (row % length) * sxn + h * sxh) * 8)[:, None] + columns[None, :]
    x = tl.load(pointers, mask=(row < rows)[:, None] & (columns < D)[None, :], other=0.0).to(tl.float32)
    tl.store(R + h * rows + row, tl.rsqrt(tl.sum(x * x, 1) / D + eps), mask=row < rows)


@triton.jit(do_not_specialize=["first", "rows"])
def attention_delta(O, DO, DELTA, first, rows, H, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr):
    """DELTA[h, row] = Σ_d O·dO, both contiguous (rows, H, D). Program: BM vectors."""
    item = (first + tl.program_id(0).to(tl.int64)) * BM + tl.arange(0, BM)
    columns = tl.arange(0, DP)
    mask = (item < rows * H)[:, None] & (columns < D)[None, :]
    offsets = item[:, None] * D + columns[None, :]
    o = tl.load(O + offsets, mask=mask, other=0.0).to(tl.float32)
    do = tl.load(DO + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(DELTA + (item % H) * rows + item // H, tl.sum(o * do, 1), mask=item < rows * H)


@triton.jit
def _fwd_step(
    q0, q1, acc0, acc1, m, l, k, v, rk, cols, skn, svn, n, scale2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    k0 = load_tile(k, cols, skn, n, 0, D0, D, MASK)
    v0 = load_tile(v, cols, svn, n, 0, D0, D, MASK)
    k1 = k0
    v1 = v0
    if D1 > 0:
        k1 = load_tile(k, cols, skn, n, D0, D1, D, MASK)
        v1 = load_tile(v, cols, svn, n, D0, D1, D, MASK)
    s = dot_rows(q0, q1, k0, k1, D1)
    if NORM:
        s *= tl.load(rk + cols, mask=cols < n, other=0.0)[None, :]
    if MASK:
        s = tl.where((cols < n)[None, :], s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1) * scale2)
    p = tl.exp2(s * scale2 - m_new[:, None])
    alpha = tl.exp2(m - m_new)
    l = l * alpha + tl.sum(p, 1)
    p = p.to(v0.dtype)
    acc0 = tl.dot(p, v0, acc0 * alpha[:, None], input_precision=PRECISION)
    if D1 > 0:
        acc1 = tl.dot(p, v1, acc1 * alpha[:, None], input_precision=PRECISION)
    return acc0, acc1, m_new, l


@triton.jit(do_not_specialize=RUNTIME)
def attention_fwd(
    Q, K, V, O, LSE, RQ, RK, WQ, WK, BQ, BK, first, tiles, H, LQ, LK, q_rows, k_rows,
    sqb, sqn, sqh, skb, skn, skh, svb, svn, svh, scale2, eps,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MODE_Q: tl.constexpr, MODE_K: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """O (q_rows, H, D) and LSE (H, q_rows). Program: one query tile of one head of one sequence, tile fastest."""
    sqb, sqn, sqh = sqb * 8, sqn * 8, sqh * 8
    skb, skn, skh = skb * 8, skn * 8, skh * 8
    svb, svn, svh = svb * 8, svn * 8, svh * 8
    pid = first + tl.program_id(0).to(tl.int64)
    m0 = (pid % tiles).to(tl.int32) * BM
    h = pid // tiles % H
    b = pid // tiles // H
    q_start, nq, q_owned = sequence(BQ, b, LQ, MODE_Q)
    k_start, nk, _ = sequence(BK, b, LK, MODE_K)
    if m0 >= q_owned:
        return
    nk = tl.where(m0 < nq, nk, 0)
    q = Q + (q_start * sqn if MODE_Q == PACKED else b * sqb) + h * sqh + m0.to(tl.int64) * sqn
    k = K + (k_start * skn if MODE_K == PACKED else b * skb) + h * skh
    v = V + (k_start * svn if MODE_K == PACKED else b * svb) + h * svh
    rk = RK + h * k_rows + k_start
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    q0 = load_tile(q, rows, sqn, nq - m0, 0, D0, D, True)
    q1 = q0
    if D1 > 0:
        q1 = load_tile(q, rows, sqn, nq - m0, D0, D1, D, True)
    row = q_start + m0 + rows
    if NORM:
        q0f = q0.to(tl.float32)
        q1f = q1.to(tl.float32)
        square = tl.sum(q0f * q0f, 1)
        if D1 > 0:
            square += tl.sum(q1f * q1f, 1)
        r = tl.rsqrt(square / D + eps)
        tl.store(RQ + h * q_rows + row, r, mask=m0 + rows < q_owned)
        q0 = (q0f * r[:, None] * (load_vector(WQ, 0, D0, D) * load_vector(WK, 0, D0, D))[None, :]).to(q0.dtype)
        if D1 > 0:
            q1 = (q1f * r[:, None] * (load_vector(WQ, D0, D1, D) * load_vector(WK, D0, D1, D))[None, :]).to(q1.dtype)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc0 = tl.zeros([BM, D0], tl.float32)
    acc1 = tl.zeros([BM, D1 if D1 > 0 else 16], tl.float32)
    whole = nk // BN * BN
    for _ in range(0, whole, BN):
        acc0, acc1, m, l = _fwd_step(
            q0, q1, acc0, acc1, m, l, k, v, rk, cols, skn, svn, BN, scale2, D, D0, D1, NORM, False
        )
        k += BN * skn
        v += BN * svn
        rk += BN
    if whole < nk:
        rest = nk - whole
        acc0, acc1, m, l = _fwd_step(
            q0, q1, acc0, acc1, m, l, k, v, rk, cols, skn, svn, rest, scale2, D, D0, D1, NORM, True
        )
    seen = (l > 0) & (m0 + rows < nq)
    inverse = tl.where(seen, 1.0 / tl.where(seen, l, 1.0), 0.0)
    tl.store(
        LSE + h * q_rows + row,
        tl.where(seen, m + tl.log2(tl.where(seen, l, 1.0)), float("inf")),
        mask=m0 + rows < q_owned,
    )
    o = O + ((q_start + m0) * H + h) * D
    store_tile(o, acc0 * inverse[:, None], rows, H * D, q_owned - m0, 0, D0, D)
    if D1 > 0:
        store_tile(o, acc1 * inverse[:, None], rows, H * D, q_owned - m0, D0, D1, D)


@triton.jit
def _dkv_step(
    k0, k1, v0, v1, dk0, dk1, dv0, dv1, q, do, lse, delta, rq, rows, sqn, son, n, scale2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    q0 = load_tile(q, rows, sqn, n, 0, D0, D, MASK)
    do0 = load_tile(do, rows, son, n, 0, D0, D, MASK)
    q1 = q0
    do1 = do0
    if D1 > 0:
        q1 = load_tile(q, rows, sqn, n, D0, D1, D, MASK)
        do1 = load_tile(do, rows, son, n, D0, D1, D, MASK)
    # Rows beyond n have an infinite logsumexp, hence zero probability.
    lse_row = tl.load(lse + rows, mask=rows < n, other=float("inf"))
    delta_row = tl.load(delta + rows, mask=rows < n, other=0.0)
    s = dot_rows(k0, k1, q0, q1, D1)
    r = lse_row
    if NORM:
        r = tl.load(rq + rows, mask=rows < n, other=0.0)
        s *= r[None, :]
    p = tl.exp2(s * scale2 - lse_row[None, :])
    pt = p.to(do0.dtype)
    dv0 = tl.dot(pt, do0, dv0, input_precision=PRECISION)
    if D1 > 0:
        dv1 = tl.dot(pt, do1, dv1, input_precision=PRECISION)
    ds = p * (dot_rows(v0, v1, do0, do1, D1) - delta_row[None, :])
    if NORM:
        ds *= r[None, :]
    dst = ds.to(q0.dtype)
    dk0 = tl.dot(dst, q0, dk0, input_precision=PRECISION)
    if D1 > 0:
        dk1 = tl.dot(dst, q1, dk1, input_precision=PRECISION)
    return dk0, dk1, dv0, dv1


@triton.jit
def norm_bwd(x, g, w, r, mean):
    """Gradient of x from g, that of its norm times w: r·(g·w − x·r·mean), with mean over D of x·r·g·w."""
    return (g * w[None, :] - x * (r * mean)[:, None]) * r[:, None]


@triton.jit(do_not_specialize=[*RUNTIME, "splits"])
def attention_bwd_dkv(
    Q, K, V, DO, LSE, DELTA, DK, DV, RQ, RK, WQ, WK, DW, BQ, BK, first, tiles, splits, H, LQ, LK, q_rows, k_rows,
    sqb, sqn, sqh, skb, skn, skh, svb, svn, svh, scale2, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MODE_Q: tl.constexpr, MODE_K: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """DK, DV (splits, k_rows, H, D), and with NORM (one split) DW (programs, D), the gradient of the gains' product.

    Program: one key tile of one head of one sequence, against one of `splits` parts of the queries.
    """
    sqb, sqn, sqh = sqb * 8, sqn * 8, sqh * 8
    skb, skn, skh = skb * 8, skn * 8, skh * 8
    svb, svn, svh = svb * 8, svn * 8, svh * 8
    pid = first + tl.program_id(0).to(tl.int64)
    n0 = (pid % tiles).to(tl.int32) * BN
    split = (pid // tiles % splits).to(tl.int32)
    h = pid // tiles // splits % H
    b = pid // tiles // splits // H
    q_start, nq, _ = sequence(BQ, b, LQ, MODE_Q)
    k_start, nk, k_owned = sequence(BK, b, LK, MODE_K)
    if n0 >= k_owned:
        if NORM:
            tl.store(DW + pid * D + tl.arange(0, D0), tl.zeros([D0], tl.float32), mask=tl.arange(0, D0) < D)
            if D1 > 0:
                tl.store(
                    DW + pid * D + D0 + tl.arange(0, D1), tl.zeros([D1], tl.float32), mask=D0 + tl.arange(0, D1) < D
                )
        return
    nq = tl.where(n0 < nk, nq, 0)
    part = tl.cdiv(tl.cdiv(nq, BM), splits) * BM
    low = split * part
    span = tl.minimum(nq - low, part)
    q = Q + (q_start * sqn if MODE_Q == PACKED else b * sqb) + h * sqh + low.to(tl.int64) * sqn
    k = K + (k_start * skn if MODE_K == PACKED else b * skb) + h * skh + n0.to(tl.int64) * skn
    v = V + (k_start * svn if MODE_K == PACKED else b * svb) + h * svh + n0.to(tl.int64) * svn
    do = DO + ((q_start + low) * H + h) * D
    lse = LSE + h * q_rows + q_start + low
    delta = DELTA + h * q_rows + q_start + low
    rq = RQ + h * q_rows + q_start + low
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    k0 = load_tile(k, cols, skn, nk - n0, 0, D0, D, True)
    v0 = load_tile(v, cols, svn, nk - n0, 0, D0, D, True)
    k1 = k0
    v1 = v0
    if D1 > 0:
        k1 = load_tile(k, cols, skn, nk - n0, D0, D1, D, True)
        v1 = load_tile(v, cols, svn, nk - n0, D0, D1, D, True)
    if NORM:
        r = tl.load(RK + h * k_rows + k_start + n0 + cols, mask=n0 + cols < nk, other=0.0)
        k0 = (k0.to(tl.float32) * r[:, None] * (load_vector(WQ, 0, D0, D) * load_vector(WK, 0, D0, D))[None, :]).to(
            k0.dtype
        )
        if D1 > 0:
            w1 = load_vector(WQ, D0, D1, D) * load_vector(WK, D0, D1, D)
            k1 = (k1.to(tl.float32) * r[:, None] * w1[None, :]).to(k1.dtype)
    dk0 = tl.zeros([BN, D0], tl.float32)
    dv0 = tl.zeros([BN, D0], tl.float32)
    dk1 = tl.zeros([BN, D1 if D1 > 0 else 16], tl.float32)
    dv1 = tl.zeros([BN, D1 if D1 > 0 else 16], tl.float32)
    whole = tl.maximum(span, 0) // BM * BM
    for _ in range(0, whole, BM):
        dk0, dk1, dv0, dv1 = _dkv_step(
            k0, k1, v0, v1, dk0, dk1, dv0, dv1, q, do, lse, delta, rq, rows, sqn, H * D, BM, scale2, D, D0, D1, NORM, False
        )  # fmt: skip
        q += BM * sqn
        do += BM * H * D
        lse += BM
        delta += BM
        rq += BM
    if whole < span:
        dk0, dk1, dv0, dv1 = _dkv_step(
            k0, k1, v0, v1, dk0, dk1, dv0, dv1, q, do, lse, delta, rq, rows, sqn, H * D, span - whole, scale2,
            D, D0, D1, NORM, True,
        )  # fmt: skip
    # Keys beyond nk were zeros with probabilities of their own, without meaning and perhaps infinite.
    exists = (n0 + cols < nk)[:, None]
    dk0 = tl.where(exists, dk0 * scale, 0.0)
    dk1 = tl.where(exists, dk1 * scale, 0.0)
    dv0 = tl.where(exists, dv0, 0.0)
    dv1 = tl.where(exists, dv1, 0.0)
    out = ((split.to(tl.int64) * k_rows + k_start + n0) * H + h) * D
    store_tile(DV + out, dv0, cols, H * D, k_owned - n0, 0, D0, D)
    if D1 > 0:
        store_tile(DV + out, dv1, cols, H * D, k_owned - n0, D0, D1, D)
    if NORM:
        r = tl.load(RK + h * k_rows + k_start + n0 + cols, mask=n0 + cols < nk, other=0.0)
        x0 = load_tile(k, cols, skn, nk - n0, 0, D0, D, True).to(tl.float32)
        w0 = load_vector(WQ, 0, D0, D) * load_vector(WK, 0, D0, D)
        product = x0 * dk0
        tl.store(DW + pid * D + tl.arange(0, D0), tl.sum(product * r[:, None], 0), mask=tl.arange(0, D0) < D)
        mean = tl.sum(product * w0[None, :], 1) * r / D
        if D1 > 0:
            x1 = load_tile(k, cols, skn, nk - n0, D0, D1, D, True).to(tl.float32)
            w1 = load_vector(WQ, D0, D1, D) * load_vector(WK, D0, D1, D)
            product = x1 * dk1
            tl.store(
                DW + pid * D + D0 + tl.arange(0, D1), tl.sum(product * r[:, None], 0), mask=D0 + tl.arange(0, D1) < D
            )
            mean += tl.sum(product * w1[None, :], 1) * r / D
            dk1 = norm_bwd(x1, dk1, w1, r, mean)
        dk0 = norm_bwd(x0, dk0, w0, r, mean)
    store_tile(DK + out, dk0, cols, H * D, k_owned - n0, 0, D0, D)
    if D1 > 0:
        store_tile(DK + out, dk1, cols, H * D, k_owned - n0, D0, D1, D)


@triton.jit
def _dq_step(
    q0, q1, do0, do1, dq0, dq1, lse, delta, k, v, rk, cols, skn, svn, n, scale2,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, NORM: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    k0 = load_tile(k, cols, skn, n, 0, D0, D, MASK)
    v0 = load_tile(v, cols, svn, n, 0, D0, D, MASK)
    k1 = k0
    v1 = v0
    if D1 > 0:
        k1 = load_tile(k, cols, skn, n, D0, D1, D, MASK)
        v1 = load_tile(v, cols, svn, n, D0, D1, D, MASK)
    s = dot_rows(q0, q1, k0, k1, D1)
    r = lse
    if NORM:
        r = tl.load(rk + cols, mask=cols < n, other=0.0)
        s *= r[None, :]
    p = tl.exp2(s * scale2 - lse[:, None])
    if MASK:
        p = tl.where((cols < n)[None, :], p, 0.0)
    ds = p * (dot_rows(do0, do1, v0, v1, D1) - delta[:, None])
    if NORM:
        ds *= r[None, :]
    ds = ds.to(k0.dtype)
    dq0 = tl.dot(ds, k0, dq0, input_precision=PRECISION)
    if D1 > 0:
        dq1 = tl.dot(ds, k1, dq1, input_precision=PRECISION)
    return dq0, dq1


@triton.jit(do_not_specialize=RUNTIME)
def attention_bwd_dq(
    Q, K, V, DO, LSE, DELTA, DQ, RQ, RK, WQ, WK, BQ, BK, first, tiles, H, LQ, LK, q_rows, k_rows,
    sqb, sqn, sqh, skb, skn, skh, svb, svn, svh, scale2, scale,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    MODE_Q: tl.constexpr, MODE_K: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """DQ (q_rows, H, D). Program: as in `attention_fwd`."""
    sqb, sqn, sqh = sqb * 8, sqn * 8, sqh * 8
    skb, skn, skh = skb * 8, skn * 8, skh * 8
    svb, svn, svh = svb * 8, svn * 8, svh * 8
    pid = first + tl.program_id(0).to(tl.int64)
    m0 = (pid % tiles).to(tl.int32) * BM
    h = pid // tiles % H
    b = pid // tiles // H
    q_start, nq, q_owned = sequence(BQ, b, LQ, MODE_Q)
    k_start, nk, _ = sequence(BK, b, LK, MODE_K)
    if m0 >= q_owned:
        return
    nk = tl.where(m0 < nq, nk, 0)
    q = Q + (q_start * sqn if MODE_Q == PACKED else b * sqb) + h * sqh + m0.to(tl.int64) * sqn
    k = K + (k_start * skn if MODE_K == PACKED else b * skb) + h * skh
    v = V + (k_start * svn if MODE_K == PACKED else b * svb) + h * svh
    do = DO + ((q_start + m0) * H + h) * D
    row = h * q_rows + q_start + m0
    rk = RK + h * k_rows + k_start
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    left = nq - m0
    q0 = load_tile(q, rows, sqn, left, 0, D0, D, True)
    do0 = load_tile(do, rows, H * D, left, 0, D0, D, True)
    q1 = q0
    do1 = do0
    if D1 > 0:
        q1 = load_tile(q, rows, sqn, left, D0, D1, D, True)
        do1 = load_tile(do, rows, H * D, left, D0, D1, D, True)
    if NORM:
        r = tl.load(RQ + row + rows, mask=rows < left, other=0.0)
        q0 = (q0.to(tl.float32) * r[:, None] * (load_vector(WQ, 0, D0, D) * load_vector(WK, 0, D0, D))[None, :]).to(
            q0.dtype
        )
        if D1 > 0:
            w1 = load_vector(WQ, D0, D1, D) * load_vector(WK, D0, D1, D)
            q1 = (q1.to(tl.float32) * r[:, None] * w1[None, :]).to(q1.dtype)
    lse = tl.load(LSE + row + rows, mask=rows < left, other=float("inf"))
    delta = tl.load(DELTA + row + rows, mask=rows < left, other=0.0)
    dq0 = tl.zeros([BM, D0], tl.float32)
    dq1 = tl.zeros([BM, D1 if D1 > 0 else 16], tl.float32)
    whole = nk // BN * BN
    for _ in range(0, whole, BN):
        dq0, dq1 = _dq_step(
            q0, q1, do0, do1, dq0, dq1, lse, delta, k, v, rk, cols, skn, svn, BN, scale2, D, D0, D1, NORM, False
        )  # fmt: skip
        k += BN * skn
        v += BN * svn
        rk += BN
    if whole < nk:
        dq0, dq1 = _dq_step(
            q0, q1, do0, do1, dq0, dq1, lse, delta, k, v, rk, cols, skn, svn, nk - whole, scale2, D, D0, D1, NORM, True
        )  # fmt: skip
    dq0 *= scale
    dq1 *= scale
    if NORM:
        r = tl.load(RQ + row + rows, mask=rows < left, other=0.0)
        x0 = load_tile(q, rows, sqn, left, 0, D0, D, True).to(tl.float32)
        w0 = load_vector(WQ, 0, D0, D) * load_vector(WK, 0, D0, D)
        mean = tl.sum(x0 * dq0 * w0[None, :], 1) * r / D
        if D1 > 0:
            x1 = load_tile(q, rows, sqn, left, D0, D1, D, True).to(tl.float32)
            w1 = load_vector(WQ, D0, D1, D) * load_vector(WK, D0, D1, D)
            mean += tl.sum(x1 * dq1 * w1[None, :], 1) * r / D
            dq1 = norm_bwd(x1, dq1, w1, r, mean)
        dq0 = norm_bwd(x0, dq0, w0, r, mean)
    out = DQ + ((q_start + m0) * H + h) * D
    store_tile(out, dq0, rows, H * D, q_owned - m0, 0, D0, D)
    if D1 > 0:
        store_tile(out, dq1, rows, H * D, q_owned - m0, D0, D1, D)

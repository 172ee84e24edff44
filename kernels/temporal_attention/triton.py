"""Triton kernels of `temporal_attention`. A tile holds several spatial positions with all their times, row r being position
r // TP and time r % TP, so a sequence is complete in it: the backward recomputes norm, rotation and softmax from the inputs.

Even and odd elements of queries and keys are loaded apart: rotation is then arithmetic between two tiles, and since logits do
not depend on the order of the head's elements, no row is reassembled. Each half is covered by tiles E0 and E1 (36 = 32 + 4).
"""

# mypy: disable-error-code="no-untyped-def"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import PRECISION


@triton.jit
def _half(base, offsets, seen, PARITY: tl.constexpr, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """Elements 2i + PARITY of every row, i from OFFSET, in float32; zeros beyond D / 2 and for rows that are not seen."""
    i = OFFSET + tl.arange(0, WIDTH)
    mask = seen[:, None] & (i < D // 2)[None, :]
    return tl.load(base + offsets[:, None] + (2 * i + PARITY)[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store_half(
    base, x, offsets, seen, PARITY: tl.constexpr, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr
):
    i = OFFSET + tl.arange(0, WIDTH)
    mask = seen[:, None] & (i < D // 2)[None, :]
    tl.store(base + offsets[:, None] + (2 * i + PARITY)[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _gain(W, PARITY: tl.constexpr, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    i = OFFSET + tl.arange(0, WIDTH)
    return tl.load(W + 2 * i + PARITY, mask=i < D // 2, other=0.0).to(tl.float32)


@triton.jit
def _angles(C, t, seen, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """(rows, WIDTH) of a (T, D / 2) table."""
    i = OFFSET + tl.arange(0, WIDTH)
    mask = seen[:, None] & (i < D // 2)[None, :]
    return tl.load(C + t[:, None] * (D // 2) + i[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _inverse_rms(base, offsets, seen, eps, D: tl.constexpr, E0: tl.constexpr, E1: tl.constexpr):
    even = _half(base, offsets, seen, 0, 0, E0, D)
    odd = _half(base, offsets, seen, 1, 0, E0, D)
    square = tl.sum(even * even + odd * odd, 1)
    if E1 > 0:
        even = _half(base, offsets, seen, 0, E0, E1, D)
        odd = _half(base, offsets, seen, 1, E0, E1, D)
        square += tl.sum(even * even + odd * odd, 1)
    return tl.rsqrt(square / D + eps)


@triton.jit
def _prepared(
    base, offsets, seen, W, C, S, t, r,
    OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Even and odd elements, normed, rotated, rounded to the inputs' dtype."""
    even = _half(base, offsets, seen, 0, OFFSET, WIDTH, D)
    odd = _half(base, offsets, seen, 1, OFFSET, WIDTH, D)
    if NORM:
        even = even * r[:, None] * _gain(W, 0, OFFSET, WIDTH, D)[None, :]
        odd = odd * r[:, None] * _gain(W, 1, OFFSET, WIDTH, D)[None, :]
    if ROPE:
        c = _angles(C, t, seen, OFFSET, WIDTH, D)
        s = _angles(S, t, seen, OFFSET, WIDTH, D)
        turned = even * c - odd * s
        odd = even * s + odd * c
        even = turned
    return even.to(DTYPE), odd.to(DTYPE)


@triton.jit
def _whole(base, offsets, seen, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    columns = OFFSET + tl.arange(0, WIDTH)
    return tl.load(base + offsets[:, None] + columns[None, :], mask=seen[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def _store_whole(base, x, offsets, seen, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    columns = OFFSET + tl.arange(0, WIDTH)
    mask = seen[:, None] & (columns < D)[None, :]
    tl.store(base + offsets[:, None] + columns[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _rows(pid, groups, T, S, H, ROWS: tl.constexpr, TP: tl.constexpr):
    """Of a program: sample, head (fastest, so neighbours share cache lines), row offsets in tokens, times, which rows exist."""
    h = pid % H
    group = (pid // H % groups).to(tl.int32)
    b = pid // H // groups
    r = tl.arange(0, ROWS)
    t = r % TP
    s = group * (ROWS // TP) + r // TP
    return b, h, t.to(tl.int64) * S + s, t, (t < T) & (s < S)


@triton.jit
def _logits(
    qe0, qo0, qe1, qo1, ke0, ko0, ke1, ko1, seen, scale2, E1: tl.constexpr, ROWS: tl.constexpr, TP: tl.constexpr
):  # fmt: skip
    s = tl.dot(qe0, tl.trans(ke0), input_precision=PRECISION)
    s = tl.dot(qo0, tl.trans(ko0), s, input_precision=PRECISION)
    if E1 > 0:
        s = tl.dot(qe1, tl.trans(ke1), s, input_precision=PRECISION)
        s = tl.dot(qo1, tl.trans(ko1), s, input_precision=PRECISION)
    position = tl.arange(0, ROWS) // TP
    # Rows that do not exist see themselves alone, so that no row is empty; they are never stored.
    own = tl.arange(0, ROWS)[:, None] == tl.arange(0, ROWS)[None, :]
    visible = ((position[:, None] == position[None, :]) & seen[None, :]) | own
    return tl.where(visible, s * scale2, float("-inf"))


@triton.jit(do_not_specialize=["first", "groups", "T", "S"])
def temporal_fwd(
    QKV, O, WQ, WK, COS, SIN, first, groups, T, S, H, scale2, eps,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, E0: tl.constexpr, E1: tl.constexpr,
    ROWS: tl.constexpr, TP: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """O (B, T, S, H, D) from QKV (B, T, S, 3, H, D). Program: ROWS // TP positions of one head."""
    pid = first + tl.program_id(0).to(tl.int64)
    b, h, token, t, seen = _rows(pid, groups, T, S, H, ROWS, TP)
    q = QKV + b * T * S * 3 * H * D + h * D
    k = q + H * D
    v = k + H * D
    offsets = token * (3 * H * D)
    dtype: tl.constexpr = QKV.dtype.element_ty
    rq = tl.zeros([ROWS], tl.float32)
    rk = rq
    if NORM:
        rq = _inverse_rms(q, offsets, seen, eps, D, E0, E1)
        rk = _inverse_rms(k, offsets, seen, eps, D, E0, E1)
    qe0, qo0 = _prepared(q, offsets, seen, WQ, COS, SIN, t, rq, 0, E0, D, NORM, ROPE, dtype)
    ke0, ko0 = _prepared(k, offsets, seen, WK, COS, SIN, t, rk, 0, E0, D, NORM, ROPE, dtype)
    qe1, qo1, ke1, ko1 = qe0, qo0, ke0, ko0
    if E1 > 0:
        qe1, qo1 = _prepared(q, offsets, seen, WQ, COS, SIN, t, rq, E0, E1, D, NORM, ROPE, dtype)
        ke1, ko1 = _prepared(k, offsets, seen, WK, COS, SIN, t, rk, E0, E1, D, NORM, ROPE, dtype)
    s = _logits(qe0, qo0, qe1, qo1, ke0, ko0, ke1, ko1, seen, scale2, E1, ROWS, TP)
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    p = (p / tl.sum(p, 1)[:, None]).to(dtype)
    o = O + b * T * S * H * D + h * D
    _store_whole(
        o, tl.dot(p, _whole(v, offsets, seen, 0, D0, D), input_precision=PRECISION), token * (H * D), seen, 0, D0, D
    )
    if D1 > 0:
        _store_whole(
            o,
            tl.dot(p, _whole(v, offsets, seen, D0, D1, D), input_precision=PRECISION),
            token * (H * D),
            seen,
            D0,
            D1,
            D,
        )


@triton.jit
def _turn_back(
    C, S, t, seen, even, odd, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, ROPE: tl.constexpr
):
    """The rotation's transpose: from the gradient of turned halves to that of the halves before."""
    if ROPE:
        c = _angles(C, t, seen, OFFSET, WIDTH, D)
        s = _angles(S, t, seen, OFFSET, WIDTH, D)
        turned = even * c + odd * s
        odd = odd * c - even * s
        even = turned
    return even, odd


@triton.jit
def _unprepare(
    base, out, offsets, seen, W, DW, C, S, t, r, e0, o0, e1, o1,
    D: tl.constexpr, E0: tl.constexpr, E1: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Store the gradient of one of q and k from that of its prepared halves, and of its gains (this program's sum) in DW (D)."""
    e0, o0 = _turn_back(C, S, t, seen, e0, o0, 0, E0, D, ROPE)
    if E1 > 0:
        e1, o1 = _turn_back(C, S, t, seen, e1, o1, E0, E1, D, ROPE)
    if NORM:
        xe0 = _half(base, offsets, seen, 0, 0, E0, D) * r[:, None]
        xo0 = _half(base, offsets, seen, 1, 0, E0, D) * r[:, None]
        i = tl.arange(0, E0)
        tl.store(DW + 2 * i, tl.sum(xe0 * e0, 0), mask=i < D // 2)
        tl.store(DW + 2 * i + 1, tl.sum(xo0 * o0, 0), mask=i < D // 2)
        e0 *= _gain(W, 0, 0, E0, D)[None, :]
        o0 *= _gain(W, 1, 0, E0, D)[None, :]
        mean = tl.sum(xe0 * e0 + xo0 * o0, 1)
        if E1 > 0:
            xe1 = _half(base, offsets, seen, 0, E0, E1, D) * r[:, None]
            xo1 = _half(base, offsets, seen, 1, E0, E1, D) * r[:, None]
            j = E0 + tl.arange(0, E1)
            tl.store(DW + 2 * j, tl.sum(xe1 * e1, 0), mask=j < D // 2)
            tl.store(DW + 2 * j + 1, tl.sum(xo1 * o1, 0), mask=j < D // 2)
            e1 *= _gain(W, 0, E0, E1, D)[None, :]
            o1 *= _gain(W, 1, E0, E1, D)[None, :]
            mean += tl.sum(xe1 * e1 + xo1 * o1, 1)
            e1 = (e1 - xe1 * (mean / D)[:, None]) * r[:, None]
            o1 = (o1 - xo1 * (mean / D)[:, None]) * r[:, None]
        e0 = (e0 - xe0 * (mean / D)[:, None]) * r[:, None]
        o0 = (o0 - xo0 * (mean / D)[:, None]) * r[:, None]
    _store_half(out, e0, offsets, seen, 0, 0, E0, D)
    _store_half(out, o0, offsets, seen, 1, 0, E0, D)
    if E1 > 0:
        _store_half(out, e1, offsets, seen, 0, E0, E1, D)
        _store_half(out, o1, offsets, seen, 1, E0, E1, D)


@triton.jit(do_not_specialize=["first", "groups", "T", "S"])
def temporal_bwd(
    QKV, DO, DQKV, WQ, WK, DWQ, DWK, COS, SIN, first, groups, T, S, H, scale2, scale, eps,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, E0: tl.constexpr, E1: tl.constexpr,
    ROWS: tl.constexpr, TP: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """DQKV like QKV, and with NORM DWQ, DWK (programs, D): each program's part of the gains' gradients."""
    pid = first + tl.program_id(0).to(tl.int64)
    b, h, token, t, seen = _rows(pid, groups, T, S, H, ROWS, TP)
    start = b * T * S * 3 * H * D + h * D
    q = QKV + start
    k = q + H * D
    v = k + H * D
    do = DO + b * T * S * H * D + h * D
    offsets = token * (3 * H * D)
    dtype: tl.constexpr = QKV.dtype.element_ty
    rq = tl.zeros([ROWS], tl.float32)
    rk = rq
    if NORM:
        rq = _inverse_rms(q, offsets, seen, eps, D, E0, E1)
        rk = _inverse_rms(k, offsets, seen, eps, D, E0, E1)
    qe0, qo0 = _prepared(q, offsets, seen, WQ, COS, SIN, t, rq, 0, E0, D, NORM, ROPE, dtype)
    ke0, ko0 = _prepared(k, offsets, seen, WK, COS, SIN, t, rk, 0, E0, D, NORM, ROPE, dtype)
    qe1, qo1, ke1, ko1 = qe0, qo0, ke0, ko0
    if E1 > 0:
        qe1, qo1 = _prepared(q, offsets, seen, WQ, COS, SIN, t, rq, E0, E1, D, NORM, ROPE, dtype)
        ke1, ko1 = _prepared(k, offsets, seen, WK, COS, SIN, t, rk, E0, E1, D, NORM, ROPE, dtype)
    s = _logits(qe0, qo0, qe1, qo1, ke0, ko0, ke1, ko1, seen, scale2, E1, ROWS, TP)
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    p = p / tl.sum(p, 1)[:, None]
    pt = tl.trans(p.to(dtype))
    g = _whole(do, token * (H * D), seen, 0, D0, D)
    dp = tl.dot(g, tl.trans(_whole(v, offsets, seen, 0, D0, D)), input_precision=PRECISION)
    dv = DQKV + start + 2 * H * D
    _store_whole(dv, tl.dot(pt, g, input_precision=PRECISION), offsets, seen, 0, D0, D)
    if D1 > 0:
        g = _whole(do, token * (H * D), seen, D0, D1, D)
        dp = tl.dot(g, tl.trans(_whole(v, offsets, seen, D0, D1, D)), dp, input_precision=PRECISION)
        _store_whole(dv, tl.dot(pt, g, input_precision=PRECISION), offsets, seen, D0, D1, D)
    ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(dtype)
    e0 = tl.dot(ds, ke0, input_precision=PRECISION)
    o0 = tl.dot(ds, ko0, input_precision=PRECISION)
    e1 = e0
    o1 = o0
    if E1 > 0:
        e1 = tl.dot(ds, ke1, input_precision=PRECISION)
        o1 = tl.dot(ds, ko1, input_precision=PRECISION)
    _unprepare(
        q, DQKV + start, offsets, seen, WQ, DWQ + pid * D, COS, SIN, t, rq, e0, o0, e1, o1, D, E0, E1, NORM, ROPE
    )
    ds = tl.trans(ds)
    e0 = tl.dot(ds, qe0, input_precision=PRECISION)
    o0 = tl.dot(ds, qo0, input_precision=PRECISION)
    e1 = e0
    o1 = o0
    if E1 > 0:
        e1 = tl.dot(ds, qe1, input_precision=PRECISION)
        o1 = tl.dot(ds, qo1, input_precision=PRECISION)
    _unprepare(
        k,
        DQKV + start + H * D,
        offsets,
        seen,
        WK,
        DWK + pid * D,
        COS,
        SIN,
        t,
        rk,
        e0,
        o0,
        e1,
        o1,
        D,
        E0,
        E1,
        NORM,
        ROPE,
    )


@triton.jit(do_not_specialize=["first", "rows", "T", "S"])
def temporal_prepare(
    QKV, QK, WQ, WK, COS, SIN, first, rows, T, S, H, eps,
    D: tl.constexpr, E0: tl.constexpr, E1: tl.constexpr, BM: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """For streaming: normed and rotated queries and keys, QK (B, T, S, 2, H, D), `rows` = B·T·S. Program: BM rows of one head."""
    pid = first + tl.program_id(0).to(tl.int64)
    h = pid % H
    row = pid // H * BM + tl.arange(0, BM)
    seen = row < rows
    t = (row // S % T).to(tl.int32)
    dtype: tl.constexpr = QKV.dtype.element_ty
    for side in tl.static_range(2):
        x = QKV + side * H * D + h * D
        out = QK + side * H * D + h * D
        W = WQ if side == 0 else WK
        r = tl.zeros([BM], tl.float32)
        if NORM:
            r = _inverse_rms(x, row * (3 * H * D), seen, eps, D, E0, E1)
        even, odd = _prepared(x, row * (3 * H * D), seen, W, COS, SIN, t, r, 0, E0, D, NORM, ROPE, dtype)
        _store_half(out, even, row * (2 * H * D), seen, 0, 0, E0, D)
        _store_half(out, odd, row * (2 * H * D), seen, 1, 0, E0, D)
        if E1 > 0:
            even, odd = _prepared(x, row * (3 * H * D), seen, W, COS, SIN, t, r, E0, E1, D, NORM, ROPE, dtype)
            _store_half(out, even, row * (2 * H * D), seen, 0, E0, E1, D)
            _store_half(out, odd, row * (2 * H * D), seen, 1, E0, E1, D)


@triton.jit(do_not_specialize=["first", "rows", "T", "S"])
def temporal_unprepare(
    QKV, DQ, DK, DQKV, WQ, WK, DWQ, DWK, COS, SIN, first, rows, T, S, H, eps,
    D: tl.constexpr, E0: tl.constexpr, E1: tl.constexpr, BM: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Backward of `temporal_prepare`: DQKV's queries and keys from DQ, DK (rows, H, D); DWQ, DWK (programs, D)."""
    pid = first + tl.program_id(0).to(tl.int64)
    h = pid % H
    row = pid // H * BM + tl.arange(0, BM)
    seen = row < rows
    t = (row // S % T).to(tl.int32)
    for side in tl.static_range(2):
        x = QKV + side * H * D + h * D
        g = (DQ if side == 0 else DK) + h * D
        W = WQ if side == 0 else WK
        DW = (DWQ if side == 0 else DWK) + pid * D
        r = tl.zeros([BM], tl.float32)
        if NORM:
            r = _inverse_rms(x, row * (3 * H * D), seen, eps, D, E0, E1)
        e0 = _half(g, row * (H * D), seen, 0, 0, E0, D)
        o0 = _half(g, row * (H * D), seen, 1, 0, E0, D)
        e1 = e0
        o1 = o0
        if E1 > 0:
            e1 = _half(g, row * (H * D), seen, 0, E0, E1, D)
            o1 = _half(g, row * (H * D), seen, 1, E0, E1, D)
        out = DQKV + side * H * D + h * D
        _unprepare(x, out, row * (3 * H * D), seen, W, DW, COS, SIN, t, r, e0, o0, e1, o1, D, E0, E1, NORM, ROPE)

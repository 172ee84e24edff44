"""Triton kernels of `temporal_attention`. A tile holds several spatial positions with all their times, row r being position
r // TP and time r % TP, so a sequence is complete in it: the backward recomputes norm, rotation and softmax from the inputs.

Rows are read whole, 16 bytes a thread; a rotation splits and joins the pairs inside each thread's registers. D0 and D1 are the
two tiles that cover a head (72 = 64 + 8), halves of them those of a table of angles.
"""

# mypy: disable-error-code="no-untyped-def"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import PRECISION, dot_rows, load_vector


@triton.jit
def _load(base, offsets, seen, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """Columns OFFSET… of every row; zeros beyond D and for rows that are not seen."""
    columns = OFFSET + tl.arange(0, WIDTH)
    return tl.load(base + offsets[:, None] + columns[None, :], mask=seen[:, None] & (columns < D)[None, :], other=0.0)


@triton.jit
def _store(base, x, offsets, seen, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    columns = OFFSET + tl.arange(0, WIDTH)
    mask = seen[:, None] & (columns < D)[None, :]
    tl.store(base + offsets[:, None] + columns[None, :], x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _turn(x, C, S, t, seen, SIGN: tl.constexpr, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    """Turn the pairs of columns OFFSET… of `x` by their angles, for SIGN −1 back; C, S are (T, D / 2)."""
    c = _load(C, t * (D // 2), seen, OFFSET // 2, WIDTH // 2, D // 2).to(tl.float32)
    s = _load(S, t * (D // 2), seen, OFFSET // 2, WIDTH // 2, D // 2).to(tl.float32) * SIGN
    even, odd = tl.split(tl.reshape(x, [x.shape[0], WIDTH // 2, 2]))
    return tl.interleave(even * c - odd * s, even * s + odd * c)


@triton.jit
def _inverse_rms(base, offsets, seen, eps, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    x = _load(base, offsets, seen, 0, D0, D).to(tl.float32)
    square = tl.sum(x * x, 1)
    if D1 > 0:
        x = _load(base, offsets, seen, D0, D1, D).to(tl.float32)
        square += tl.sum(x * x, 1)
    return tl.rsqrt(square / D + eps)


@triton.jit
def _prepared(
    base, offsets, seen, W, C, S, t, r,
    OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Columns OFFSET… normed, turned, rounded to the inputs' dtype."""
    x = _load(base, offsets, seen, OFFSET, WIDTH, D).to(tl.float32)
    if NORM:
        x = x * r[:, None] * load_vector(W, OFFSET, WIDTH, D)[None, :]
    if ROPE:
        x = _turn(x, C, S, t, seen, 1, OFFSET, WIDTH, D)
    # Changes no value. Without it the compiler moves this arithmetic behind the product's operand layout, on sm_80 a copy of the
    # keys in every warp, and spills: it moves what comes from loads alone, and `seen` does not.
    return tl.where(seen[:, None], x, 0.0).to(DTYPE)


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
def _probabilities(q0, q1, k0, k1, seen, scale2, D1: tl.constexpr, ROWS: tl.constexpr, TP: tl.constexpr):
    """Softmax of the logits over each row's own position."""
    s = dot_rows(q0, q1, k0, k1, D1)
    position = tl.arange(0, ROWS) // TP
    # Rows that do not exist see themselves alone, so that no row is empty; they are never stored.
    own = tl.arange(0, ROWS)[:, None] == tl.arange(0, ROWS)[None, :]
    visible = ((position[:, None] == position[None, :]) & seen[None, :]) | own
    s = tl.where(visible, s * scale2, float("-inf"))
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


@triton.jit(do_not_specialize=["first", "groups", "T", "S"])
def temporal_fwd(
    QKV, O, WQ, WK, COS, SIN, first, groups, T, S, H, scale2, eps,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr, TP: tl.constexpr,
    NORM: tl.constexpr, ROPE: tl.constexpr,
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
        rq = _inverse_rms(q, offsets, seen, eps, D, D0, D1)
        rk = _inverse_rms(k, offsets, seen, eps, D, D0, D1)
    q0 = _prepared(q, offsets, seen, WQ, COS, SIN, t, rq, 0, D0, D, NORM, ROPE, dtype)
    k0 = _prepared(k, offsets, seen, WK, COS, SIN, t, rk, 0, D0, D, NORM, ROPE, dtype)
    q1 = q0
    k1 = k0
    if D1 > 0:
        q1 = _prepared(q, offsets, seen, WQ, COS, SIN, t, rq, D0, D1, D, NORM, ROPE, dtype)
        k1 = _prepared(k, offsets, seen, WK, COS, SIN, t, rk, D0, D1, D, NORM, ROPE, dtype)
    p = _probabilities(q0, q1, k0, k1, seen, scale2, D1, ROWS, TP).to(dtype)
    o = O + b * T * S * H * D + h * D
    rows = token * (H * D)
    o0 = tl.dot(p, _load(v, offsets, seen, 0, D0, D), input_precision=PRECISION)
    _store(o, o0, rows, seen, 0, D0, D)
    if D1 > 0:
        o1 = tl.dot(p, _load(v, offsets, seen, D0, D1, D), input_precision=PRECISION)
        _store(o, o1, rows, seen, D0, D1, D)


@triton.jit
def _store_gain(DW, x, OFFSET: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr):
    columns = OFFSET + tl.arange(0, WIDTH)
    tl.store(DW + columns, tl.sum(x, 0), mask=columns < D)


@triton.jit
def _unprepare(
    base, out, offsets, seen, W, DW, C, S, t, r, g0, g1,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Store the gradient of one of q and k from that of its prepared rows, and of its gains (this program's sum) in DW (D)."""
    if ROPE:
        g0 = _turn(g0, C, S, t, seen, -1, 0, D0, D)
        if D1 > 0:
            g1 = _turn(g1, C, S, t, seen, -1, D0, D1, D)
    if NORM:
        x0 = _load(base, offsets, seen, 0, D0, D).to(tl.float32) * r[:, None]
        _store_gain(DW, x0 * g0, 0, D0, D)
        g0 *= load_vector(W, 0, D0, D)[None, :]
        mean = tl.sum(x0 * g0, 1)
        if D1 > 0:
            x1 = _load(base, offsets, seen, D0, D1, D).to(tl.float32) * r[:, None]
            _store_gain(DW, x1 * g1, D0, D1, D)
            g1 *= load_vector(W, D0, D1, D)[None, :]
            mean += tl.sum(x1 * g1, 1)
            g1 = (g1 - x1 * (mean / D)[:, None]) * r[:, None]
        g0 = (g0 - x0 * (mean / D)[:, None]) * r[:, None]
    _store(out, g0, offsets, seen, 0, D0, D)
    if D1 > 0:
        _store(out, g1, offsets, seen, D0, D1, D)


@triton.jit(do_not_specialize=["first", "groups", "T", "S"])
def temporal_bwd(
    QKV, DO, DQKV, WQ, WK, DWQ, DWK, COS, SIN, first, groups, T, S, H, scale2, scale, eps,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ROWS: tl.constexpr, TP: tl.constexpr,
    NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """DQKV like QKV, and with NORM DWQ, DWK (programs, D): each program's part of the gains' gradients."""
    pid = first + tl.program_id(0).to(tl.int64)
    b, h, token, t, seen = _rows(pid, groups, T, S, H, ROWS, TP)
    start = b * T * S * 3 * H * D + h * D
    q = QKV + start
    k = q + H * D
    v = k + H * D
    dq = DQKV + start
    dk = dq + H * D
    dv = dk + H * D
    do = DO + b * T * S * H * D + h * D
    offsets = token * (3 * H * D)
    rows = token * (H * D)
    dtype: tl.constexpr = QKV.dtype.element_ty
    rq = tl.zeros([ROWS], tl.float32)
    rk = rq
    if NORM:
        rq = _inverse_rms(q, offsets, seen, eps, D, D0, D1)
        rk = _inverse_rms(k, offsets, seen, eps, D, D0, D1)
    q0 = _prepared(q, offsets, seen, WQ, COS, SIN, t, rq, 0, D0, D, NORM, ROPE, dtype)
    k0 = _prepared(k, offsets, seen, WK, COS, SIN, t, rk, 0, D0, D, NORM, ROPE, dtype)
    q1 = q0
    k1 = k0
    if D1 > 0:
        q1 = _prepared(q, offsets, seen, WQ, COS, SIN, t, rq, D0, D1, D, NORM, ROPE, dtype)
        k1 = _prepared(k, offsets, seen, WK, COS, SIN, t, rk, D0, D1, D, NORM, ROPE, dtype)
    p = _probabilities(q0, q1, k0, k1, seen, scale2, D1, ROWS, TP)
    pt = tl.trans(p.to(dtype))
    do0 = _load(do, rows, seen, 0, D0, D)
    do1 = do0
    v0 = _load(v, offsets, seen, 0, D0, D)
    v1 = v0
    _store(dv, tl.dot(pt, do0, input_precision=PRECISION), offsets, seen, 0, D0, D)
    if D1 > 0:
        do1 = _load(do, rows, seen, D0, D1, D)
        v1 = _load(v, offsets, seen, D0, D1, D)
        _store(dv, tl.dot(pt, do1, input_precision=PRECISION), offsets, seen, D0, D1, D)
    dp = dot_rows(do0, do1, v0, v1, D1)
    ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(dtype)
    dst = tl.trans(ds)
    gq0 = tl.dot(ds, k0, input_precision=PRECISION)
    gk0 = tl.dot(dst, q0, input_precision=PRECISION)
    gq1 = gq0
    gk1 = gk0
    if D1 > 0:
        gq1 = tl.dot(ds, k1, input_precision=PRECISION)
        gk1 = tl.dot(dst, q1, input_precision=PRECISION)
    _unprepare(q, dq, offsets, seen, WQ, DWQ + pid * D, COS, SIN, t, rq, gq0, gq1, D, D0, D1, NORM, ROPE)
    _unprepare(k, dk, offsets, seen, WK, DWK + pid * D, COS, SIN, t, rk, gk0, gk1, D, D0, D1, NORM, ROPE)


@triton.jit(do_not_specialize=["first", "rows", "T", "S"])
def temporal_prepare(
    QKV, QK, WQ, WK, COS, SIN, first, rows, T, S, H, eps,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
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
            r = _inverse_rms(x, row * (3 * H * D), seen, eps, D, D0, D1)
        y = _prepared(x, row * (3 * H * D), seen, W, COS, SIN, t, r, 0, D0, D, NORM, ROPE, dtype)
        _store(out, y, row * (2 * H * D), seen, 0, D0, D)
        if D1 > 0:
            y = _prepared(x, row * (3 * H * D), seen, W, COS, SIN, t, r, D0, D1, D, NORM, ROPE, dtype)
            _store(out, y, row * (2 * H * D), seen, D0, D1, D)


@triton.jit(do_not_specialize=["first", "rows", "T", "S"])
def temporal_unprepare(
    QKV, DQ, DK, DQKV, WQ, WK, DWQ, DWK, COS, SIN, first, rows, T, S, H, eps,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, BM: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
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
            r = _inverse_rms(x, row * (3 * H * D), seen, eps, D, D0, D1)
        g0 = _load(g, row * (H * D), seen, 0, D0, D).to(tl.float32)
        g1 = g0
        if D1 > 0:
            g1 = _load(g, row * (H * D), seen, D0, D1, D).to(tl.float32)
        out = DQKV + side * H * D + h * D
        _unprepare(x, out, row * (3 * H * D), seen, W, DW, COS, SIN, t, r, g0, g1, D, D0, D1, NORM, ROPE)

"""Triton kernels of `temporal_attention`. A tile holds several spatial positions with all their times, row r being position
r // TP and time r % TP, so a sequence is complete in it: the backward recomputes norm, rotation and softmax from the inputs.

Rows are read whole, 16 bytes a thread; a rotation splits and joins the pairs in each thread's registers. A table of angles has
rows of D / 2, cut into halves of the head's blocks. Even and odd columns kept apart, as halves, cost more: heads of 72 become
four blocks, of 96 columns instead of 80. Forward's instructions on sm_90, for 15 and for 120 times: 2,096 and 2,480 as it is;
2,632 and 3,016 with the halves loaded apart; 2,584 and 3,016 split after the load; barriers 17, 30 and 29. With TP known at run
time alone, one variant for three: 2,272, and 191 registers instead of 163, two blocks a multiprocessor instead of three.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import chosen, dot, dot_rows, load, load_vector, norm_bwd, row_sums, store, store_vector, wide

# ruff: noqa: RUF005  Triton knows sums of tuples, not unpacking


@triton.jit
def _turn(rows, C, S, t, seen, SIGN: tl.constexpr, D: tl.constexpr, BLOCKS: tl.constexpr):
    """Turn the pairs of columns by their angles, for SIGN −1 back; C, S are (T, D / 2)."""
    out = ()
    for i in tl.static_range(len(BLOCKS)):
        columns = BLOCKS[i][1] // 2 + tl.arange(0, BLOCKS[i][0] // 2)
        at = (t * (D // 2))[:, None] + columns[None, :]
        mask = seen[:, None] & (columns < D // 2)[None, :]
        c = tl.load(C + at, mask=mask, other=0.0).to(tl.float32)
        s = tl.load(S + at, mask=mask, other=0.0).to(tl.float32) * SIGN
        even, odd = tl.split(tl.reshape(rows[i], [rows[i].shape[0], BLOCKS[i][0] // 2, 2]))
        out = out + (tl.interleave(even * c - odd * s, even * s + odd * c),)
    return out


@triton.jit
def _inverse_rms(base, offsets, seen, eps, D: tl.constexpr, BLOCKS: tl.constexpr):
    rows = load(base, offsets, seen, D, BLOCKS)
    return tl.rsqrt(row_sums(rows, rows) / D + eps)


@triton.jit
def _prepared(
    base, offsets, seen, W, C, S, t, r,
    D: tl.constexpr, BLOCKS: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Rows normed, turned, rounded to the inputs' dtype."""
    raw = load(base, offsets, seen, D, BLOCKS)
    if NORM:
        w = load_vector(W, D, BLOCKS)
    rows = ()
    for i in tl.static_range(len(BLOCKS)):
        x = raw[i].to(tl.float32)
        if NORM:
            x = x * r[:, None] * w[i][None, :]
        rows = rows + (x,)
    if ROPE:
        rows = _turn(rows, C, S, t, seen, 1, D, BLOCKS)
    # Changes no value. Without it the compiler moves this arithmetic behind the product's operand layout, on sm_80 a copy of the
    # keys in every warp, and spills: it moves what comes from loads alone, and `seen` does not.
    rows = chosen(seen[:, None], rows)
    return [x.to(DTYPE) for x in rows]


@triton.jit
def _tile(
    first, QKV, WQ, WK, COS, SIN, groups, T, S, H, eps,
    D: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, TP: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Of a program: its number, where its sample starts in O and its head in a token (head fastest, so neighbours share cache
    lines), the rows' tokens and times, which rows exist, their inverse RMS, and queries and keys, prepared."""
    pid = first + tl.program_id(0).to(tl.int64)
    h = pid % H
    group = (pid // H % groups).to(tl.int32)
    b = pid // H // groups
    r = tl.arange(0, ROWS)
    t = r % TP
    s = group * (ROWS // TP) + r // TP
    token = t.to(tl.int64) * S + s
    seen = (t < T) & (s < S)
    sample = b * T * S * H * D
    q = QKV + 3 * sample + h * D
    k = q + H * D
    offsets = token * (3 * H * D)
    dtype: tl.constexpr = QKV.dtype.element_ty
    rq = tl.zeros([ROWS], tl.float32)
    rk = rq
    if NORM:
        rq = _inverse_rms(q, offsets, seen, eps, D, BLOCKS)
        rk = _inverse_rms(k, offsets, seen, eps, D, BLOCKS)
    qs = _prepared(q, offsets, seen, WQ, COS, SIN, t, rq, D, BLOCKS, NORM, ROPE, dtype)
    ks = _prepared(k, offsets, seen, WK, COS, SIN, t, rk, D, BLOCKS, NORM, ROPE, dtype)
    return pid, sample, h * D, token, t, seen, rq, rk, qs, ks


@triton.jit
def _probabilities(q, k, seen, scale2, ROWS: tl.constexpr, TP: tl.constexpr):
    """Softmax of the logits over each row's own position."""
    s = dot_rows(q, k)
    position = tl.arange(0, ROWS) // TP
    # Rows that do not exist see themselves alone, so that no row is empty; they are never stored.
    own = tl.arange(0, ROWS)[:, None] == tl.arange(0, ROWS)[None, :]
    visible = ((position[:, None] == position[None, :]) & seen[None, :]) | own
    s = tl.where(visible, s * scale2, float("-inf"))
    p = tl.exp2(s - tl.max(s, 1)[:, None])
    return p / tl.sum(p, 1)[:, None]


RUNTIME = ["first", "groups", "T", "S"]


@triton.jit(do_not_specialize=RUNTIME)
def temporal_fwd(
    first, QKV, O, WQ, WK, COS, SIN, groups, T, S, H, scale2, eps,
    D: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, TP: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """O (B, T, S, H, D) from QKV (B, T, S, 3, H, D). Program: ROWS // TP positions of one head."""
    _, sample, head, token, _, seen, _, _, qs, ks = _tile(
        first, QKV, WQ, WK, COS, SIN, groups, T, S, H, eps, D, BLOCKS, ROWS, TP, NORM, ROPE
    )
    p = _probabilities(qs, ks, seen, scale2, ROWS, TP).to(QKV.dtype.element_ty)
    out = dot(p, load(QKV + 3 * sample + head + 2 * H * D, token * (3 * H * D), seen, D, BLOCKS))
    store(O + sample + head, token * (H * D), seen, out, D, BLOCKS)


@triton.jit
def _unprepare(
    base, OUT, offsets, seen, W, DW, pid, C, S, t, r, g,
    D: tl.constexpr, BLOCKS: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Store the gradient of one of q and k from that of its prepared rows; in DW (programs, D) its gains' parts."""
    if ROPE:
        g = _turn(g, C, S, t, seen, -1, D, BLOCKS)
    if NORM:
        x = wide(load(base, offsets, seen, D, BLOCKS))
        dw = ()
        for i in tl.static_range(len(BLOCKS)):
            dw = dw + (tl.sum(x[i] * r[:, None] * g[i], 0),)
        store_vector(DW + pid * D, dw, D, BLOCKS)
        g = norm_bwd(x, g, load_vector(W, D, BLOCKS), r, D)
    store(OUT, offsets, seen, g, D, BLOCKS)


@triton.jit(do_not_specialize=RUNTIME)
def temporal_bwd(
    first, QKV, DO, DQKV, WQ, WK, DWQ, DWK, COS, SIN, groups, T, S, H, scale2, scale, eps,
    D: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, TP: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """DQKV like QKV, and with NORM DWQ, DWK (programs, D): each program's part of the gains' gradients."""
    pid, sample, head, token, t, seen, rq, rk, qs, ks = _tile(
        first, QKV, WQ, WK, COS, SIN, groups, T, S, H, eps, D, BLOCKS, ROWS, TP, NORM, ROPE
    )
    q = QKV + 3 * sample + head
    k = q + H * D
    dq = DQKV + 3 * sample + head
    dk = dq + H * D
    offsets = token * (3 * H * D)
    dtype: tl.constexpr = QKV.dtype.element_ty
    p = _probabilities(qs, ks, seen, scale2, ROWS, TP)
    do = load(DO + sample + head, token * (H * D), seen, D, BLOCKS)
    store(dk + H * D, offsets, seen, dot(tl.trans(p.to(dtype)), do), D, BLOCKS)
    dp = dot_rows(do, load(k + H * D, offsets, seen, D, BLOCKS))
    ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(dtype)
    gq = dot(ds, ks)
    gk = dot(tl.trans(ds), qs)
    _unprepare(q, dq, offsets, seen, WQ, DWQ, pid, COS, SIN, t, rq, gq, D, BLOCKS, NORM, ROPE)
    _unprepare(k, dk, offsets, seen, WK, DWK, pid, COS, SIN, t, rk, gk, D, BLOCKS, NORM, ROPE)


@triton.jit
def _streamed(first, T, S, H, BM: tl.constexpr):
    """Of a program over streamed rows, which lie position after position: head, rows, their tokens in the projection, times."""
    pid = first + tl.program_id(0).to(tl.int64)
    row = pid // H * BM + tl.arange(0, BM)
    t = (row % T).to(tl.int32)
    position = row // T
    return pid % H, row, (position // S * T + t) * S + position % S, t


@triton.jit(do_not_specialize=["first", "rows", "T", "S"])
def temporal_prepare(
    first, QKV, OUT, WQ, WK, COS, SIN, rows, T, S, H, eps,
    D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """For streaming: OUT (B·S, T, 3, H, D), queries and keys normed and turned, `rows` = B·S·T. Program: BM rows of one head."""
    h, row, token, t = _streamed(first, T, S, H, BM)
    seen = row < rows
    dtype: tl.constexpr = QKV.dtype.element_ty
    for side in tl.static_range(3):
        x = QKV + (side * H + h) * D
        if side == 2:
            y = load(x, token * (3 * H * D), seen, D, BLOCKS)
        else:
            W = WQ if side == 0 else WK
            r = tl.zeros([BM], tl.float32)
            if NORM:
                r = _inverse_rms(x, token * (3 * H * D), seen, eps, D, BLOCKS)
            y = _prepared(x, token * (3 * H * D), seen, W, COS, SIN, t, r, D, BLOCKS, NORM, ROPE, dtype)
        store(OUT + (side * H + h) * D, row * (3 * H * D), seen, y, D, BLOCKS)


@triton.jit(do_not_specialize=["first", "rows", "T", "S"])
def temporal_unprepare(
    first, QKV, DQ, DK, DV, DQKV, WQ, WK, DWQ, DWK, COS, SIN, rows, T, S, H, eps,
    D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Backward of `temporal_prepare`: DQKV like QKV from DQ, DK, DV (rows, H, D); DWQ, DWK (programs, D)."""
    h, row, token, t = _streamed(first, T, S, H, BM)
    pid = first + tl.program_id(0).to(tl.int64)
    seen = row < rows
    for side in tl.static_range(2):
        x = QKV + (side * H + h) * D
        W = WQ if side == 0 else WK
        DW = DWQ if side == 0 else DWK
        r = tl.zeros([BM], tl.float32)
        if NORM:
            r = _inverse_rms(x, token * (3 * H * D), seen, eps, D, BLOCKS)
        g = wide(load((DQ if side == 0 else DK) + h * D, row * (H * D), seen, D, BLOCKS))
        out = DQKV + (side * H + h) * D
        _unprepare(x, out, token * (3 * H * D), seen, W, DW, pid, COS, SIN, t, r, g, D, BLOCKS, NORM, ROPE)
    dv = load(DV + h * D, row * (H * D), seen, D, BLOCKS)
    store(DQKV + (2 * H + h) * D, token * (3 * H * D), seen, dv, D, BLOCKS)

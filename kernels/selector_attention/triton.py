"""Triton kernels of `selector_attention`. Forward: a program owns all queries of a head and a range of keys, and the ranges are
merged. Backward streams a range of keys past the resident queries: rows of dK and dV are complete where they are made and
written once; partial dQ of the ranges are summed in order.

L queries, N keys, layout (B, L, H, D) throughout; logsumexps are in base 2.
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import dot, dot_add, dot_rows, elements, far, load, row_sums, scaled, store, zeros

RUNTIME = ["first", "L", "N", "splits", "chunk"]


@triton.jit(do_not_specialize=RUNTIME)
def selector_fwd(
    Q, K, V, O, LSE, first, L, N, H, sqb, sqn, sqh, skb, skn, skh, svb, svn, svh, splits, chunk, scale2,
    D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """O (B, splits, L, H, D), LSE (B, splits, H, L)."""
    pid = first + tl.program_id(0)
    h = pid % H
    split = pid // H % splits
    b = (pid // H // splits).to(tl.int64)
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    live = rows < L
    low = split * chunk
    n = tl.minimum(N - low, chunk)
    skn = elements(skn, LONG)
    svn = elements(svn, LONG)
    k = K + b * far(skb) + h * far(skh) + low.to(tl.int64) * skn
    v = V + b * far(svb) + h * far(svh) + low.to(tl.int64) * svn
    q = load(Q + b * far(sqb) + h * far(sqh), rows * elements(sqn, LONG), live, D, BLOCKS)
    acc = zeros(BM, BLOCKS)
    # A finite floor keeps exp2 clear of inf - inf.
    m = tl.full([BM], -1e30, tl.float32)
    l = tl.zeros([BM], tl.float32)
    for start in range(0, n, BN):
        inside = start + cols < n
        ks = load(k, cols * skn, inside, D, BLOCKS)
        vs = load(v, cols * svn, inside, D, BLOCKS)
        s = tl.where(inside[None, :], dot_rows(q, ks) * scale2, -1e30)
        m_new = tl.maximum(m, tl.max(s, 1))
        alpha = tl.exp2(m - m_new)
        p = tl.where(inside[None, :], tl.exp2(s - m_new[:, None]), 0.0)
        l = l * alpha + tl.sum(p, 1)
        m = m_new
        acc = dot_add(p.to(vs[0].dtype), vs, scaled(acc, alpha[:, None]))
        k += BN * skn
        v += BN * svn
    piece = b * splits + split
    tl.store(LSE + (piece * H + h) * L + rows, m + tl.log2(l), mask=live)
    store(O + (piece * L * H + h) * D, rows * (H * D), live, scaled(acc, 1.0 / l[:, None]), D, BLOCKS)


@triton.jit(do_not_specialize=["first", "L", "splits"])
def selector_merge(
    PART, LSE_PART, O, LSE, first, L, H, splits, D: tl.constexpr, SPLITS: tl.constexpr, BLOCKS: tl.constexpr
):
    """The ranges' outputs, weighed by their share of the softmax. Program: one query of one head."""
    pid = first + tl.program_id(0)
    h = pid % H
    row = pid // H % L
    b = (pid // H // L).to(tl.int64)
    s = tl.arange(0, SPLITS)
    piece = b * splits + s
    lse = tl.load(LSE_PART + (piece * H + h) * L + row, mask=s < splits, other=-1e30)
    top = tl.max(lse, 0)
    weight = tl.where(s < splits, tl.exp2(lse - top), 0.0)
    total = tl.sum(weight, 0)
    tl.store(LSE + (b * H + h) * L + row, top + tl.log2(total))
    part = load(PART, ((piece * L + row) * H + h) * D, s < splits, D, BLOCKS)
    for i in tl.static_range(len(BLOCKS)):
        columns = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
        out = tl.sum(part[i] * weight[:, None], 0) / total
        tl.store(O + ((b * L + row) * H + h) * D + columns, out.to(O.dtype.element_ty), mask=columns < D)


@triton.jit(do_not_specialize=RUNTIME)
def selector_bwd(
    Q, K, V, O, LSE, DO, DQ, DK, DV, first, L, N, H, sqb, sqn, sqh, skb, skn, skh, svb, svn, svh, splits, chunk, scale, scale2,
    D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """DQ (B, splits, L, H, D) float32; DK, DV (B, N, H, D)."""
    pid = first + tl.program_id(0)
    h = pid % H
    split = pid // H % splits
    b = (pid // H // splits).to(tl.int64)
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    live = rows < L
    low = split * chunk
    n = tl.minimum(N - low, chunk)
    skn = elements(skn, LONG)
    svn = elements(svn, LONG)
    k = K + b * far(skb) + h * far(skh) + low.to(tl.int64) * skn
    v = V + b * far(svb) + h * far(svh) + low.to(tl.int64) * svn
    q = load(Q + b * far(sqb) + h * far(sqh), rows * elements(sqn, LONG), live, D, BLOCKS)
    o = (b * L * H + h) * D
    do = load(DO + o, rows * (H * D), live, D, BLOCKS)
    delta = row_sums(do, load(O + o, rows * (H * D), live, D, BLOCKS))
    lse = tl.load(LSE + (b * H + h) * L + rows, mask=live, other=0.0)
    dq = zeros(BM, BLOCKS)
    for start in range(0, n, BN):
        inside = start + cols < n
        ks = load(k, cols * skn, inside, D, BLOCKS)
        vs = load(v, cols * svn, inside, D, BLOCKS)
        s = dot_rows(q, ks)
        # Rows without a query must add nothing: their logits are 0 and say nothing about lse.
        p = tl.where(live[:, None] & inside[None, :], tl.exp2(s * scale2 - lse[:, None]), 0.0)
        ds = (p * (dot_rows(do, vs) - delta[:, None]) * scale).to(q[0].dtype)
        out = ((b * N + low + start) * H + h) * D
        store(DV + out, cols * (H * D), inside, dot(tl.trans(p.to(do[0].dtype)), do), D, BLOCKS)
        store(DK + out, cols * (H * D), inside, dot(tl.trans(ds), q), D, BLOCKS)
        dq = dot_add(ds, ks, dq)
        k += BN * skn
        v += BN * svn
    store(DQ + ((b * splits + split) * L * H + h) * D, rows * (H * D), live, dq, D, BLOCKS)

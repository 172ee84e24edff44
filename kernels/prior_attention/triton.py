"""Backward of many queries over keys that one tile holds: each program streams a range of queries past the resident keys.

Softmax and dQ are complete in the pass, so it needs neither output nor logsumexp; partial dK and dV of the ranges are summed in
order. N queries, P keys, layout (B, L, H, D).
"""

# mypy: disable-error-code="no-untyped-def, assignment"
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from javisc.kernels.tiles import dot, dot_add, dot_rows, elements, far, load, store, zeros


@triton.jit(do_not_specialize=["first", "N", "P", "splits", "chunk"])
def prior_bwd(
    Q, K, V, DO, DQ, DK, DV, first, N, P, H, sqb, sqn, sqh, skb, skn, skh, svb, svn, svh, splits, chunk, scale, scale2,
    D: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """DQ (B, N, H, D); DK, DV (B, splits, P, H, D) float32. Program: a range of `chunk` queries of one head."""
    pid = first + tl.program_id(0)
    h = pid % H
    split = pid // H % splits
    b = (pid // H // splits).to(tl.int64)
    rows = tl.arange(0, BM)
    cols = tl.arange(0, BN)
    inside = cols < P
    low = split * chunk
    n = tl.minimum(N - low, chunk)
    sqn = elements(sqn, LONG)
    q = Q + b * far(sqb) + h * far(sqh) + low.to(tl.int64) * sqn
    k = load(K + b * far(skb) + h * far(skh), cols * elements(skn, LONG), inside, D, BLOCKS)
    v = load(V + b * far(svb) + h * far(svh), cols * elements(svn, LONG), inside, D, BLOCKS)
    dk = zeros(BN, BLOCKS)
    dv = zeros(BN, BLOCKS)
    for start in range(0, n, BM):
        live = start + rows < n
        o = ((b * N + low + start) * H + h) * D
        qs = load(q, rows * sqn, live, D, BLOCKS)
        dos = load(DO + o, rows * (H * D), live, D, BLOCKS)
        s = tl.where(inside[None, :], dot_rows(qs, k) * scale2, -1e30)
        p = tl.exp2(s - tl.max(s, 1)[:, None])
        p = tl.where(live[:, None] & inside[None, :], p / tl.sum(p, 1)[:, None], 0.0)
        dp = dot_rows(dos, v)
        ds = (p * (dp - tl.sum(p * dp, 1)[:, None]) * scale).to(qs[0].dtype)
        dv = dot_add(tl.trans(p.to(dos[0].dtype)), dos, dv)
        dk = dot_add(tl.trans(ds), qs, dk)
        store(DQ + o, rows * (H * D), live, dot(ds, k), D, BLOCKS)
        q += BM * sqn
    part = ((b * splits + split) * P * H + h) * D
    store(DK + part, cols * (H * D), inside, dk, D, BLOCKS)
    store(DV + part, cols * (H * D), inside, dv, D, BLOCKS)

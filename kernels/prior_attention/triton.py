"""Backward of many queries over few keys: each program streams a range of queries past a resident block of keys.

Partial dK and dV of the ranges are summed in order. Where one block holds all keys, the same pass writes dQ and needs neither
output nor log-sum-exp; otherwise a pass over the queries makes dQ and the row sums of dO∘O first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from javisc.kernels import split_attention
from javisc.kernels.blocks import load_block, ordered_sum, store_block
from javisc.kernels.launch import launches
from javisc.kernels.layout import as_tokens, ceil_div
from javisc.kernels.prior_attention import configs
from javisc.kernels.split_attention import LOG2E

# ruff: noqa: RUF005  Triton knows sums of tuples, not unpacking
# mypy: disable-error-code="no-untyped-def, assignment"


@triton.jit(do_not_specialize=["launched"])
def prior_attention_bwd_dq(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, dout_ptr, dq_ptr, delta_ptr, launched,
    N, P, H, q_stride, k_stride, v_stride, tiles, scale, scale_log2,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = launched + tl.program_id(0)
    head = program % H
    tile = (program // H) % tiles
    sample = (program // H // tiles).to(tl.int64)
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    live = tile * BLOCK_M + m < N
    query = sample * N + tile * BLOCK_M
    o_base = (query * H + head) * D
    qs = ()
    douts = ()
    dqs = ()
    delta = tl.zeros([BLOCK_M], tl.float32)
    for i in tl.static_range(len(BLOCKS)):
        q = load_block(q_ptr + query * q_stride + head * D, m * q_stride, live, D, BLOCKS[i][0], BLOCKS[i][1])
        dout = load_block(dout_ptr + o_base, m * H * D, live, D, BLOCKS[i][0], BLOCKS[i][1])
        out = load_block(out_ptr + o_base, m * H * D, live, D, BLOCKS[i][0], BLOCKS[i][1])
        delta += tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
        qs = qs + (q,)
        douts = douts + (dout,)
        dqs = dqs + (tl.zeros_like(q).to(tl.float32),)
    l_base = (sample * H + head) * N + tile * BLOCK_M
    lse = tl.load(lse_ptr + l_base + m, mask=live, other=0.0)
    tl.store(delta_ptr + l_base + m, delta, mask=live)
    for start in range(0, P, BLOCK_N):
        keys = start + n < P
        k_base = k_ptr + (sample * P + start) * k_stride + head * D
        v_base = v_ptr + (sample * P + start) * v_stride + head * D
        logits = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        dp = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        ks = ()
        for i in tl.static_range(len(BLOCKS)):
            k = load_block(k_base, n * k_stride, keys, D, BLOCKS[i][0], BLOCKS[i][1])
            v = load_block(v_base, n * v_stride, keys, D, BLOCKS[i][0], BLOCKS[i][1])
            logits = tl.dot(qs[i], tl.trans(k), logits, input_precision=PRECISION)
            dp = tl.dot(douts[i], tl.trans(v), dp, input_precision=PRECISION)
            ks = ks + (k,)
        p = tl.where(keys[None, :], tl.exp2(logits * scale_log2 - lse[:, None]), 0.0)
        ds = p * (dp - delta[:, None]) * scale
        new_dqs = ()
        for i in tl.static_range(len(BLOCKS)):
            new_dqs = new_dqs + (tl.dot(ds.to(ks[i].dtype), ks[i], dqs[i], input_precision=PRECISION),)
        dqs = new_dqs
    for i in tl.static_range(len(BLOCKS)):
        store_block(dq_ptr + o_base, m * H * D, live, D, dqs[i], BLOCKS[i][0], BLOCKS[i][1])


@triton.jit(do_not_specialize=["launched"])
def prior_attention_bwd_dkv(
    q_ptr, k_ptr, v_ptr, lse_ptr, delta_ptr, dout_ptr, dq_ptr, dk_ptr, dv_ptr, launched,
    N, P, H, q_stride, k_stride, v_stride, blocks, splits, chunk, scale, scale_log2,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    # dk, dv (B, splits, P, H, d) float32. WHOLE: this block holds all keys, so softmax and dQ are complete here.
    program = launched + tl.program_id(0)
    head = program % H
    rest = program // H
    block = rest % blocks
    rest = rest // blocks
    split = rest % splits
    sample = (rest // splits).to(tl.int64)
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    keys = block * BLOCK_N + n < P
    first = split * chunk
    last = tl.minimum(first + chunk, N)
    key = sample * P + block * BLOCK_N
    ks = ()
    vs = ()
    dks = ()
    dvs = ()
    for i in tl.static_range(len(BLOCKS)):
        k = load_block(k_ptr + key * k_stride + head * D, n * k_stride, keys, D, BLOCKS[i][0], BLOCKS[i][1])
        v = load_block(v_ptr + key * v_stride + head * D, n * v_stride, keys, D, BLOCKS[i][0], BLOCKS[i][1])
        ks = ks + (k,)
        vs = vs + (v,)
        dks = dks + (tl.zeros_like(k).to(tl.float32),)
        dvs = dvs + (tl.zeros_like(v).to(tl.float32),)
    for start in range(first, last, BLOCK_M):
        live = start + m < last
        q_base = q_ptr + (sample * N + start) * q_stride + head * D
        o_base = ((sample * N + start) * H + head) * D
        logits = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        dp = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        qs = ()
        douts = ()
        for i in tl.static_range(len(BLOCKS)):
            q = load_block(q_base, m * q_stride, live, D, BLOCKS[i][0], BLOCKS[i][1])
            dout = load_block(dout_ptr + o_base, m * H * D, live, D, BLOCKS[i][0], BLOCKS[i][1])
            logits = tl.dot(q, tl.trans(ks[i]), logits, input_precision=PRECISION)
            dp = tl.dot(dout, tl.trans(vs[i]), dp, input_precision=PRECISION)
            qs = qs + (q,)
            douts = douts + (dout,)
        if WHOLE:
            logits = tl.where(keys[None, :], logits * scale_log2, -1e30)
            p = tl.exp2(logits - tl.max(logits, 1)[:, None])
            p = tl.where(live[:, None] & keys[None, :], p / tl.sum(p, 1)[:, None], 0.0)
            delta = tl.sum(p * dp, 1)
        else:
            l_base = (sample * H + head) * N + start
            lse = tl.load(lse_ptr + l_base + m, mask=live, other=0.0)
            delta = tl.load(delta_ptr + l_base + m, mask=live, other=0.0)
            p = tl.where(live[:, None] & keys[None, :], tl.exp2(logits * scale_log2 - lse[:, None]), 0.0)
        ds = p * (dp - delta[:, None]) * scale
        new_dks = ()
        new_dvs = ()
        for i in tl.static_range(len(BLOCKS)):
            half_p = p.to(douts[i].dtype)
            half_ds = ds.to(qs[i].dtype)
            new_dvs = new_dvs + (tl.dot(tl.trans(half_p), douts[i], dvs[i], input_precision=PRECISION),)
            new_dks = new_dks + (tl.dot(tl.trans(half_ds), qs[i], dks[i], input_precision=PRECISION),)
            if WHOLE:
                dq = tl.dot(half_ds.to(ks[i].dtype), ks[i], input_precision=PRECISION)
                store_block(dq_ptr + o_base, m * H * D, live, D, dq, BLOCKS[i][0], BLOCKS[i][1])
        dks = new_dks
        dvs = new_dvs
    part = (((sample * splits + split) * P + block * BLOCK_N) * H + head) * D
    for i in tl.static_range(len(BLOCKS)):
        store_block(dk_ptr + part, n * H * D, keys, D, dks[i], BLOCKS[i][0], BLOCKS[i][1])
        store_block(dv_ptr + part, n * H * D, keys, D, dvs[i], BLOCKS[i][0], BLOCKS[i][1])


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, arch: int) -> tuple[Tensor, Tensor]:
    """Return (out (B, N, H, d), lse (B, H, N) float32, base 2) of q (B, N, H, d) over k, v (B, P, H, d)."""
    launch = configs.config("fwd", q.shape[-1], q.element_size(), arch)
    block_n = configs.key_block(k.shape[1], launch)
    return split_attention.forward(
        q, k, v, scale, launch.block_m, block_n, launch.warps, launch.stages, 1, launch.precision
    )


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, arch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk, dv, contiguous, in the dtypes of q, k and v."""
    samples, length, heads, dim = q.shape
    keys = k.shape[1]
    dq = q.new_empty(q.shape)
    if not (q.numel() and keys):
        return dq.zero_(), torch.zeros(k.shape, dtype=k.dtype, device=k.device), torch.zeros_like(v).contiguous()
    q, q_stride = as_tokens(q)
    k, k_stride = as_tokens(k)
    v, v_stride = as_tokens(v)
    dout = dout.contiguous()
    launch = configs.config("bwd", dim, q.element_size(), arch)
    block_n = configs.key_block(keys, launch)
    blocks = ceil_div(keys, block_n)
    factor = scale * LOG2E
    delta = lse
    if blocks > 1:
        over = configs.config("dq", dim, q.element_size(), arch)
        delta = torch.empty_like(lse)
        tiles = ceil_div(length, over.block_m)
        out = out.contiguous()
        for launched, programs in launches(samples * tiles * heads):
            prior_attention_bwd_dq[(programs,)](
                q, k, v, out, lse, dout, dq, delta, launched,
                length, keys, heads, q_stride, k_stride, v_stride, tiles, scale, factor,
                D=dim, BLOCK_M=over.block_m, BLOCK_N=over.block_n, BLOCKS=configs.head_blocks("dq", dim),
                PRECISION=over.precision, num_warps=over.warps, num_stages=over.stages,
            )  # fmt: skip
    wish = configs.splits(samples * heads * blocks, length, launch.block_m)
    chunk = ceil_div(ceil_div(length, wish), launch.block_m) * launch.block_m
    splits = ceil_div(length, chunk)
    part = q.new_empty((2, samples, splits, keys * heads * dim), dtype=torch.float32)
    for launched, programs in launches(samples * splits * blocks * heads):
        prior_attention_bwd_dkv[(programs,)](
            q, k, v, lse, delta, dout, dq, part[0], part[1], launched,
            length, keys, heads, q_stride, k_stride, v_stride, blocks, splits, chunk, scale, factor,
            D=dim, BLOCK_M=launch.block_m, BLOCK_N=block_n, BLOCKS=configs.head_blocks("bwd", dim),
            PRECISION=launch.precision, WHOLE=blocks == 1, num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
    dk = ordered_sum(part[0], k.dtype).view(k.shape)
    dv = ordered_sum(part[1], v.dtype).view(v.shape)
    return dq, dk, dv

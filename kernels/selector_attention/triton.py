"""Backward of few queries over many keys: each program streams a range of keys past the resident queries.

Rows of dK and dV are complete where they are made, so they are written once; partial dQ of the ranges are summed in order.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from javisc.kernels import split_attention
from javisc.kernels.blocks import load_block, ordered_sum, store_block
from javisc.kernels.launch import launches
from javisc.kernels.layout import as_tokens, ceil_div, column_blocks
from javisc.kernels.selector_attention import configs

# ruff: noqa: RUF005  Triton knows sums of tuples, not unpacking
# mypy: disable-error-code="no-untyped-def, assignment"


@triton.jit(do_not_specialize=["launched"])
def selector_attention_bwd(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, dout_ptr, dq_ptr, dk_ptr, dv_ptr, launched,
    S, N, H, q_stride, k_stride, v_stride, splits, chunk, scale, scale_log2,
    D: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = launched + tl.program_id(0)
    head = program % H
    split = (program // H) % splits
    sample = (program // H // splits).to(tl.int64)
    m = tl.arange(0, BLOCK_S)
    n = tl.arange(0, BLOCK_N)
    live = m < S
    first = split * chunk
    last = tl.minimum(first + chunk, N)
    q_base = q_ptr + sample * S * q_stride + head * D
    o_base = sample * S * H * D + head * D
    qs = ()
    douts = ()
    dqs = ()
    delta = tl.zeros([BLOCK_S], tl.float32)
    for i in tl.static_range(len(BLOCKS)):
        q = load_block(q_base, m * q_stride, live, D, BLOCKS[i][0], BLOCKS[i][1])
        dout = load_block(dout_ptr + o_base, m * H * D, live, D, BLOCKS[i][0], BLOCKS[i][1])
        out = load_block(out_ptr + o_base, m * H * D, live, D, BLOCKS[i][0], BLOCKS[i][1])
        delta += tl.sum(dout.to(tl.float32) * out.to(tl.float32), 1)
        qs = qs + (q,)
        douts = douts + (dout,)
        dqs = dqs + (tl.zeros_like(q).to(tl.float32),)
    lse = tl.load(lse_ptr + (sample * H + head) * S + m, mask=live, other=0.0)
    for start in range(first, last, BLOCK_N):
        keys = start + n < last
        k_base = k_ptr + (sample * N + start) * k_stride + head * D
        v_base = v_ptr + (sample * N + start) * v_stride + head * D
        d_base = ((sample * N + start) * H + head) * D
        logits = tl.zeros([BLOCK_S, BLOCK_N], tl.float32)
        dp = tl.zeros([BLOCK_S, BLOCK_N], tl.float32)
        ks = ()
        for i in tl.static_range(len(BLOCKS)):
            k = load_block(k_base, n * k_stride, keys, D, BLOCKS[i][0], BLOCKS[i][1])
            v = load_block(v_base, n * v_stride, keys, D, BLOCKS[i][0], BLOCKS[i][1])
            logits = tl.dot(qs[i], tl.trans(k), logits, input_precision=PRECISION)
            dp = tl.dot(douts[i], tl.trans(v), dp, input_precision=PRECISION)
            ks = ks + (k,)
        # Rows without a query must add nothing: their logits are 0 and say nothing about lse.
        p = tl.where(live[:, None] & keys[None, :], tl.exp2(logits * scale_log2 - lse[:, None]), 0.0)
        ds = p * (dp - delta[:, None]) * scale
        new_dqs = ()
        for i in tl.static_range(len(BLOCKS)):
            dv = tl.dot(tl.trans(p.to(douts[i].dtype)), douts[i], input_precision=PRECISION)
            dk = tl.dot(tl.trans(ds.to(qs[i].dtype)), qs[i], input_precision=PRECISION)
            store_block(dv_ptr + d_base, n * H * D, keys, D, dv, BLOCKS[i][0], BLOCKS[i][1])
            store_block(dk_ptr + d_base, n * H * D, keys, D, dk, BLOCKS[i][0], BLOCKS[i][1])
            new_dqs = new_dqs + (tl.dot(ds.to(ks[i].dtype), ks[i], dqs[i], input_precision=PRECISION),)
        dqs = new_dqs
    dq_base = dq_ptr + ((sample * splits + split) * S * H + head) * D
    for i in tl.static_range(len(BLOCKS)):
        store_block(dq_base, m * H * D, live, D, dqs[i], BLOCKS[i][0], BLOCKS[i][1])


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, arch: int) -> tuple[Tensor, Tensor]:
    """Return (out (B, S, H, d), lse (B, H, S) float32, base 2) of q (B, S, H, d) over k, v (B, N, H, d)."""
    samples, queries, heads, dim = q.shape
    launch = configs.config("fwd", dim, queries, q.element_size(), arch)
    block_s = max(16, triton.next_power_of_2(queries))
    splits = configs.splits(samples * heads, k.shape[1], launch.block_n)
    return split_attention.forward(
        q, k, v, scale, block_s, launch.block_n, launch.warps, launch.stages, splits, launch.precision
    )


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, arch: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk, dv, contiguous, in the dtypes of q, k and v."""
    samples, queries, heads, dim = q.shape
    keys = k.shape[1]
    dk = k.new_empty(k.shape)
    dv = v.new_empty(v.shape)
    if not (q.numel() and keys):
        return torch.zeros_like(q, memory_format=torch.contiguous_format), dk.zero_(), dv.zero_()
    launch = configs.config("bwd", dim, queries, q.element_size(), arch)
    wish = configs.splits(samples * heads, keys, launch.block_n)
    chunk = ceil_div(ceil_div(keys, wish), launch.block_n) * launch.block_n
    splits = ceil_div(keys, chunk)
    q, q_stride = as_tokens(q)
    k, k_stride = as_tokens(k)
    v, v_stride = as_tokens(v)
    part = q.new_empty((samples, splits, queries, heads, dim), dtype=torch.float32)
    out, dout = out.contiguous(), dout.contiguous()
    for launched, programs in launches(samples * splits * heads):
        selector_attention_bwd[(programs,)](
            q, k, v, out, lse, dout, part, dk, dv, launched,
            queries, keys, heads, q_stride, k_stride, v_stride, splits, chunk, scale, scale * math.log2(math.e),
            D=dim, BLOCK_S=max(16, triton.next_power_of_2(queries)), BLOCK_N=launch.block_n, BLOCKS=column_blocks(dim),
            PRECISION=launch.precision, num_warps=launch.warps, num_stages=launch.stages,
        )  # fmt: skip
    dq = ordered_sum(part.view(samples, splits, -1), q.dtype).view(samples, queries, heads, dim)
    return dq, dk, dv

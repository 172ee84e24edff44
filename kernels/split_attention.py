"""Forward of attention with one short side: a program owns a tile of queries and a range of keys, and the ranges are merged.

Few queries over many keys split the keys; many queries over few keys take one range. Layout (B, L, H, d) throughout.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from javisc.kernels.blocks import load_block, store_block
from javisc.kernels.launch import launches
from javisc.kernels.layout import as_tokens, ceil_div, column_blocks

# ruff: noqa: RUF005  Triton knows sums of tuples, not unpacking
# mypy: disable-error-code="no-untyped-def, assignment"

LOG2E = math.log2(math.e)


@triton.jit(do_not_specialize=["launched"])
def split_attention_fwd(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, launched,
    L, N, H, q_stride, k_stride, v_stride, tiles, splits, chunk, scale_log2,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # out (B, splits, L, H, d), lse (B, splits, H, L) in base 2.
    program = launched + tl.program_id(0)
    head = program % H
    rest = program // H
    tile = rest % tiles
    rest = rest // tiles
    split = rest % splits
    sample = (rest // splits).to(tl.int64)
    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    query = sample * L + tile * BLOCK_M
    live = tile * BLOCK_M + m < L
    first = split * chunk
    last = tl.minimum(first + chunk, N)
    qs = ()
    accs = ()
    for i in tl.static_range(len(BLOCKS)):
        q = load_block(q_ptr + query * q_stride + head * D, m * q_stride, live, D, BLOCKS[i][0], BLOCKS[i][1])
        qs = qs + (q,)
        accs = accs + (tl.zeros_like(q).to(tl.float32),)
    # A finite floor keeps exp2 clear of inf - inf.
    top = tl.full([BLOCK_M], -1e30, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(first, last, BLOCK_N):
        keys = start + n < last
        k_base = k_ptr + (sample * N + start) * k_stride + head * D
        v_base = v_ptr + (sample * N + start) * v_stride + head * D
        logits = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for i in tl.static_range(len(BLOCKS)):
            k = load_block(k_base, n * k_stride, keys, D, BLOCKS[i][0], BLOCKS[i][1])
            logits = tl.dot(qs[i], tl.trans(k), logits, input_precision=PRECISION)
        logits = tl.where(keys[None, :], logits * scale_log2, -1e30)
        new_top = tl.maximum(top, tl.max(logits, 1))
        shrink = tl.exp2(top - new_top)
        p = tl.where(keys[None, :], tl.exp2(logits - new_top[:, None]), 0.0)
        total = total * shrink + tl.sum(p, 1)
        top = new_top
        new_accs = ()
        for i in tl.static_range(len(BLOCKS)):
            v = load_block(v_base, n * v_stride, keys, D, BLOCKS[i][0], BLOCKS[i][1])
            acc = tl.dot(p.to(v.dtype), v, accs[i] * shrink[:, None], input_precision=PRECISION)
            new_accs = new_accs + (acc,)
        accs = new_accs
    piece = sample * splits + split
    lse_base = lse_ptr + (piece * H + head) * L + tile * BLOCK_M
    tl.store(lse_base + m, top + tl.log2(total), mask=live)
    out_base = out_ptr + ((piece * L + tile * BLOCK_M) * H + head) * D
    for i in tl.static_range(len(BLOCKS)):
        store_block(out_base, m * H * D, live, D, accs[i] / total[:, None], BLOCKS[i][0], BLOCKS[i][1])


@triton.jit(do_not_specialize=["launched"])
def split_attention_merge(
    part_ptr,
    part_lse_ptr,
    out_ptr,
    lse_ptr,
    launched,
    L,
    H,
    splits,
    D: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    # One query of one head per program; the partial results are weighed by their share of the softmax.
    program = launched + tl.program_id(0)
    head = program % H
    row = (program // H) % L
    sample = (program // H // L).to(tl.int64)
    s = tl.arange(0, SPLITS)
    piece = sample * splits + s
    lses = tl.load(part_lse_ptr + (piece * H + head) * L + row, mask=s < splits, other=-1e30)
    top = tl.max(lses, 0)
    weight = tl.where(s < splits, tl.exp2(lses - top), 0.0)
    total = tl.sum(weight, 0)
    tl.store(lse_ptr + (sample * H + head) * L + row, top + tl.log2(total))
    for i in tl.static_range(len(BLOCKS)):
        cols = BLOCKS[i][1] + tl.arange(0, BLOCKS[i][0])
        inside = (s < splits)[:, None] & (cols < D)[None, :]
        part = tl.load(part_ptr + ((piece * L + row) * H + head)[:, None] * D + cols[None, :], mask=inside, other=0.0)
        out = tl.sum(part * weight[:, None], 0) / total
        at = out_ptr + ((sample * L + row) * H + head) * D + cols
        tl.store(at, out.to(out_ptr.dtype.element_ty), mask=cols < D)


def forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, block_m: int, block_n: int, warps: int, stages: int, splits: int,
    precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return (out (B, L, H, d), lse (B, H, L) float32 in base 2) of q (B, L, H, d) over k, v (B, N, H, d).

    `splits` is the wish; ranges are whole numbers of key tiles. Without keys the output is 0 and lse −inf.
    """
    samples, length, heads, dim = q.shape
    keys = k.shape[1]
    out = q.new_empty((samples, length, heads, dim))
    lse = q.new_empty((samples, heads, length), dtype=torch.float32)
    if not out.numel():
        return out, lse
    if not keys:
        return out.zero_(), lse.fill_(-math.inf)
    chunk = ceil_div(ceil_div(keys, splits), block_n) * block_n
    splits = ceil_div(keys, chunk)
    q, q_stride = as_tokens(q)
    k, k_stride = as_tokens(k)
    v, v_stride = as_tokens(v)
    tiles = ceil_div(length, block_m)
    blocks = column_blocks(dim)
    one = splits == 1
    part = out if one else q.new_empty((samples, splits, length, heads, dim), dtype=torch.float32)
    part_lse = lse if one else q.new_empty((samples, splits, heads, length), dtype=torch.float32)
    for launched, programs in launches(samples * splits * tiles * heads):
        split_attention_fwd[(programs,)](
            q, k, v, part, part_lse, launched, length, keys, heads, q_stride, k_stride, v_stride, tiles, splits, chunk,
            scale * LOG2E, D=dim, BLOCK_M=block_m, BLOCK_N=block_n, BLOCKS=blocks, PRECISION=precision,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
    for launched, programs in launches(0 if one else samples * length * heads):
        split_attention_merge[(programs,)](
            part, part_lse, out, lse, launched, length, heads, splits, D=dim,
            SPLITS=triton.next_power_of_2(splits), BLOCKS=blocks, num_warps=4,
        )  # fmt: skip
    return out, lse

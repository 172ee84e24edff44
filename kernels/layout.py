"""Layouts as numbers, without Triton: rows cut into power-of-two blocks, token rows with one stride."""

from __future__ import annotations

from torch import Tensor


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def column_blocks(width: int, *, smallest: int = 16, most: int = 4) -> tuple[tuple[int, int], ...]:
    """Cut a row into at most `most` power-of-two blocks, as (width, first column): 72 = 64 + 16, 1152 = 1024 + 128."""
    blocks: list[tuple[int, int]] = []
    start = 0
    while start < width:
        left = width - start
        power = 1 << (left.bit_length() - 1)
        if power < left and (len(blocks) == most - 1 or left <= 2 * smallest):
            power *= 2
        blocks.append((max(power, smallest), start))
        start += blocks[-1][0]
    return tuple(blocks)


def token_stride(x: Tensor) -> int | None:
    """Return the one stride between the tokens of `x` (…, H, d), or None where the leading axes do not fold into one.

    A slice `qkv[..., 0, :, :]` of a contiguous (…, 3, H, d) has it, so kernels read it in place.
    """
    heads, dim = x.shape[-2:]
    if x.numel() == 0:
        return None
    if (x.stride(-1) != 1 and dim > 1) or (x.stride(-2) != dim and heads > 1):
        return None
    stride = None
    expected = None
    for size, step in zip(reversed(x.shape[:-2]), reversed(x.stride()[:-2])):
        if size == 1:
            continue
        if stride is None:
            stride = step
        elif step != expected:
            return None
        expected = step * size
    return heads * dim if stride is None else stride


def as_tokens(x: Tensor) -> tuple[Tensor, int]:
    """Return `x`, copied only if its tokens have no common stride, and that stride."""
    stride = token_stride(x)
    if stride is not None:
        return x, stride
    return x.contiguous(), x.shape[-2] * x.shape[-1]

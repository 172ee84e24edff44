"""Layouts as numbers, without Triton: rows cut into power-of-two blocks."""

from __future__ import annotations


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def power_of_two(a: int) -> int:
    """Return the smallest power of two that is at least `a`."""
    return 1 << max(a - 1, 0).bit_length()


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


def head_blocks(dim: int) -> tuple[tuple[int, int], ...]:
    """The blocks of an attention head: one or two, 72 = 64 + 16, not 128."""
    return column_blocks(dim, most=2)

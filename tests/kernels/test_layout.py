"""Rows cut into blocks cover every column once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from javisc.kernels.layout import column_blocks, head_blocks


@given(st.integers(1, 5000))
def test_blocks_are_powers_of_two_that_cover_the_row(width):
    blocks = column_blocks(width)
    ends = [first + size for size, first in blocks]
    assert [first for _, first in blocks] == [0, *ends[:-1]] and ends[-1] >= width > blocks[-1][1]
    assert all(size & (size - 1) == 0 and size >= 16 for size, _ in blocks) and len(blocks) <= 4


@pytest.mark.parametrize(
    "width, blocks",
    [(72, ((64, 0), (16, 64))), (1152, ((1024, 0), (128, 1024))), (128, ((128, 0),)), (96, ((64, 0), (32, 64)))],
)
def test_the_models_widths_waste_little(width, blocks):
    assert column_blocks(width) == blocks


@pytest.mark.parametrize(
    "head_dim, blocks",
    [
        (8, ((16, 0),)),
        (32, ((32, 0),)),
        (40, ((32, 0), (16, 32))),
        (72, ((64, 0), (16, 64))),
        (96, ((64, 0), (32, 64))),
        (128, ((128, 0),)),
    ],
)
def test_a_head_takes_at_most_two_blocks(head_dim, blocks):
    assert head_blocks(head_dim) == blocks
    assert all(len(head_blocks(d)) <= 2 and sum(size for size, _ in head_blocks(d)) >= d for d in range(8, 129, 8))

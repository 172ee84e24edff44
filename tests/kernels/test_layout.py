"""Rows cut into blocks cover every column once; the common stride of token rows is found, or not claimed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from javisc.kernels.layout import as_tokens, column_blocks, token_stride


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


@pytest.mark.parametrize("slot", [0, 2])
def test_slices_of_a_projection_keep_their_place(slot):
    qkv = torch.randn(2, 3, 4, 3, 5, 8)
    x = qkv[..., slot, :, :]
    assert token_stride(x) == 3 * 5 * 8 and as_tokens(x)[0] is x


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 5, 4, 8).transpose(1, 2),
        torch.randn(3, 4, 5, 8).transpose(0, 1),
        torch.randn(2, 3, 5, 8)[:, ::2],
        torch.randn(2, 3, 5, 16)[..., ::2],
    ],
    ids=["heads outside", "axes swapped", "tokens skipped in the middle", "columns skipped"],
)
def test_other_layouts_are_copied(x):
    found = token_stride(x)
    copy, stride = as_tokens(x)
    flat = copy.as_strided((copy[..., 0, 0].numel(), *copy.shape[-2:]), (stride, copy.shape[-1], 1))
    assert torch.equal(flat.reshape(x.shape), x) and (found is None) == (copy is not x)


def test_one_token_or_single_axes_do_not_confuse_the_stride():
    x = torch.randn(1, 4, 1, 2, 3, 8)[:, :, :, 1]
    assert token_stride(x) == 2 * 3 * 8
    assert token_stride(torch.randn(1, 1, 3, 8)) == 24

"""Launches fit the grid, for every op; head dims are covered without padding to the next power of two."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from javisc.kernels import dispatch, launch, survey
from javisc.kernels.attention import attention
from javisc.kernels.bidirectional_attention import bidirectional_attention
from javisc.kernels.modulated_norm import gated_residual, gated_residual_layer_norm, modulated_layer_norm
from javisc.kernels.prior_attention import prior_attention
from javisc.kernels.selector_attention import selector_attention
from javisc.kernels.temporal_attention import host as temporal
from javisc.kernels.temporal_attention import temporal_attention
from javisc.kernels.tiles import ordered_sum
from support.kernels import DEVICE


def test_launches_cover_every_program_once(monkeypatch):
    monkeypatch.setattr(launch, "MAX_PROGRAMS", 7)
    for programs in (0, 1, 6, 7, 8, 14, 23):
        seen = [first + i for first, count in launch.launches(programs) for i in range(count)]
        assert seen == list(range(programs))
        assert all(0 < count <= 7 for _, count in launch.launches(programs))


def draw(*shapes):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=g).to(DEVICE).requires_grad_() for shape in shapes]


def angles(length, width):
    return [torch.rand(length, width, device=DEVICE) for _ in range(2)]


#: Name → (op, positional inputs, options): small, but more than three programs in every pass.
CALLS = {
    "attention": (attention, draw((1, 40, 2, 16), *[(1, 17, 2, 16)] * 2), {}),
    "attention, normed": (
        lambda q, k, v, a, b, **options: attention(q, k, v, q_weight=a, k_weight=b, **options),
        draw(*[(2, 20, 2, 16)] * 3, (16,), (16,)),
        {},
    ),
    "temporal_attention": (temporal_attention, [*draw((2, 3, 2, 3, 3, 16), (16,), (16,)), *angles(3, 8)], {}),
    "temporal_attention, streamed": (temporal_attention, [*draw((2, 9, 2, 3, 2, 16), (16,), (16,)), *angles(9, 8)], {}),
    "bidirectional_attention": (bidirectional_attention, draw(*[(2, n, 1, 16) for n in (40, 17, 17, 40)]), {}),
    "selector_attention": (selector_attention, draw((2, 3, 2, 16), *[(2, 70, 2, 16)] * 2), {}),
    "prior_attention": (prior_attention, draw((2, 20, 2, 16), *[(2, 5, 2, 16)] * 2), {"scope": "sample"}),
    "modulated_layer_norm": (modulated_layer_norm, draw((2, 3, 5, 48), (2, 48), (2, 48)), {}),
    "gated_residual": (gated_residual, draw((5, 3, 5, 48), (5, 3, 5, 48), (5, 48)), {}),
    "gated_residual_layer_norm": (
        gated_residual_layer_norm,
        draw((2, 3, 5, 48), (2, 3, 5, 48), (2, 48), (2, 48), (2, 48)),
        {},
    ),
}


def test_every_op_is_among_the_calls():
    survey.load_ops()
    ours = {op for op, rows in dispatch.TABLE.items() if any(row.name == "triton" for row in rows)}
    assert {name.partition(",")[0] for name in CALLS} == ours


@pytest.mark.parametrize("name", CALLS)
def test_no_launch_passes_the_grid_and_splitting_changes_no_bit(name, monkeypatch):
    from triton.runtime.jit import KernelInterface

    grids = []
    launcher = KernelInterface.__getitem__
    monkeypatch.setattr(
        KernelInterface, "__getitem__", lambda kernel, grid: grids.append(grid) or launcher(kernel, grid)
    )
    if "streamed" in name:
        monkeypatch.setattr(temporal, "longest_tile", lambda *_: 4)
    function, inputs, options = CALLS[name]
    leaves = [x for x in inputs if x.requires_grad]

    def results():
        grids.clear()
        out = function(*inputs, **options, backend="triton")
        outs = out if isinstance(out, tuple) else (out,)
        grads = torch.autograd.grad(outs, leaves, [torch.ones_like(o) for o in outs])
        assert all(len(grid) == 1 for grid in grids), "the y and z axes end at 65,535"
        return [*outs, *grads], sum(grid[0] for grid in grids), max(grid[0] for grid in grids)

    once, programs, largest = results()
    assert largest > 3, "nothing to split: give the call larger inputs"
    monkeypatch.setattr(launch, "MAX_PROGRAMS", 3)
    split, same, most = results()
    assert most <= 3 and same == programs
    assert all(torch.equal(a, b) for a, b in zip(once, split, strict=True))


def test_parts_make_whole_waves_of_at_least_the_least():
    """132 multiprocessors off CUDA; (programs, tiles, least) → parts."""
    device = torch.device("cpu")
    for programs, tiles, least, expected in [
        (1000, 100, 4, 1),
        (80, 844, 4, 3),
        (132, 99, 2, 2),
        (4, 8, 4, 2),
        (1, 3, 4, 1),
    ]:
        found = launch.parts(programs, tiles, device, least=least)
        assert found == expected
        assert found == 1 or programs * found <= 2 * 132


@given(st.integers(1, 2000), st.integers(0, 60000), st.sampled_from([1, 4, 16, 64]), st.sampled_from([2, 8]))
def test_ranges_cover_the_rows_in_whole_tiles_and_waves(programs, length, tile, waves):
    count, rows = launch.ranges(programs, length, tile, torch.device("cpu"), most=4096, waves=waves)
    assert rows % tile == 0 and rows > 0 and (count - 1) * rows < max(length, 1) and length <= count * rows
    assert count <= 1 or programs * count <= waves * 132


def test_a_long_stream_fills_the_device():
    assert launch.ranges(8, 54000, 64, torch.device("cpu"))[0] * 8 >= 132


@pytest.mark.parametrize("terms", [0, 1, 256, 257, 1000])
def test_many_terms_are_summed_in_pieces(terms, monkeypatch):
    """More than one program takes in a while: in pieces of 256, here of 32, so that three passes follow one another."""
    monkeypatch.setattr("javisc.kernels.tiles.SUM_EACH", 32)
    partial = torch.randn(2, terms, 72, generator=torch.Generator().manual_seed(terms), dtype=torch.float64).to(DEVICE)
    found = ordered_sum(partial.float(), torch.float16)
    assert found.dtype == torch.float16 and found.shape == (2, 72)
    assert torch.allclose(found.double(), partial.sum(1), rtol=1e-3, atol=1e-2)
    assert torch.equal(found, ordered_sum(partial.float(), torch.float16))

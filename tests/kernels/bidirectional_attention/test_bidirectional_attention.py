"""bidirectional_attention against its definition in float64: both outputs and every gradient, on every backend that runs here."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from javisc.kernels import launch
from javisc.kernels.bidirectional_attention import bidirectional_attention, host
from javisc.kernels.bidirectional_attention.op import OP
from javisc.kernels.bidirectional_attention.reference import bidirectional_attention_reference
from javisc.kernels.dispatch import BackendError
from support.kernels import DEVICE, TOLERANCE, cases, check, dtypes, poisoned

backends = pytest.mark.parametrize("backend", ["triton", "torch"])


def make(length_row, length_col, head_dim, dtype, *, batch=2, heads=1, spread=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    lengths = {"q": length_row, "k": length_col, "v_row": length_col, "v_col": length_row}
    inputs = {n: torch.randn(batch, m, heads, head_dim, generator=g).to(DEVICE, dtype) for n, m in lengths.items()}
    inputs["q"] *= spread
    inputs = {n: t.requires_grad_() for n, t in inputs.items()}
    shapes = {"o_row": length_row, "o_col": length_col}
    return inputs, {n: torch.randn(batch, m, heads, head_dim, generator=g).to(DEVICE, dtype) for n, m in shapes.items()}


def masks(length_row, length_col, seed=1):
    """Random padding masks; the last sample's rows are all padding."""
    g = torch.Generator().manual_seed(seed)
    row, col = (torch.rand(2, n, generator=g) > 0.4 for n in (length_row, length_col))
    row[-1] = False
    return {"mask_row": row.to(DEVICE), "mask_col": col.to(DEVICE)}


def judge(inputs, grads, dtype, backend, factor=1.0, **options):
    check(
        bidirectional_attention,
        bidirectional_attention_reference,
        inputs,
        grads,
        tolerance=factor * TOLERANCE[dtype],
        fast_options={"backend": backend},
        **options,
    )


#: Samples, heads, rows, columns, head dim.
SHAPES = [(1, 1, 1, 1, 32), (1, 2, 37, 17, 72), (2, 2, 9, 20, 72), (2, 1, 33, 1, 64), (1, 1, 20, 18, 128)]


@backends
@cases(SHAPES, SHAPES[1::3])
def test_either_side_may_be_longer(shape, dtype, backend):
    batch, heads, *sizes = shape
    judge(*make(*sizes, dtype, batch=batch, heads=heads), dtype, backend, factor=2)


@backends
@dtypes
@pytest.mark.parametrize("mode", ["and", "or"])
def test_masks_and_tokens_that_see_nothing(mode, dtype, backend):
    inputs, grads = make(21, 18, 40, dtype)
    judge({**inputs, **masks(21, 18)}, grads, dtype, backend, mask_mode=mode)


@dtypes
def test_column_tiles_follow_one_another(dtype, monkeypatch):
    """A short side of three tiles: rows are merged across launches, columns across parts of the stream."""
    monkeypatch.setattr(host, "configuration", lambda *_: launch.Config(16, 16, 4, 1))
    monkeypatch.setattr(host, "ranges", lambda *_: (3, 16))
    judge(*make(43, 37, 72, dtype, batch=1), dtype, "triton")
    inputs, grads = make(43, 20, 40, dtype)
    judge({**inputs, **masks(43, 20)}, grads, dtype, "triton", mask_mode="and")


def test_the_forms_for_older_devices_agree(monkeypatch):
    monkeypatch.setattr(host, "architecture", lambda device: 80)
    inputs, grads = make(43, 37, 72, torch.float16, batch=1)
    judge(inputs, grads, torch.float16, "triton", factor=2)


@backends
@dtypes
def test_rows_and_columns_of_very_different_size_keep_their_own_maxima(dtype, backend):
    """With one shared maximum, rows a hundred below it would underflow to nothing."""
    inputs, grads = make(24, 20, 64, dtype, batch=1)
    with torch.no_grad():
        inputs["q"][:, :12] *= 20
        inputs["k"][:, :8] *= 4
    judge(inputs, grads, dtype, backend, factor=8)


@backends
def test_an_empty_side_gives_zeros(backend):
    inputs, _ = make(5, 0, 32, torch.float32)
    with poisoned():
        row, col = bidirectional_attention(**inputs, backend=backend)
        row.sum().backward()
    assert col.shape == (2, 0, 1, 32) and not row.any() and not inputs["q"].grad.any()


def test_opcheck():
    inputs, grads = make(9, 7, 16, torch.float32)
    tensors = [t.detach() for t in inputs.values()]
    rest = (*masks(9, 7).values(), 1, 0.2)
    torch.library.opcheck(OP.forward, (*tensors, *rest))
    for needs in ([True] * 4, [False, True, True, False]):
        torch.library.opcheck(OP.backward, (list(grads.values()), *tensors, *rest, OP.forward(*tensors, *rest), needs))


@pytest.mark.slow
def test_compiles_as_one_graph():
    inputs, grads = make(9, 7, 40, torch.float32)
    function = lambda **x: bidirectional_attention(**x, backend="triton")  # noqa: E731
    runs = [function, torch.compile(function, fullgraph=True, backend="aot_eager")]
    want, got = (torch.autograd.grad(f(**inputs), list(inputs.values()), list(grads.values())) for f in runs)
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w)


def test_flops_count_the_logits_once():
    inputs, _ = make(9, 7, 40, torch.float32)
    with FlopCounterMode(display=False) as counter:
        row, col = bidirectional_attention(**inputs, backend="triton")
        assert counter.get_total_flops() == 3 * 2 * 2 * 9 * 7 * 40
        (row.sum() + col.sum()).backward()
    assert counter.get_total_flops() == 10 * 2 * 2 * 9 * 7 * 40


def test_autocast_and_one_unused_output():
    inputs, _ = make(9, 7, 40, torch.float32)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        row, _ = bidirectional_attention(**inputs, backend="triton")
    assert row.dtype == torch.bfloat16
    row.float().sum().backward()
    assert not inputs["v_col"].grad.any() and inputs["v_row"].grad.any()


def test_mistakes_are_told():
    inputs, _ = make(9, 7, 40, torch.float32)
    with pytest.raises(ValueError, match="the shape of k, and the shape of q"):
        bidirectional_attention(inputs["q"], inputs["k"], inputs["v_col"], inputs["v_row"])
    with pytest.raises(ValueError, match="allowed are 'and', 'or'"):
        bidirectional_attention(**inputs, mask_mode="xor")
    with pytest.raises(ValueError, match="mask_row is torch.float32"):
        bidirectional_attention(**inputs, mask_row=torch.ones(2, 9))
    with pytest.raises(BackendError, match="no padding masks"):
        bidirectional_attention(**inputs, **masks(9, 7), backend="xformers")

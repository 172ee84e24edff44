"""Selector attention: output and every gradient against the definition in float64."""

import pytest
import torch

from javisc.kernels import dispatch, selector_attention
from javisc.kernels.attention.reference import attention_reference
from javisc.kernels.selector_attention import op
from support.kernels import DEVICE, TOLERANCE, cases, check

#: B, S, N, H, d: the model's 16 queries and d 64; odd lengths, one query, one key; keys in more ranges than are merged at once.
SHAPES = [(2, 16, 140, 1, 64), (1, 5, 33, 3, 72), (1, 1, 1, 1, 32), (2, 3, 65, 1, 40), (1, 16, 560, 1, 16)]


def arguments(shape, dtype, scale=1.0):
    B, S, N, H, d = shape
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator).to(DEVICE, dtype)  # noqa: E731
    inputs = {"q": draw(B, S, H, d) * scale, "k": draw(B, N, H, d), "v": draw(B, N, H, d)}
    return {name: x.requires_grad_() for name, x in inputs.items()}, {"out": draw(B, S, H, d)}


def compare(shape, dtype, scale=1.0, tolerance=None):
    inputs, grads = arguments(shape, dtype, scale)
    check(
        selector_attention.selector_attention,
        attention_reference,
        inputs,
        grads,
        tolerance=tolerance or TOLERANCE[dtype],
        fast_options={"backend": "triton"},
    )


@cases(SHAPES, SHAPES[:3])
def test_output_and_gradients(shape, dtype):
    compare(shape, dtype)


def test_sixty_four_queries_in_half_precision():
    compare((1, 64, 130, 1, 64), torch.float16)


def test_huge_logits():
    compare((1, 4, 200, 1, 32), torch.float32, scale=60.0, tolerance=1e-4)


@pytest.mark.parametrize("shape", [(1, 2, 0, 1, 8), (0, 2, 3, 1, 8), (1, 0, 3, 1, 8)], ids=str)
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_nothing_to_attend_to_or_from(shape, backend):
    inputs, grads = arguments(shape, torch.float32)
    check(
        selector_attention.selector_attention,
        attention_reference,
        inputs,
        grads,
        tolerance=0,
        fast_options={"backend": backend},
    )


def test_slices_are_read_in_place_and_gradients_repeat_to_the_bit():
    q = torch.randn(1, 6, 2, 16, device=DEVICE, requires_grad=True)
    kv = torch.randn(1, 150, 2, 2, 16, device=DEVICE, requires_grad=True)
    runs = []
    for _ in range(2):
        out = selector_attention.selector_attention(q, *kv.unbind(2), backend="triton")
        runs.append(torch.autograd.grad(out.square().sum(), (q, kv)))
    assert all(torch.equal(a, b) for a, b in zip(*runs))
    want = attention_reference(q, *kv.unbind(2))
    torch.testing.assert_close(runs[0], torch.autograd.grad(want.square().sum(), (q, kv)), atol=1e-5, rtol=1e-5)


def test_many_queries_go_to_torch_unless_triton_is_named():
    q, k = torch.randn(1, op.FEW + 1, 1, 8), torch.randn(1, 3, 1, 8)
    with dispatch.recording() as choices:
        outs = [selector_attention.selector_attention(q, k, k, backend=backend) for backend in (None, "triton")]
    assert [name for _, name in choices] == ["torch", "triton"]
    torch.testing.assert_close(*outs)


def test_shapes_and_dtypes_that_do_not_fit():
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 5, 2, 8)
    with pytest.raises(ValueError, match=r"do not fit: give \(B, L, H, d\)"):
        selector_attention.selector_attention(q, k, k)
    with pytest.raises(ValueError, match="give one"):
        selector_attention.selector_attention(q, q.double(), q.double())


def test_flops_are_counted():
    from torch.utils.flop_counter import FlopCounterMode

    inputs, _ = arguments((2, 3, 20, 2, 16), torch.float32)
    with FlopCounterMode(display=False) as counter:
        selector_attention.selector_attention(**inputs, backend="triton").sum().backward()
    assert counter.get_total_flops() == 14 * 2 * 3 * 20 * 2 * 16


@pytest.mark.slow
def test_compiles_as_one_graph():
    inputs, _ = arguments((1, 2, 9, 1, 16), torch.float32)
    step = lambda q, k, v: selector_attention.selector_attention(q, k, v, backend="triton").square().sum()  # noqa: E731
    leaves = tuple(inputs.values())
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(*(torch.autograd.grad(f(*leaves), leaves) for f in (compiled, step)))

"""Selector attention: output and every gradient against the definition in float64, projected and absorbed."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from javisc.kernels import dispatch, selector_attention
from javisc.kernels.selector_attention import absorbed, configs, op, reference
from support.kernels import DEVICE, TOLERANCE, check, dtypes

#: B, S, N, H, d: the model's 16 queries and d 64; keys past one range, odd lengths, one query, one key.
SHAPES = [(2, 16, 300, 2, 64), (1, 5, 33, 3, 72), (1, 1, 1, 1, 32), (2, 3, 65, 1, 40), (1, 16, 1000, 1, 16)]


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
        reference.selector_attention,
        inputs,
        grads,
        tolerance=tolerance or TOLERANCE[dtype],
        fast_options={"backend": "triton"},
    )


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
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
        reference.selector_attention,
        inputs,
        grads,
        tolerance=0,
        fast_options={"backend": backend},
    )


def test_slices_are_read_in_place_and_gradients_repeat_to_the_bit():
    q = torch.randn(1, 6, 2, 16, device=DEVICE, requires_grad=True)
    kv = torch.randn(1, 300, 2, 2, 16, device=DEVICE, requires_grad=True)
    runs = []
    for _ in range(2):
        out = selector_attention.selector_attention(q, *kv.unbind(2), backend="triton")
        runs.append(torch.autograd.grad(out.square().sum(), (q, kv)))
    assert all(torch.equal(a, b) for a, b in zip(*runs))
    want = reference.selector_attention(q, *kv.unbind(2))
    torch.testing.assert_close(runs[0], torch.autograd.grad(want.square().sum(), (q, kv)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "dtype, limit", [(torch.float16, configs.MAX_QUERIES), (torch.float32, configs.MAX_QUERIES_WIDE)]
)
def test_too_many_queries_go_to_torch_and_triton_says_so(dtype, limit):
    q, k = torch.randn(1, limit + 1, 1, 8, dtype=dtype), torch.randn(1, 3, 1, 8, dtype=dtype)
    with pytest.raises(dispatch.BackendError, match="the queries stay resident"):
        selector_attention.selector_attention(q, k, k, backend="triton")
    with dispatch.recording() as choices:
        selector_attention.selector_attention(q, k, k)
    assert [name for _, name in choices] == ["torch"]


def test_ranges_hold_whole_tiles_and_fill_the_device():
    assert configs.splits(80, 784, 64) >= 4 and configs.splits(80, 12544, 64) == 13
    assert configs.splits(2048, 12544, 64) == 1 and configs.splits(1, 10, 64) == 1


def test_shapes_and_dtypes_that_do_not_fit():
    q, k = torch.randn(1, 2, 3, 8), torch.randn(1, 5, 2, 8)
    with pytest.raises(ValueError, match=r"do not fit: give \(B, L, H, d\)"):
        selector_attention.selector_attention(q, k, k)
    with pytest.raises(ValueError, match="give one"):
        selector_attention.selector_attention(q, q.double(), q.double())


def test_opcheck():
    q, k = torch.randn(1, 3, 2, 16, device=DEVICE), torch.randn(1, 9, 2, 16, device=DEVICE)
    torch.library.opcheck(op.FORWARD, (q, k, k, 0.25))
    out, lse = op.FORWARD(q, k, k, 0.25)
    torch.library.opcheck(op.BACKWARD, (out, q, k, k, out, lse, 0.25))


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


# The absorbed form.


def absorbed_arguments(B, S, N, H, d, D, dtype=torch.float32, biases=True):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator).to(DEVICE, dtype).requires_grad_()  # noqa: E731
    inputs = {"q": draw(B, S, H, d), "context": draw(B, N, D), "w_k": draw(H * d, D), "w_v": draw(H * d, D)}
    inputs["w_k"] = (inputs["w_k"].detach() / D**0.5).requires_grad_()
    inputs |= {"b_k": draw(H * d), "b_v": draw(H * d)} if biases else {"b_k": None, "b_v": None}
    return inputs, {"out": draw(B, S, H, d).detach()}


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize(
    "shape", [(2, 5, 70, 3, 8, 20), (1, 16, 33, 2, 16, 32), (1, 1, 1, 1, 4, 3), (2, 3, 0, 2, 4, 8)], ids=str
)
def test_absorbed_projections_change_nothing(shape, biases, monkeypatch):
    monkeypatch.setattr(absorbed, "CHUNK", 32)
    inputs, grads = absorbed_arguments(*shape, biases=biases)
    wide = {k: None if v is None else v.detach().double().requires_grad_() for k, v in inputs.items()}
    want = reference.absorbed_selector_attention(**wide)
    got = selector_attention.absorbed_selector_attention(**inputs)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)
    leaves = [k for k, v in inputs.items() if v is not None]
    wants = torch.autograd.grad(want, [wide[k] for k in leaves], grads["out"].double(), materialize_grads=True)
    gots = torch.autograd.grad(got, [inputs[k] for k in leaves], grads["out"], materialize_grads=True)
    for name, a, b in zip(leaves, gots, wants):
        torch.testing.assert_close(a.double(), b, atol=3e-5, rtol=1e-5, msg=lambda text, name=name: f"d{name}: {text}")


def test_absorbed_is_exact_in_float64_with_huge_logits(monkeypatch):
    monkeypatch.setattr(absorbed, "CHUNK", 16)
    inputs, _ = absorbed_arguments(1, 4, 50, 2, 8, 16, torch.float64)
    inputs["q"] = (inputs["q"].detach() * 100).requires_grad_()
    got = selector_attention.absorbed_selector_attention(**inputs)
    torch.testing.assert_close(got, reference.absorbed_selector_attention(**inputs), atol=1e-12, rtol=1e-10)


def test_absorbed_needs_no_memory_that_grows_with_the_tokens_beyond_chunks(monkeypatch):
    monkeypatch.setattr(absorbed, "CHUNK", 64)
    largest = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest.append(out.numel())
            return out

    inputs, _ = absorbed_arguments(1, 4, 1000, 2, 8, 40)
    with Watch():
        selector_attention.absorbed_selector_attention(**inputs).sum().backward()
    # Only the context and its gradient (1000 × 40) are of their size: logits (8 × 1000), keys and values (1000 × 16) never exist.
    assert max(largest) == 1000 * 40 and max(n for n in largest if n != 1000 * 40) < 8 * 1000


def test_absorbed_refuses_dropout_and_shapes_that_do_not_fit():
    inputs, _ = absorbed_arguments(1, 2, 3, 2, 4, 8)
    with pytest.raises(ValueError, match="not exact in this form"):
        selector_attention.absorbed_selector_attention(**inputs, dropout=0.1)
    with pytest.raises(ValueError, match="do not fit"):
        selector_attention.absorbed_selector_attention(**(inputs | {"w_k": inputs["w_v"][:3]}))
    with pytest.raises(dispatch.BackendError, match="it has torch"):
        selector_attention.absorbed_selector_attention(**inputs, backend="triton")

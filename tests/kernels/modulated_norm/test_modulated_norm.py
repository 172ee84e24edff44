"""Modulated norm and gated residual: every output and gradient against the definition in float64."""

import pytest
import torch

from javisc.kernels import dispatch, modulated_norm
from javisc.kernels.modulated_norm import configs, op, reference
from support.kernels import DEVICE, TOLERANCE, cases, check, dtypes, poisoned

#: B, T, S, C, masked: channels that are no power of two, odd and tiny ones, single rows and frames, rows past a program's share.
SHAPES = [
    (2, 2, 2, 1152, True),
    (1, 1, 2, 1872, False),
    (1, 2, 2, 512, True),
    (3, 2, 1, 37, True),
    (1, 1, 1, 3, False),
    (1, 2, 18, 130, True),
    (2, 1, 17, 96, False),
]
CALLS = {
    "modulated_layer_norm": ({"out"}, ("x",), ("shift", "scale")),
    "gated_residual": ({"residual"}, ("x", "y"), ("gate",)),
    "gated_residual_layer_norm": ({"residual", "out"}, ("x", "y"), ("gate", "shift", "scale")),
}


def arguments(name, shape, dtype, scale=1.0, mask=None):
    B, T, S, C, masked = shape
    generator = torch.Generator().manual_seed(0)
    outputs, rows, modulations = CALLS[name]
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    inputs = {key: (draw(B, T, S, C) * scale + 0.3).to(DEVICE, dtype).requires_grad_() for key in rows}
    inputs |= {key: draw(B, C).to(DEVICE).requires_grad_() for key in modulations}
    if masked:
        inputs |= {f"{key}0": draw(B, C).to(DEVICE).requires_grad_() for key in modulations}
        inputs["mask"] = (torch.rand(B, T, generator=generator) < 0.5).to(DEVICE) if mask is None else mask.to(DEVICE)
    grads = {key: draw(B, T, S, C).to(DEVICE) for key in ("residual", "out") if key in outputs}
    return inputs, grads


def compare(name, inputs, grads, tolerance):
    fast = getattr(modulated_norm, name)
    check(fast, reference.definition, inputs, grads, tolerance=tolerance, fast_options={"backend": "triton"})


@cases(SHAPES, (SHAPES[0], SHAPES[3], SHAPES[4]))
@pytest.mark.parametrize("name", CALLS)
def test_outputs_and_gradients(name, shape, dtype):
    inputs, grads = arguments(name, shape, dtype)
    compare(name, inputs, grads, TOLERANCE[dtype])


@pytest.mark.parametrize("truth", [True, False])
def test_frames_all_of_one_kind(truth):
    inputs, grads = arguments("gated_residual_layer_norm", (2, 3, 2, 48, True), torch.float32)
    inputs["mask"] = torch.full_like(inputs["mask"], truth)
    compare("gated_residual_layer_norm", inputs, grads, TOLERANCE[torch.float32])


def test_large_rows_far_from_zero():
    inputs, grads = arguments("modulated_layer_norm", (2, 2, 3, 72, True), torch.float32, scale=1e4)
    compare("modulated_layer_norm", inputs, grads, 2e-5)


@pytest.mark.parametrize("empty", [(0, 2, 3, 8, True), (2, 0, 3, 8, True), (2, 2, 0, 8, True)], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_no_rows(name, empty):
    inputs, grads = arguments(name, empty, torch.float32)
    compare(name, inputs, grads, 0)


@dtypes
def test_tokens_without_a_frame_axis_and_strided_modulations(dtype):
    inputs, _ = arguments("gated_residual_layer_norm", (2, 3, 4, 64, True), dtype)
    table = torch.randn(2, 6, 64, device=DEVICE)
    flat = {key: value.flatten(1, 2).detach() if value.ndim == 4 else value.detach() for key, value in inputs.items()}
    flat |= dict(zip(("gate", "gate0", "shift", "shift0", "scale", "scale0"), table.unbind(1)))
    got = modulated_norm.gated_residual_layer_norm(**flat, backend="triton")
    want = reference.definition(**flat)
    for a, b in zip(got, want):
        assert a.shape == b.shape == (2, 12, 64) and a.dtype == dtype
        torch.testing.assert_close(a, b, atol=TOLERANCE[dtype] * 8, rtol=TOLERANCE[dtype] * 4)


def test_a_mask_with_strides_is_read_as_it_is():
    inputs, grads = arguments("gated_residual_layer_norm", (2, 4, 3, 48, True), torch.float32)
    wide = torch.zeros(2, 16, dtype=torch.bool, device=DEVICE)
    wide[:, ::4] = inputs["mask"]
    wide[0, ::4] = torch.tensor([True, False, False, True])
    inputs["mask"] = wide[:, ::4]
    assert not inputs["mask"].is_contiguous()
    compare("gated_residual_layer_norm", inputs, grads, TOLERANCE[torch.float32])


def test_gradients_repeat_to_the_bit():
    inputs, grads = arguments("gated_residual_layer_norm", (1, 2, 20, 40, True), torch.float32)
    runs = []
    for _ in range(2):
        leaves = {k: v.detach().requires_grad_(v.requires_grad) for k, v in inputs.items()}
        torch.autograd.backward(
            modulated_norm.gated_residual_layer_norm(**leaves, backend="triton"), list(grads.values())
        )
        runs.append({k: v.grad for k, v in leaves.items() if v.requires_grad})
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


def test_fused_equals_the_two_ops_in_turn():
    inputs, _ = arguments("gated_residual_layer_norm", (2, 2, 3, 130, True), torch.float16)
    residual, out = modulated_norm.gated_residual_layer_norm(**inputs, backend="triton")
    mask = inputs["mask"]
    apart = modulated_norm.gated_residual(
        inputs["x"], inputs["y"], inputs["gate"], mask, inputs["gate0"], backend="triton"
    )
    normed = modulated_norm.modulated_layer_norm(
        apart, inputs["shift"], inputs["scale"], mask, inputs["shift0"], inputs["scale0"], backend="triton"
    )
    assert torch.equal(residual, apart) and torch.equal(out, normed)


def test_a_residual_in_float32_takes_a_branch_in_half_precision():
    x = torch.randn(1, 5, 40, device=DEVICE, requires_grad=True)
    y = torch.randn(1, 5, 40, device=DEVICE, dtype=torch.float16, requires_grad=True)
    gate = torch.randn(1, 40, device=DEVICE)
    with poisoned():
        out = modulated_norm.gated_residual(x, y, gate, backend="triton")
        out.sum().backward()
    assert out.dtype == torch.float32 and y.grad.dtype == torch.float16
    torch.testing.assert_close(out, reference.definition(x, y, gate))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"shift": torch.zeros(2, 1, 8)}, r"shift has shape \(2, 1, 8\): it must be \(B, C\) = \(2, 8\)"),
        ({"shift0": torch.zeros(2, 8)}, "mask and shift0 go together"),
        ({"x": torch.zeros(2, 8)}, r"give \(B, N, C\) or \(B, T, S, C\)"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "T frames of equal length"),
        ({"mask": torch.ones(2, 3)}, "give bool"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    call = {"x": torch.zeros(2, 6, 8), "shift": torch.zeros(2, 8), "scale": torch.zeros(2, 8)} | change
    with pytest.raises(ValueError, match=message):
        modulated_norm.modulated_layer_norm(**call)


def test_a_row_too_wide_for_registers_goes_to_torch_and_says_so():
    x = torch.zeros(1, 2, configs.MAX_CHANNELS + 1)
    with pytest.raises(dispatch.BackendError, match="at most 4096 channels"):
        modulated_norm.gated_residual(x, x, x[:, 0], backend="triton")
    assert modulated_norm.gated_residual(x, x, x[:, 0]).shape == x.shape


def test_opcheck():
    x, y = torch.randn(2, 2, 1, 16, device=DEVICE), torch.randn(2, 2, 1, 16, device=DEVICE)
    m = [torch.randn(2, 16, device=DEVICE) for _ in range(6)]
    mask = torch.tensor([[True, False], [False, False]], device=DEVICE)
    both, norm = (x, y, *m, mask, 1e-6), (x, None, None, None, m[0], None, m[1], None, None, 1e-6)
    torch.library.opcheck(op.OP.forward, both)
    torch.library.opcheck(op.OP.forward, norm)
    torch.library.opcheck(op.OP.backward, ([x, y], None, *both[1:], op.OP.forward(*both), [True] * 8))
    needs = [True, False, False, False, True, False, True, False]
    torch.library.opcheck(op.OP.backward, ([x], *norm, op.OP.forward(*norm), needs))


@pytest.mark.slow
def test_compiles_as_one_graph():
    inputs, grads = arguments("gated_residual_layer_norm", (1, 2, 3, 24, True), torch.float32)

    def step(**kw):
        return modulated_norm.gated_residual_layer_norm(**kw, backend="triton")

    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = {k: v.detach().requires_grad_(v.requires_grad) for k, v in inputs.items()}
        torch.autograd.backward(function(**leaves), list(grads.values()))
        results.append([v.grad for v in leaves.values() if v.requires_grad])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("samples", [0, 1])
def test_one_channel_of_any_step_is_contiguous(samples):
    """Where a dimension has one element or none its step says nothing, and is not read by."""
    x = torch.rand(samples, 1, 1, 3, dtype=torch.float16, device=DEVICE)[..., ::3].requires_grad_()
    y, row = torch.rand(samples, 1, 1, 1, dtype=torch.float16, device=DEVICE), torch.rand(samples, 1, device=DEVICE)
    assert x.stride(-1) == 3 and x.is_contiguous()
    residual, out = modulated_norm.gated_residual_layer_norm(x, y, row, row, row, backend="triton")
    (residual.sum() + out.sum()).backward()
    assert residual.shape == out.shape == x.grad.shape == x.shape
    assert torch.allclose(residual.float(), (x + row[:, None, None] * y).float(), atol=2e-3)

"""Head norm and rope: output and every gradient against the definition in float64; slices read in place; fixtures."""

import json

import pytest
import torch
from safetensors import safe_open

from javisc.kernels import rms_norm_rope as package
from javisc.kernels.rms_norm_rope import op, reference, rms_norm_rope
from support.kernels import DEVICE, TOLERANCE, check, dtypes
from support.shared import PARITY, need

#: leading axes, L, H, d, norm, rope
SHAPES = [
    ((2,), 7, 3, 72, True, True),
    ((3, 2), 5, 2, 32, True, False),
    ((2,), 9, 2, 16, False, True),
    ((1,), 1, 1, 37, True, False),
    ((), 35, 3, 64, True, True),
    ((2, 0), 4, 2, 8, True, True),
    ((1,), 2, 1, 200, True, True),
]


def arguments(shape, dtype, scale=1.0):
    lead, L, H, d, norm, rope = shape
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(*lead, L, H, d, generator=generator) * scale).to(DEVICE, dtype).requires_grad_()
    inputs = {"x": x, "weight": torch.randn(d, generator=generator).to(DEVICE).requires_grad_() if norm else None}
    if rope:
        angles = torch.rand(L, d // 2, generator=generator) * 6
        inputs |= {"cos": angles.cos().to(DEVICE), "sin": angles.sin().to(DEVICE)}
    return inputs, {"out": torch.randn(x.shape, generator=generator).to(DEVICE)}


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients(shape, dtype):
    inputs, grads = arguments(shape, dtype)
    check(
        rms_norm_rope,
        reference.rms_norm_rope,
        inputs,
        grads,
        tolerance=TOLERANCE[dtype],
        fast_options={"backend": "triton"},
    )


@pytest.mark.parametrize("scale", [0.0, 1e-5, 1e4])
def test_tiny_and_large_heads(scale):
    inputs, grads = arguments(((2,), 3, 2, 24, True, True), torch.float32, scale)
    check(rms_norm_rope, reference.rms_norm_rope, inputs, grads, tolerance=3e-6, fast_options={"backend": "triton"})


def test_a_slice_of_the_projection_is_read_in_place_and_gradients_repeat_to_the_bit():
    qkv = torch.randn(2, 3, 9, 3, 2, 16, device=DEVICE, requires_grad=True)
    weight = torch.randn(16, device=DEVICE, requires_grad=True)
    angles = torch.rand(9, 8, device=DEVICE)
    runs = []
    for _ in range(2):
        out = rms_norm_rope(qkv[..., 1, :, :], weight, angles.cos(), angles.sin(), backend="triton")
        runs.append(torch.autograd.grad(out.square().sum(), (qkv, weight)))
    assert all(torch.equal(a, b) for a, b in zip(*runs))
    want = reference.rms_norm_rope(qkv[..., 1, :, :], weight, angles.cos(), angles.sin())
    torch.testing.assert_close(runs[0], torch.autograd.grad(want.square().sum(), (qkv, weight)))


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", ["rmsnorm", "rope"])
def test_fixture(name, backend):
    path = need(PARITY / "javisdit" / f"{name}.safetensors")
    with safe_open(path, "pt") as f:
        cases = json.loads(f.metadata()["meta"])["cases"]
        tensors = {key: f.get_tensor(key).to(DEVICE) for key in f.keys()}  # noqa: SIM118  safe_open has no iterator
    for case in cases:
        x, want = tensors[f"{case}/in/x"], tensors[f"{case}/out/y"]
        if name == "rmsnorm":
            got = rms_norm_rope(x, tensors["w/weight"], backend=backend)
        else:  # fixtures are (B, H, L, d)
            angles = torch.arange(x.shape[2], device=DEVICE)[:, None] * tensors["w/freqs"]
            got = rms_norm_rope(x.transpose(1, 2), None, angles.cos(), angles.sin(), backend=backend).transpose(1, 2)
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight": torch.ones(7)}, r"give \(…, L, H, d\) and \(d,\)"),
        ({"cos": torch.ones(4, 4)}, "cos and sin go together"),
        ({"cos": torch.ones(3, 4), "sin": torch.ones(3, 4)}, r"give \(L, d/2\)"),
        ({"cos": torch.ones(4, 4, requires_grad=True), "sin": torch.ones(4, 4)}, "detach"),
    ],
)
def test_arguments_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        package.rms_norm_rope(**({"x": torch.ones(2, 4, 3, 8), "weight": torch.ones(8)} | change))


def test_opcheck():
    x, weight, cos = (torch.randn(*size, device=DEVICE) for size in ((2, 3, 2, 8), (8,), (3, 4)))
    torch.library.opcheck(op.FORWARD, (x, weight, cos, cos, 1e-6))
    torch.library.opcheck(op.BACKWARD, (x, x, weight, None, None, 1e-6))
    torch.library.opcheck(op.BACKWARD, (x, x, None, cos, cos, 1e-6))


@pytest.mark.slow
def test_compiles_as_one_graph():
    x, weight, cos = (torch.randn(*size, device=DEVICE, requires_grad=True) for size in ((1, 3, 2, 8), (8,), (3, 4)))
    cos = cos.detach()
    step = lambda x, weight: rms_norm_rope(x, weight, cos, cos, backend="triton").square().sum()  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(f(x, weight), (x, weight)) for f in (compiled, step))
    torch.testing.assert_close(got, want)

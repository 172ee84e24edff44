"""Prior attention: both scopes against the definition in float64, and the definition against repeated keys and the fixtures."""

import json

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from javisc.kernels.modulated_norm import gated_residual, gated_residual_layer_norm, modulated_layer_norm
from javisc.kernels.prior_attention import prior_attention, reference
from support.kernels import DEVICE, TOLERANCE, cases, check, kinds_once
from support.shared import PARITY, need

#: B, N, P, H, d: one key block and several, odd sizes, one query, one key.
SHAPES = [(2, 17, 32, 1, 72), (3, 9, 18, 2, 32), (2, 33, 5, 1, 64), (1, 1, 1, 1, 40)]


def arguments(shape, dtype, scale=1.0):
    B, N, P, H, d = shape
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator).to(DEVICE, dtype)  # noqa: E731
    inputs = {"q": draw(B, N, H, d) * scale, "k": draw(B, P, H, d), "v": draw(B, P, H, d)}
    return {name: x.requires_grad_() for name, x in inputs.items()}, {"out": draw(B, N, H, d)}


def compare(shape, dtype, scope, scale=1.0, tolerance=None):
    inputs, grads = arguments(shape, dtype, scale)
    check(
        prior_attention,
        reference.prior_attention,
        inputs,
        grads,
        tolerance=tolerance or TOLERANCE[dtype],
        fast_options={"backend": "triton"},
        scope=scope,
    )


@cases(SHAPES, SHAPES[:2])
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_output_and_gradients(shape, scope, dtype):
    compare(shape, dtype, scope)


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_huge_logits(scope):
    compare((3, 20, 30, 1, 32), torch.float32, scope, scale=60.0, tolerance=1e-4)


@pytest.mark.parametrize("shape", [(2, 3, 0, 1, 8), (2, 0, 3, 1, 8), (0, 2, 3, 1, 8)], ids=str)
@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_nothing_to_attend_to_or_from(shape, scope):
    compare(shape, torch.float32, scope)


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_gradients_repeat_to_the_bit(scope):
    inputs, grads = arguments((2, 40, 20, 1, 16), torch.float32)
    leaves = tuple(inputs.values())
    runs = [
        torch.autograd.grad(prior_attention(*leaves, scope=scope, backend="triton"), leaves, grads["out"]) for _ in "ab"
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_distinct_keys_equal_the_keys_repeated_for_every_frame(backend):
    inputs, _ = arguments((2, 12, 3, 2, 16), torch.float32)
    q, k, v = inputs.values()
    many = [x.repeat_interleave(7, 1).reshape(1, -1, 2, 16).transpose(1, 2) for x in (k, v)]
    want = scaled_dot_product_attention(q.reshape(1, -1, 2, 16).transpose(1, 2), *many).transpose(1, 2).reshape(q.shape)
    torch.testing.assert_close(prior_attention(q, k, v, scope="batch", backend=backend), want, atol=1e-5, rtol=1e-5)


def test_scopes_differ_and_agree_for_one_sample():
    inputs, _ = arguments((2, 4, 3, 1, 8), torch.float32)
    batch, sample = (prior_attention(**inputs, scope=scope) for scope in ("batch", "sample"))
    assert (batch - sample).abs().max() > 1e-2
    one = {name: x[:1] for name, x in inputs.items()}
    torch.testing.assert_close(prior_attention(**one, scope="batch"), prior_attention(**one, scope="sample"))
    with pytest.raises(ValueError, match="give 'batch'"):
        prior_attention(**inputs, scope="rows")


@pytest.mark.slow
def test_compiles_as_one_graph():
    inputs, _ = arguments((2, 9, 3, 1, 16), torch.float32)
    leaves = tuple(inputs.values())
    step = lambda q, k, v: prior_attention(q, k, v, scope="batch", backend="triton").square().sum()  # noqa: E731
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(*(torch.autograd.grad(f(*leaves), leaves) for f in (compiled, step)))


def block(tensors, case, heads, frames, scope, backend):
    """The reference's prior block out of our ops: norm, attention to one prior, gate, twice, then the MLP."""
    w = {key[2:]: value for key, value in tensors.items() if key.startswith("w/")}
    x = tensors[f"{case}/in/x"]
    B, N, C = x.shape
    mask = tensors.get(f"{case}/in/x_mask")
    mask = None if mask is None else mask.bool()

    def modulations(name):
        t = tensors.get(f"{case}/in/{name}")
        return [None] * 9 if t is None else list((w["scale_shift_table"] + t.view(B, 9, C)).unbind(1))

    m, m0 = modulations("t"), modulations("t0")
    residual, normed = x, modulated_layer_norm(x, m[0], m[1], mask, m0[0], m0[1], backend=backend)
    for i, name in enumerate(("spatial", "temporal")):
        prior, at = tensors[f"{case}/in/{name}_prior"], f"{name}_cross_attn."
        q = linear(normed, w[f"{at}q_linear.weight"], w[f"{at}q_linear.bias"]).view(B, N, heads, -1)
        kv = linear(prior, w[f"{at}kv_linear.weight"], w[f"{at}kv_linear.bias"]).view(B, -1, 2, heads, C // heads)
        out = prior_attention(q, *kv.unbind(2), scope=scope, backend=backend).flatten(2)
        out = linear(out, w[f"{at}proj.weight"], w[f"{at}proj.bias"])
        g, n = 3 * i + 2, 3 * i + 3
        residual, normed = gated_residual_layer_norm(
            residual, out, m[g], m[n], m[n + 1], mask, m0[g], m0[n], m0[n + 1], backend=backend
        )
    out = linear(
        gelu(linear(normed, w["mlp.fc1.weight"], w["mlp.fc1.bias"]), approximate="tanh"),
        w["mlp.fc2.weight"],
        w["mlp.fc2.bias"],
    )
    return gated_residual(residual, out, m[8], mask, m0[8], backend=backend)


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_fixture_of_the_prior_block(backend, monkeypatch):
    path = need(PARITY / "javisdit" / "cross_stdit3_block_cross_attn.safetensors")
    with safe_open(path, "pt") as f:
        meta = json.loads(f.metadata()["meta"])
        tensors = {key: f.get_tensor(key).to(DEVICE) for key in f.keys()}  # noqa: SIM118  safe_open has no iterator
    assert any(f"{case}/in/x_mask" in tensors for case in meta["cases"])
    keys = {"batch": "x", "sample": "x_per_sample"}
    tried = [(case, scope) for case in meta["cases"] for scope in keys if f"{case}/out/{keys[scope]}" in tensors]
    if backend == "triton":  # slow in the interpreter: with frame masks and without, either scope
        tried = [pair for pair in tried if pair in (("b2_framemask", "batch"), ("b2", "sample"))]
        assert len(tried) == 2
        kinds_once(monkeypatch)
    for case, scope in tried:
        want = tensors[f"{case}/out/{keys[scope]}"]
        got = block(tensors, case, meta["config"]["heads"], meta["cases"][case]["T"], scope, backend)
        assert (got - want).abs().max() <= 2e-5 * want.abs().max(), (case, scope)

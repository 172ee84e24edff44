"""temporal_attention against its definition in float64: the output and every gradient, on every backend that runs here."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from javisc.kernels.dispatch import BackendError
from javisc.kernels.temporal_attention import configs, host, rope_table, temporal_attention
from javisc.kernels.temporal_attention.op import OP
from javisc.kernels.temporal_attention.reference import temporal_attention_reference
from support.kernels import DEVICE, TOLERANCE, cases, check, dtypes

backends = pytest.mark.parametrize("backend", ["triton", "torch"])


def make(times, positions, head_dim, dtype, *, batch=2, heads=1, norm=True, rope=True, spread=1.0):
    g = torch.Generator().manual_seed(times * positions)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    inputs = {"qkv": (draw(batch, times, positions, 3, heads, head_dim) * spread).to(DEVICE, dtype).requires_grad_()}
    if norm:
        inputs |= {n: (1 + 0.3 * draw(head_dim)).to(DEVICE).requires_grad_() for n in ("q_weight", "k_weight")}
    if rope:
        freqs = 10000 ** (-torch.arange(0, head_dim, 2) / head_dim)
        inputs |= dict(zip(("cos", "sin"), rope_table(freqs.to(DEVICE), times)))
    return inputs, {"o": draw(batch, times, positions, heads, head_dim).to(DEVICE, dtype)}


def judge(inputs, grads, dtype, backend, factor=1.0):
    tolerance = factor * TOLERANCE[dtype]
    check(
        temporal_attention,
        temporal_attention_reference,
        inputs,
        grads,
        tolerance=tolerance,
        fast_options={"backend": backend},
    )


#: Samples, times, positions, head dim: positions in one tile and in several.
TILES = [(2, 1, 3, 64), (1, 15, 5, 72), (1, 30, 1, 72), (2, 17, 2, 40), (1, 60, 1, 32)]


@backends
@cases(TILES, TILES)
def test_tiles(shape, dtype, backend):
    batch, *sizes = shape
    judge(*make(*sizes, dtype, batch=batch), dtype, backend, factor=2)


@cases([(False, False), (True, False), (False, True)], [(True, False)])
def test_norm_and_rotation_are_each_optional(shape, dtype):
    norm, rope = shape
    judge(*make(5, 3, 72, dtype, norm=norm, rope=rope, heads=2), dtype, "triton")


@pytest.mark.parametrize("times", [15, 60])
def test_the_tiles_of_older_devices_agree(times, monkeypatch):
    monkeypatch.setattr(host, "architecture", lambda device: 80)
    judge(*make(times, 3, 72, torch.float16, batch=1), torch.float16, "triton", factor=2)


def test_more_than_a_tile_of_times_is_streamed():
    """In half precision, whose tiles are large; what is streamed in float32 the next test sees."""
    judge(*make(130, 1, 72, torch.float16, batch=1), torch.float16, "triton", factor=2)


@dtypes
def test_streaming_many_positions(dtype, monkeypatch):
    monkeypatch.setattr(host, "longest_tile", lambda *_: 4)
    judge(*make(9, 3, 40, dtype, batch=1, heads=2), dtype, "triton", factor=2)


@backends
@dtypes
def test_huge_logits(dtype, backend):
    judge(*make(9, 2, 64, dtype, norm=False, spread=7.0), dtype, backend, factor=8)


def test_opcheck():
    inputs, grads = make(5, 2, 32, torch.float32, batch=1)
    qkv, *rest = (t.detach() for t in inputs.values())
    call = (qkv, *rest, 1e-6, 0.2)
    torch.library.opcheck(OP.forward, call)
    for needs in ([True] * 3, [False, True, False]):
        torch.library.opcheck(OP.backward, ([grads["o"]], *call, OP.forward(*call), needs))


def test_opcheck_of_the_streamed_form(monkeypatch):
    monkeypatch.setattr(host, "longest_tile", lambda *_: 4)
    inputs, grads = make(9, 2, 32, torch.float32, batch=1)
    qkv, *rest = (t.detach() for t in inputs.values())
    call = (qkv, *rest, 1e-6, 0.2)
    saved = OP.forward(*call)
    assert saved[1].shape == (1, 2 * 9), "not streamed"
    torch.library.opcheck(OP.forward, call)
    torch.library.opcheck(OP.backward, ([grads["o"]], *call, saved, [True] * 3))


@pytest.mark.slow
def test_the_streamed_form_compiles_as_one_graph():
    """129 times: more than any tile holds, so that nothing needs to be patched under the compiler."""
    inputs, grads = make(129, 1, 32, torch.float16, batch=1)
    leaves = [t for t in inputs.values() if t.requires_grad]
    function = lambda **x: temporal_attention(**x, backend="triton")  # noqa: E731
    runs = [function, torch.compile(function, fullgraph=True, backend="aot_eager")]
    want, got = (torch.autograd.grad(f(**inputs), leaves, grads["o"]) for f in runs)
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w)


def test_every_sequence_that_a_tile_may_hold_has_a_configuration():
    for arch in (80, 90):
        for head_dim in (16, 72, 128):
            for times in range(1, configs.longest_tile(head_dim, arch) + 1):
                for kind in ("fwd", "bwd"):
                    found = configs.configuration(kind, times, head_dim, arch, 2)
                    assert times <= found.columns <= found.rows and found.rows % found.columns == 0


@pytest.mark.slow
@backends
def test_compiles_as_one_graph(backend):
    inputs, grads = make(5, 3, 32, torch.float32)
    leaves = [t for t in inputs.values() if t.requires_grad]
    function = lambda **x: temporal_attention(**x, backend=backend)  # noqa: E731
    runs = [function, torch.compile(function, fullgraph=True, backend="aot_eager")]
    want, got = (torch.autograd.grad(f(**inputs), leaves, grads["o"]) for f in runs)
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w)


def test_flops_and_autocast():
    inputs, _ = make(5, 3, 32, torch.float32)
    with FlopCounterMode(display=False) as counter, torch.autocast(DEVICE.type, torch.bfloat16):
        out = temporal_attention(**inputs, backend="triton")
    assert out.dtype == torch.bfloat16
    assert counter.get_total_flops() == 4 * 2 * 3 * 5 * 5 * 32


def test_mistakes_are_told():
    inputs, _ = make(5, 3, 32, torch.float32)
    with pytest.raises(ValueError, match=r"\(B, T, S, 3, H, D\)"):
        temporal_attention(inputs["qkv"][:, :, :, :2])
    with pytest.raises(ValueError, match="both cos and sin"):
        temporal_attention(inputs["qkv"], cos=inputs["cos"])
    with pytest.raises(ValueError, match=r"cos has shape \(4, 16\); give \(5, 16\)"):
        temporal_attention(inputs["qkv"], cos=inputs["cos"][:4], sin=inputs["sin"])
    with pytest.raises(BackendError, match="it has triton, torch"):
        temporal_attention(inputs["qkv"], backend="xformers")

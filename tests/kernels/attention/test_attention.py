"""attention against its definition in float64: forward and every gradient, for every backend that runs here."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from javisc.kernels import dispatch
from javisc.kernels.attention import attention, fallback, host
from javisc.kernels.attention.op import OP
from javisc.kernels.attention.reference import attention_reference
from javisc.kernels.dispatch import BackendError
from support.kernels import DEVICE, TOLERANCE, cases, check, dtypes, poisoned, relative_error

BACKENDS = ["triton", "torch", *(["xformers"] if DEVICE.type == "cuda" else [])]
backends = pytest.mark.parametrize("backend", BACKENDS)


def make(shape_q, shape_k, dtype, seed=0, norm=False, spread=1.0):
    """q, k, v (and gains) that require gradients, and the output's gradient."""
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g).to(DEVICE, dtype)  # noqa: E731
    inputs = {"q": draw(*shape_q) * spread, "k": draw(*shape_k) * spread, "v": draw(*shape_k)}
    if norm:
        inputs |= {n: (1 + 0.3 * torch.randn(shape_q[-1], generator=g)).to(DEVICE) for n in ("q_weight", "k_weight")}
    return {n: t.requires_grad_() for n, t in inputs.items()}, {"o": draw(*shape_q)}


def ints(*values):
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


#: Samples, heads, queries, keys, head dim, norms.
DENSE = [
    (1, 1, 1, 1, 32, False),
    (2, 2, 17, 5, 72, True),
    (1, 2, 33, 40, 72, False),
    (2, 1, 5, 33, 64, True),
    (1, 2, 19, 16, 128, False),
    (2, 1, 8, 7, 96, True),
    (2, 2, 3, 9, 40, False),
]


@backends
@cases(DENSE, DENSE[1:4])  # the others take the tile of short sequences too
def test_dense(shape, dtype, backend):
    samples, heads, length_q, length_k, head_dim, norm = shape
    inputs, grads = make((samples, length_q, heads, head_dim), (samples, length_k, heads, head_dim), dtype, norm=norm)
    check(attention, attention_reference, inputs, grads, tolerance=TOLERANCE[dtype], fast_options={"backend": backend})


@backends
@cases([False, True], [True])
def test_packed_on_both_sides_with_empty_sequences(shape, dtype, backend):
    bounds = {
        "cu_seqlens_q": ints(0, 0, 7, 24, 25),
        "cu_seqlens_k": ints(0, 3, 3, 22, 23),
        "max_seqlen_q": 17,
        "max_seqlen_k": 19,
    }
    inputs, grads = make((25, 2, 72), (23, 2, 72), dtype, norm=shape)
    check(
        attention,
        attention_reference,
        inputs,
        grads,
        tolerance=TOLERANCE[dtype],
        fast_options={"backend": backend},
        **bounds,
    )


@backends
@dtypes
def test_dense_queries_on_packed_text(dtype, backend):
    bounds = {"cu_seqlens_k": ints(0, 3, 3, 23), "max_seqlen_k": 20}
    inputs, grads = make((3, 10, 2, 72), (23, 2, 72), dtype)
    check(
        attention,
        attention_reference,
        inputs,
        grads,
        tolerance=TOLERANCE[dtype],
        fast_options={"backend": backend},
        **bounds,
    )


@backends
@cases([False, True], [False])
def test_padded_lengths_hide_what_lies_beyond_them(shape, dtype, backend):
    lengths = {"lengths_q": ints(19, 0, 4), "lengths_k": ints(3, 5, 0)}
    inputs, grads = make((3, 19, 2, 40), (3, 18, 2, 40), dtype, norm=shape)
    with torch.no_grad():
        inputs["k"][0, 3:] = 50.0
        inputs["v"][0, 3:] = 50.0
    check(
        attention,
        attention_reference,
        inputs,
        grads,
        tolerance=TOLERANCE[dtype],
        fast_options={"backend": backend},
        **lengths,
    )


@backends
def test_rows_beyond_the_last_packed_sequence_are_zero(backend):
    inputs, _ = make((9, 1, 32), (8, 1, 32), torch.float32)
    bounds = {"cu_seqlens_q": ints(0, 4), "cu_seqlens_k": ints(0, 5), "max_seqlen_q": 4, "max_seqlen_k": 5}
    with poisoned():
        out = attention(**inputs, **bounds, backend=backend)
        out.sum().backward()
    assert not out[4:].any() and not inputs["q"].grad[4:].any()
    assert not inputs["k"].grad[5:].any() and not inputs["v"].grad[5:].any()


@backends
@dtypes
def test_huge_logits(dtype, backend):
    """Logits of several hundred: a softmax that does not subtract each row's own maximum overflows or loses rows."""
    inputs, grads = make((1, 33, 1, 64), (1, 35, 1, 64), dtype, spread=8.0)
    tolerance = 4 * TOLERANCE[dtype] if dtype == torch.float32 else 8 * TOLERANCE[dtype]
    check(attention, attention_reference, inputs, grads, tolerance=tolerance, fast_options={"backend": backend})


def test_views_of_a_projection_are_read_in_place():
    qkv = torch.randn(2, 18, 3, 2, 72, device=DEVICE, requires_grad=True)
    q, k, v = qkv.unbind(2)
    assert host.aligned(q) is q
    got = attention(q, k, v, backend="triton")
    want = attention_reference(*(t.detach().double() for t in (q, k, v)))
    assert relative_error(got, want) <= TOLERANCE[torch.float32]


def test_key_tiles_that_share_out_their_queries_agree_with_the_definition(monkeypatch):
    inputs, grads = make((1, 50, 2, 32), (1, 17, 2, 32), torch.float32)
    monkeypatch.setattr(host, "parts", lambda *_, **__: 3)
    check(
        attention,
        attention_reference,
        inputs,
        grads,
        tolerance=TOLERANCE[torch.float32],
        fast_options={"backend": "triton"},
    )


def arguments(norm=True):
    inputs, grads = make((2, 9, 1, 16), (2, 7, 1, 16), torch.float32, norm=norm)
    q, k, v, *gains = (t.detach() for t in inputs.values())
    gains = gains or [None, None]
    return (q, k, v, None, ints(7, 3), 9, 7, *gains, 1e-6, 0.2), grads["o"]


@pytest.mark.parametrize("norm", [False, True])
def test_opcheck(norm):
    (q, k, v, bq, bk, mq, mk, wq, wk, eps, scale), do = arguments(norm)
    inputs = (q, k, v, bq, bk, mq, mk, wq, wk, eps, scale)
    torch.library.opcheck(OP.forward, inputs)
    for needs in ([True, True, True, norm, norm], [False, True, False, False, norm]):
        torch.library.opcheck(OP.backward, ([do], *inputs, OP.forward(*inputs), needs))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_compiles_as_one_graph(backend):
    inputs, grads = make((2, 9, 2, 40), (16, 2, 40), torch.float32, norm=True)
    options = {"cu_seqlens_k": ints(0, 6, 16), "max_seqlen_k": 10, "backend": backend}
    compiled = torch.compile(lambda **x: attention(**x, **options), fullgraph=True, backend="aot_eager")
    want = torch.autograd.grad(attention(**inputs, **options), list(inputs.values()), grads["o"])
    got = torch.autograd.grad(compiled(**inputs), list(inputs.values()), grads["o"])
    for g, w in zip(got, want):
        torch.testing.assert_close(g, w)


def test_flops_follow_the_real_lengths():
    inputs, _ = make((2, 9, 2, 40), (16, 2, 40), torch.float32)
    with FlopCounterMode(display=False) as counter:
        out = attention(**inputs, cu_seqlens_k=ints(0, 6, 16), max_seqlen_k=10, backend="triton")
    pairs = 9 * 6 + 9 * 10
    assert counter.get_total_flops() == 4 * 2 * 40 * pairs
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 10 * 2 * 40 * pairs


def test_autocast_runs_in_the_autocast_dtype():
    inputs, _ = make((1, 5, 1, 32), (1, 5, 1, 32), torch.float32)
    with torch.autocast(DEVICE.type, torch.bfloat16), dispatch.recording() as choices:
        out = attention(**inputs, backend="triton")
    assert out.dtype == torch.bfloat16 == choices[0][0].dtype
    out.float().sum().backward()
    assert inputs["q"].grad.dtype == torch.float32
    assert relative_error(out, attention_reference(**{n: t.detach() for n, t in inputs.items()})) < 3e-2


def test_gradients_repeat_to_the_bit():
    inputs, grads = make((1, 40, 2, 72), (1, 24, 2, 72), torch.float16, norm=True)
    runs = [
        torch.autograd.grad(attention(**inputs, backend="triton"), list(inputs.values()), grads["o"]) for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_mistakes_are_told():
    q, k = torch.zeros(2, 3, 2, 40), torch.zeros(2, 5, 2, 40)
    with pytest.raises(ValueError, match="both q_weight and k_weight"):
        attention(q, k, k, q_weight=torch.ones(40))
    with pytest.raises(ValueError, match="k and v must agree"):
        attention(q, k, q)
    with pytest.raises(ValueError, match=r"cu_seqlens_k \(B \+ 1\) and max_seqlen_k"):
        attention(q, k[0], k[0])
    with pytest.raises(ValueError, match="must be positive"):
        attention(q, k, k, scale=0.0)
    with pytest.raises(BackendError, match="head dims from 8 to 128"):
        attention(*(torch.zeros(1, 2, 1, 136),) * 3, backend="triton")
    if DEVICE.type == "cpu":
        with pytest.raises(BackendError, match="xformers has no attention operator for cpu"):
            attention(q, k, k, backend="xformers")


@pytest.mark.skipif(DEVICE.type == "cuda", reason="with a device the real operator is tested")
@pytest.mark.parametrize("kind", ["packed", "padded", "all empty"])
def test_xformers_is_handed_the_non_empty_sequences(kind, monkeypatch):
    """xformers has no CPU operator: its own mask, materialised, stands in, so that packing and unpacking are judged here."""
    fmha = pytest.importorskip("xformers.ops.fmha")

    def operator(q, k, v, bias, scale):
        mask = bias.materialize((q.shape[1], k.shape[1]))
        logits = torch.einsum("bihd,bjhd->bhij", q, k) * scale + mask
        return torch.einsum("bhij,bjhd->bihd", logits.softmax(-1), v)

    monkeypatch.setattr(fmha, "memory_efficient_attention", operator)
    if kind == "packed":
        bounds = (ints(0, 0, 7, 24, 25), ints(0, 3, 3, 22, 23), 17, 19)
        inputs, _ = make((25, 2, 32), (23, 2, 32), torch.float32)
        names = dict(zip(("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"), bounds))
    else:
        bounds = (ints(9, 4, 3), ints(3, 0, 5) if kind == "padded" else ints(0, 0, 0), 9, 7)
        inputs, _ = make((3, 9, 2, 32), (3, 7, 2, 32), torch.float32)
        names = dict(zip(("lengths_q", "lengths_k"), bounds))
    out = fallback.padded(fallback.by_xformers, *inputs.values(), *bounds, None, None, 1e-6, 0.2)
    torch.testing.assert_close(out, attention_reference(**inputs, **names, scale=0.2))

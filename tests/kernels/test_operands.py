"""Whatever the layout of its operands, an op gives the bits that it gives on contiguous copies: outputs and every gradient.

Views of every kind are drawn: strided, flipped, expanded, transposed, off the alignment, lazily negated; and empty axes.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from javisc.kernels import dispatch, survey
from javisc.kernels.attention import attention
from javisc.kernels.attention.reference import attention_reference
from javisc.kernels.bidirectional_attention import bidirectional_attention
from javisc.kernels.modulated_norm import gated_residual, gated_residual_layer_norm, modulated_layer_norm
from javisc.kernels.prior_attention import prior_attention
from javisc.kernels.selector_attention import selector_attention
from javisc.kernels.temporal_attention import host as temporal
from javisc.kernels.temporal_attention import temporal_attention
from support.kernels import DEVICE, TOLERANCE, poisoned, relative_error

B, H, D, C = 2, 2, 16, 24


def strided(x):
    """Every other element of a wider tensor along the last axis."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), 7)
    wide[..., ::2] = x
    return wide[..., ::2]


def rows_apart(x):
    """Rows with others between them."""
    wide = x.new_full((x.shape[0], 3, *x.shape[1:]), 7)
    wide[:, 1] = x
    return wide[:, 1]


def transposed(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def misaligned(x):
    """One element off the start of its memory."""
    flat = x.new_full((x.numel() + 1,), 7)
    flat[1:] = x.flatten()
    return flat[1:].view(x.shape)


def expanded(x):
    """Its first row, for all rows: stride 0."""
    return x[:1].expand(x.shape) if len(x) else x


def negated(x):
    """A view whose memory holds the negative (torch's lazy negation, as the imaginary part of a conjugate has it)."""
    if not x.is_floating_point() or x.dtype not in (torch.float32, torch.float64):
        return x
    return torch.complex(torch.zeros_like(x), -x).conj().imag


LAYOUTS = {f.__name__: f for f in (strided, rows_apart, transposed, misaligned, expanded, negated)}


def ints(*values):
    return torch.tensor(values, dtype=torch.int64, device=DEVICE)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 17 * len(shape))).to(DEVICE)


def bools(*shape):
    return (torch.arange(math.prod(shape)).view(shape) % 3 > 0).to(DEVICE)


def angles(length):
    return draw(length, D // 2, seed=3)


def attention_inputs(n, m):
    q, k, v = draw(B, n, H, D), draw(B, m, H, D, seed=1), draw(B, m, H, D, seed=2)
    lengths = {"lengths_q": ints(n, n // 2), "lengths_k": ints(m // 2, m)}
    return {"q": q, "k": k, "v": v, "q_weight": draw(D), "k_weight": draw(D, seed=1), **lengths}


def packed_inputs(n, m):
    q, k, v = draw(n, H, D), draw(m, H, D, seed=1), draw(m, H, D, seed=2)
    return {"q": q, "k": k, "v": v, "cu_seqlens_q": ints(0, n // 3, n), "cu_seqlens_k": ints(0, m // 2, m)}


def norm_inputs(n, m, rows, names):
    inputs = {name: draw(B, 2, n, C, seed=i) for i, name in enumerate(rows)}
    inputs |= {f"{name}{zero}": draw(B, C, seed=i) for i, name in enumerate(names) for zero in ("", "0")}
    return inputs | {"mask": bools(B, 2)}


#: name → (op, its inputs for two lengths, options). The names of tensors are those of the op's arguments.
OPS = {
    "attention": (attention, attention_inputs, lambda n, m: {}),
    "attention, packed": (attention, packed_inputs, lambda n, m: {"max_seqlen_q": n, "max_seqlen_k": m}),
    "temporal_attention": (
        temporal_attention,
        lambda n, m: {"qkv": draw(B, n, 2, 3, H, D), "q_weight": draw(D), "k_weight": draw(D, seed=1),
                      "cos": angles(n), "sin": angles(n)},
        lambda n, m: {},
    ),
    "temporal_attention, streamed": (temporal_attention, lambda n, m: {"qkv": draw(B, n, 2, 3, 1, D)}, lambda n, m: {}),
    "bidirectional_attention": (
        bidirectional_attention,
        lambda n, m: {"q": draw(B, n, H, D), "k": draw(B, m, H, D, seed=1), "v_row": draw(B, m, H, D, seed=2),
                      "v_col": draw(B, n, H, D, seed=3), "mask_row": bools(B, n), "mask_col": bools(B, m)},
        lambda n, m: {"mask_mode": "or"},
    ),
    "selector_attention": (
        selector_attention,
        lambda n, m: {"q": draw(B, min(n, 9), H, D), "k": draw(B, m, H, D, seed=1), "v": draw(B, m, H, D, seed=2)},
        lambda n, m: {},
    ),
    "prior_attention": (
        prior_attention,
        lambda n, m: {"q": draw(B, n, H, D), "k": draw(B, m, H, D, seed=1), "v": draw(B, m, H, D, seed=2)},
        lambda n, m: {"scope": "sample"},
    ),
    "modulated_layer_norm": (
        modulated_layer_norm, lambda n, m: norm_inputs(n, m, "x", ("shift", "scale")), lambda n, m: {}),
    "gated_residual": (gated_residual, lambda n, m: norm_inputs(n, m, "xy", ("gate",)), lambda n, m: {}),
    "gated_residual_layer_norm": (
        gated_residual_layer_norm, lambda n, m: norm_inputs(n, m, "xy", ("gate", "shift", "scale")), lambda n, m: {}),
}  # fmt: skip


def results(name, inputs, options):
    """Outputs and gradients of every float input, on poisoned memory; the outputs' gradients are not contiguous either."""
    leaves = [x.requires_grad_() for x in inputs.values() if x.is_floating_point() and name_learns(inputs, x)]
    with poisoned():
        out = OPS[name][0](**inputs, **options, backend="triton")
        outs = out if isinstance(out, tuple) else (out,)
        grads = torch.autograd.grad(outs, leaves, [strided(draw(*o.shape, seed=5)) for o in outs])
    return [*outs, *grads]


def name_learns(inputs, x):
    return not any(x is inputs.get(name) for name in ("cos", "sin"))


def test_every_op_is_tried():
    survey.load_ops()
    ours = {op for op, rows in dispatch.TABLE.items() if any(row.name == "triton" for row in rows)}
    assert {name.partition(",")[0] for name in OPS} == ours


@pytest.mark.parametrize("name", OPS)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_layouts_change_no_bit(name, data, monkeypatch):
    if "streamed" in name:
        monkeypatch.setattr(temporal, "longest_tile", lambda *_: 2)
    n, m = data.draw(st.sampled_from([(5, 7), (3, 4), (0, 5), (6, 0)]), label="lengths")
    _, make, options = OPS[name]
    inputs = make(n, m)
    changed = {}
    for key, x in inputs.items():
        kind = data.draw(st.sampled_from(sorted(LAYOUTS)), label=key)
        if kind == "expanded" and (not x.is_floating_point() or x.ndim < 2):
            kind = "strided"
        changed[key] = LAYOUTS[kind](x)
    copies = {key: x.clone(memory_format=torch.contiguous_format) for key, x in changed.items()}
    got, want = (results(name, {k: x.detach() for k, x in given.items()}, options(n, m)) for given in (changed, copies))
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layout", [strided, rows_apart, misaligned])
@pytest.mark.parametrize("operand", ["lengths_k", "cu_seqlens_k", "q_weight"])
def test_small_operands_of_attention_agree_with_the_definition(operand, layout):
    """Against the definition, not only against ourselves: bounds and gains were once read as if contiguous."""
    inputs = attention_inputs(9, 8)
    if operand == "cu_seqlens_k":
        inputs = {
            "q": inputs["q"],
            "k": inputs["k"].flatten(0, 1),
            "v": inputs["v"].flatten(0, 1),
            operand: ints(0, 5, 16),
        }
        inputs["max_seqlen_k"] = 11
    given = inputs | {operand: layout(inputs[operand])}
    got = attention(**given, backend="triton")
    want = attention_reference(
        **{k: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for k, x in inputs.items()}
    )
    assert relative_error(got, want) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize("far", [99, 2**32, 2**40 + 1])
def test_lengths_beyond_the_rows_count_as_all_of_them(backend, far):
    """Also lengths of which 32 bits keep nothing."""
    inputs = attention_inputs(9, 8)
    beyond = {"lengths_q": ints(far, 4), "lengths_k": ints(4, far)}
    within = {"lengths_q": ints(9, 4), "lengths_k": ints(4, 8)}
    got, want = (attention(**(inputs | lengths), backend=backend) for lengths in (beyond, within))
    assert torch.equal(got, want)
    none = attention(**(inputs | {"lengths_k": ints(-3, -far)}), backend=backend)
    assert not none.any()


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"max_seqlen_q": 5}, "max_seqlen_q=5, but the longest sequence has 6 rows"),
        ({"max_seqlen_k": 3}, "max_seqlen_k=3, but the longest sequence has 4 rows"),
        ({"cu_seqlens_k": ints(0, 4, 99)}, "must rise from 0 to at most the 8 rows of k"),
        ({"cu_seqlens_q": ints(0, 7, 3)}, "must rise from 0"),
        ({"cu_seqlens_q": ints(-1, 3, 9)}, "must rise from 0"),
        ({"cu_seqlens_q": torch.tensor([0.0, 3.0, 9.0])}, "give integers"),
        ({"cu_seqlens_k": ints(0, 4, 8)[:, None]}, "in one dimension"),
    ],
)
def test_packed_bounds_that_do_not_fit_are_told(change, message, backend):
    inputs = packed_inputs(9, 8) | {"max_seqlen_q": 6, "max_seqlen_k": 4}
    attention(**inputs, backend=backend)
    with pytest.raises(ValueError, match=message):
        attention(**(inputs | change), backend=backend)


def test_a_sequence_longer_than_the_kernel_was_told_is_nan_and_reads_nothing_else():
    """On a GPU the bounds are not read back: the kernels, called without the check, keep to their rows and mark the sequence."""
    from javisc.kernels.attention.op import OP

    inputs = packed_inputs(40, 30)
    q, k, v, bq, bk = inputs.values()
    with poisoned():
        out = OP.apply(q, k, v, bq, bk, 20, 30, None, None, 0.0, 0.25)
    assert out[13:33].isnan().all() and out[:13].isfinite().all()
    with poisoned():
        out = OP.apply(q, k, v, bq, ints(0, 15, 999 + 2**32), 40, 30, None, None, 0.0, 0.25)
    assert torch.equal(out, OP.apply(q, k, v, bq, bk, 40, 30, None, None, 0.0, 0.25))


ROW = 75_000_000  # elements from row to row: 40 rows of a tile then lie 2.9 G elements apart


@pytest.mark.skipif(DEVICE.type == "cuda", reason="uses memory that is never touched")
@pytest.mark.parametrize("op", ["attention", "selector_attention", "prior_attention", "bidirectional_attention"])
def test_rows_far_apart_are_reached(op):
    """Streamed 1080p: a tile's rows further apart than 32-bit offsets reach. The memory between them is never touched."""
    rows = 40
    memory = torch.empty(rows * ROW + D * H, dtype=torch.float16)
    far = memory.as_strided((1, rows, H, D), (rows * ROW, ROW, D, 1))
    far.copy_(draw(1, rows, H, D))
    few, near = draw(1, 5, H, D).half(), far.clone()
    calls = {
        "attention": lambda x: attention(x, x, x, backend="triton"),
        "selector_attention": lambda x: selector_attention(few, x, x, backend="triton"),
        "prior_attention": lambda x: prior_attention(x, few, few, scope="sample", backend="triton"),
        "bidirectional_attention": lambda x: torch.cat(bidirectional_attention(x, few, few, x, backend="triton"), 1),
    }
    outs, grads = [], []
    for x in (far, near):
        x = x.detach().requires_grad_()
        outs.append(calls[op](x))
        grads.append(torch.autograd.grad(outs[-1].sum(), x)[0])
    assert torch.equal(*outs) and torch.equal(*grads)


def test_far_batches_are_reached():
    """Samples more than 2³¹ elements apart, whose stride in units of 8 still fits 32 bits."""
    apart = 2**31 + 64
    memory = torch.empty(apart + 8 * H * D, dtype=torch.float16)
    far = memory.as_strided((2, 8, H, D), (apart, H * D, D, 1))
    far.copy_(draw(2, 8, H, D))
    near = far.clone()
    assert torch.equal(attention(far, far, far, backend="triton"), attention(near, near, near, backend="triton"))


MIXED = {
    "attention": lambda q, k, v: attention(q, k, v, backend="triton"),
    "selector_attention": lambda q, k, v: selector_attention(q, k, v, backend="triton"),
    "prior_attention": lambda q, k, v: prior_attention(q, k, v, scope="batch", backend="triton"),
    "bidirectional_attention": lambda q, k, v: torch.cat(bidirectional_attention(q, k, v, q, backend="triton"), 1),
}


@pytest.mark.parametrize("op", MIXED)
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_autocast_joins_dtypes_before_they_are_checked(op, backend, monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, backend)
    q, k, v = draw(B, 5, H, D).half(), draw(B, 7, H, D), draw(B, 7, H, D, seed=1).bfloat16()
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert MIXED[op](q, k, v).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="give one"):
        MIXED[op](q, k, v)


@pytest.mark.parametrize("name", [name for name in OPS if "streamed" not in name])
def test_second_derivatives_are_refused(name):
    inputs = OPS[name][1](4, 3)
    leaf = next(iter(inputs))
    inputs[leaf] = inputs[leaf].requires_grad_()
    out = OPS[name][0](**inputs, **OPS[name][2](4, 3), backend="triton")
    out = out[0] if isinstance(out, tuple) else out
    (grad,) = torch.autograd.grad(out.square().sum(), inputs[leaf], create_graph=True)
    if name == "gated_residual":  # its gradient of x is that of the result, and its second derivative true
        return
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("name", [name for name in OPS if "streamed" not in name])
def test_transforms_of_torch_func_are_refused_in_words(name):
    inputs = OPS[name][1](4, 3)
    leaf = next(iter(inputs))

    def loss(x):
        out = OPS[name][0](**(inputs | {leaf: x}), **OPS[name][2](4, 3), backend="triton")
        return (out[0] if isinstance(out, tuple) else out).sum()

    for transform in (torch.func.grad, torch.func.hessian):
        with pytest.raises(RuntimeError, match="know no torch.func transforms.*give backend='torch'"):
            transform(loss)(inputs[leaf])


@pytest.mark.parametrize("name", [name for name in OPS if "streamed" not in name])
def test_forward_mode_is_refused(name):
    inputs = OPS[name][1](4, 3)
    leaf = next(iter(inputs))
    with torch.autograd.forward_ad.dual_level(), pytest.raises((RuntimeError, NotImplementedError)):
        inputs[leaf] = torch.autograd.forward_ad.make_dual(inputs[leaf], torch.ones_like(inputs[leaf]))
        OPS[name][0](**inputs, **OPS[name][2](4, 3), backend="triton")

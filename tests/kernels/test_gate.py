"""The benchmark's gate fails what is wrong, whatever else is right, for every op. That it judges every variant that the models
launch is test_aot's."""

from functools import partial
from pathlib import Path

import pytest
import torch

from javisc.kernels.attention import attention
from javisc.kernels.attention.reference import attention_reference
from javisc.kernels.calls import Sizes, calls

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gate(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gate

    return gate.gate


class Changed(torch.autograd.Function):
    """Changes what passes through: the value, or the gradient."""

    @staticmethod
    def forward(ctx, x, value, gradient):
        ctx.change = gradient
        return value(x.clone())

    @staticmethod
    def backward(ctx, grad):
        return ctx.change(grad), None, None


def same(x):
    return x


def stale():
    """Hands out what came the time before."""
    before = []

    def change(x):
        before.append(x.clone())
        return before[-2] if len(before) > 1 else x

    return change


#: Wrong kernels, by what they do to an output, to its gradient, or to the gradient of an input.
MUTANTS = {
    "flipped": lambda g: g.flip(-1 if g.ndim == 1 else 1),
    "shifted by a row": lambda g: g.roll(1, 0 if g.ndim == 1 else 1),
    "dropped": lambda g: g * 0,
    "negated": lambda g: -g,
    "scaled": lambda g: g * 1.001,
    "one row forgotten": lambda g: g.index_fill(0 if g.ndim == 1 else 1, torch.tensor([0]), 0.0),
    "one head swapped": lambda g: g.roll(1, -2) if g.ndim > 2 else g.roll(1, -1),
    "columns turned": lambda g: g.roll(1, -1),
    "taken as ones": torch.ones_like,
    "not written": lambda g: torch.full_like(g, float("nan")),
    "stale": None,
}
#: Two of everything that there can be two of, so that a swap shows.
SMALL = Sizes({"small": {"B": 2, "T": 2, "S": 3}}, {}, text=5, both=(4,), selector=((2, 20),), heads=4, channels=24)
CALLS = {call.name: call for call in calls(SMALL) if "norm" not in call.name or "mask" in call.name}


@pytest.mark.parametrize("name", CALLS)
def test_the_gate_fails_every_wrong_kernel_of_every_op(gate, name):
    """One wrong value or gradient at a time, all else right: each output and its gradient, and each input's gradient."""
    call = CALLS[name]
    definition = partial(call.definition, **call.options)
    torch.manual_seed(0)
    inputs = call.make(torch.device("cpu"), torch.float32)
    learn = [n for n, x in inputs.items() if isinstance(x, torch.Tensor) and x.requires_grad]

    def right(**given):
        return call.function(**given, **call.options, backend="torch")

    found = gate(right, definition, inputs)
    assert found["passed"] and set(found["errors"]) >= {f"d{n}" for n in learn}
    outputs = [n for n in found["errors"] if n.startswith("out")]
    survived = []
    for mutant, change in MUTANTS.items():
        for what in [*outputs, *(f"d{n}" for n in outputs), *(f"d{n}" for n in learn)]:
            wrong = change or stale()

            def mutated(what=what, wrong=wrong, **given):
                value, gradient = (same, wrong) if what.startswith("d") else (wrong, same)
                if what[1:] in given:
                    given[what[1:]] = Changed.apply(given[what[1:]], same, wrong)
                out = right(**given)
                outs = list(out) if isinstance(out, tuple) else [out]
                number = int(what[-1]) if what[-1].isdigit() and "out" in what else -1
                if number >= 0:
                    outs[number] = Changed.apply(outs[number], value, gradient)
                return tuple(outs) if len(outs) > 1 else outs[0]

            if gate(mutated, definition, inputs)["passed"]:
                survived.append((mutant, what))
    assert not survived


def draw(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(1, 6, 1, 16, generator=generator).to(dtype).requires_grad_() for name in "qkv"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gate_passes_what_is_right(gate, dtype):
    found = gate(lambda **x: attention(**x, backend="triton"), attention_reference, draw(dtype))
    assert found["passed"] and set(found["errors"]) == {"out0", "dq", "dk", "dv"} and found["bits"]


def test_the_gate_fails_unwritten_outputs_and_bits_that_change(gate):
    def unwritten(**inputs):
        out = attention(**inputs, backend="torch")
        hole = torch.empty_like(out)  # poisoned
        return torch.where(torch.arange(6)[:, None, None] < 5, out, hole)

    assert not gate(unwritten, attention_reference, draw())["passed"]
    ran = []

    def restless(**inputs):
        ran.append(1)
        return attention(**inputs, backend="torch") * (1 + 1e-6 * (len(ran) == 3))

    found = gate(restless, attention_reference, draw())
    assert not found["bits"] and not found["passed"] and max(found["errors"].values()) < 1e-5

"""An op registered by `define` in an autograd function: opaque to compile, counted, kept by checkpoints, cast by autocast."""

import pytest
import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from javisc.kernels import dispatch, registration

calls_seen = []


def _cube(x: torch.Tensor, scale: float) -> torch.Tensor:
    calls_seen.append(x.dtype)
    return x * x * x * scale


def _cube_backward(x: torch.Tensor, grad: torch.Tensor, scale: float) -> torch.Tensor:
    return 3 * scale * x * x * grad


CUBE = registration.define(
    "test_cube",
    "(Tensor x, float scale) -> Tensor",
    _cube,
    lambda x, scale: torch.empty_like(x),
    flops=lambda x, scale, out_val=None: 3 * x.numel(),
    save=True,
)
CUBE_BACKWARD = registration.define(
    "test_cube_backward",
    "(Tensor x, Tensor grad, float scale) -> Tensor",
    _cube_backward,
    lambda x, grad, scale: torch.empty_like(x),
)


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale):
        ctx.save_for_backward(x)
        ctx.scale = scale
        return CUBE(x, scale)

    @staticmethod
    def backward(ctx, grad):
        return CUBE_BACKWARD(ctx.saved_tensors[0], grad, ctx.scale), None


def cube(x, scale=0.5):
    (x,) = registration.autocast(x)
    name = dispatch.choose(dispatch.Request("test_cube", x.device, x.dtype))
    return Cube.apply(x, scale) if name == "triton" else x**3 * scale


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setattr(dispatch, "TABLE", {})
    dispatch.register("test_cube", "triton", needs="", when="always")
    calls_seen.clear()


def test_opcheck():
    torch.library.opcheck(CUBE, (torch.randn(3, 4), 0.5))


@pytest.mark.slow
def test_compiles_as_one_graph_with_dispatch_inside():
    x = torch.randn(5, requires_grad=True)
    torch.compile(cube, fullgraph=True, backend="aot_eager")(x).sum().backward()
    torch.testing.assert_close(x.grad, 1.5 * x.detach() ** 2)


def test_flops_are_counted():
    with FlopCounterMode(display=False) as counter:
        cube(torch.randn(4, 5))
    assert counter.get_total_flops() == 60


@pytest.mark.parametrize("policy, calls", [(CheckpointPolicy.MUST_SAVE, 1), (CheckpointPolicy.PREFER_RECOMPUTE, 2)])
def test_selective_checkpointing_keeps_what_must_save_names(policy, calls):
    assert CUBE in registration.must_save()
    kept = dict.fromkeys(registration.must_save(), policy)

    def context():
        return create_selective_checkpoint_contexts(
            lambda ctx, op, *a, **k: kept.get(op, CheckpointPolicy.PREFER_RECOMPUTE)
        )

    x = torch.randn(5, requires_grad=True)
    checkpoint(lambda x: cube(x).sin(), x, use_reentrant=False, context_fn=context).sum().backward()
    assert len(calls_seen) == calls


def test_autocast_casts_as_sdpa_does():
    with torch.autocast("cpu", torch.bfloat16):
        assert cube(torch.randn(3)).dtype == torch.bfloat16
        assert cube(torch.randn(3).double()).dtype == torch.float64


def test_bfloat16_is_computed_in_float32_under_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert CUBE(torch.ones(3, dtype=torch.bfloat16), 1.0).dtype == torch.bfloat16
    assert calls_seen == [torch.float32]

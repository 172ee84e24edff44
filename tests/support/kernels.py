"""How kernels are judged: relative error per named output and gradient against a float64 definition, on poisoned memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from javisc.kernels import dispatch
from javisc.kernels.dispatch import Request

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: bfloat16 arithmetic is wrong under Triton's interpreter, so it is tested on a device only.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if DEVICE.type == "cuda" else [])]
#: Largest error, relative to the largest true value: a few roundings of the dtype, as inputs are rounded once and P once.
TOLERANCE = {torch.float32: 3e-6 if DEVICE.type == "cpu" else 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def cases(shapes: Sequence[Any], narrow: Sequence[Any]) -> pytest.MarkDecorator:
    """Parameters `shape, dtype`: every shape in float32, the sharpest; some in narrower types, which other tiles serve."""
    return pytest.mark.parametrize(
        "shape, dtype",
        [
            pytest.param(s, d, id=f"{s}-{d}".replace("torch.", ""))
            for d in DTYPES
            for s in shapes
            if d == torch.float32 or s in narrow
        ],
    )


dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def kinds_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of calls alike in op, shape, dtype and features the first runs as it was asked for, the others on PyTorch: a model's later
    layers repeat its first, and the interpreter is slow."""
    seen: set[object] = set()
    of, choose, shapes = Request.of, dispatch.choose, [torch.Size()]

    def noted(op: str, x: torch.Tensor, *head_dim: int, **features: Any) -> Request:
        shapes[:] = [x.shape]
        return of(op, x, *head_dim, **features)

    def once(request: Request, backend: str | None = None) -> str:
        kind = (request, *shapes)
        name = choose(request, "torch" if kind in seen else backend)
        seen.add(kind)
        return name

    monkeypatch.setattr(Request, "of", staticmethod(noted))
    monkeypatch.setattr(dispatch, "choose", once)


@contextmanager
def poisoned() -> Iterator[None]:
    """`torch.empty` and its kin give NaN (integers: the largest) inside: what a kernel forgets to write shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            assert torch.empty(3).isnan().all()
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def guarded(tensor: torch.Tensor, margin: int = 64) -> torch.Tensor:
    """A copy of the tensor between two bands of NaN (or the largest integer): reads outside it show in the result."""
    band = (
        float("nan")
        if tensor.is_floating_point()
        else (2 if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)
    )
    buffer = torch.full((tensor.numel() + 2 * margin,), band, dtype=tensor.dtype, device=tensor.device)
    inner = buffer[margin : margin + tensor.numel()].view(tensor.shape)
    inner.copy_(tensor.detach())
    return inner.requires_grad_(tensor.requires_grad)


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """max|got − want| / max|want| in float64; max|got| where the truth is all zero; infinite on NaN or a wrong shape."""
    if got.shape != want.shape or not torch.isfinite(got).all():
        return float("inf")
    if want.numel() == 0:
        return 0.0
    scale = want.double().abs().max().item()
    return (got.double() - want.double()).abs().max().item() / (scale or 1.0)


def run(
    function: Callable[..., Any],
    inputs: Mapping[str, torch.Tensor | None],
    grads: Mapping[str, torch.Tensor],
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Call, backpropagate the given output gradients, and return outputs and `d<input>` gradients by name.

    inputs: by parameter name; those that require grad are detached copies. grads: output name → its gradient, in the order of
    the function's outputs.
    """
    leaves = {n: t.detach().requires_grad_(t.requires_grad) if t is not None else None for n, t in inputs.items()}
    outputs = function(**leaves, **options)
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    torch.autograd.backward(outputs, [grads[name].to(out) for name, out in zip(grads, outputs, strict=True)])
    result = dict(zip(grads, (out.detach() for out in outputs)))
    for name, leaf in leaves.items():
        if leaf is not None and leaf.requires_grad:
            assert leaf.grad is not None, f"no gradient reached {name}"
            result[f"d{name}"] = leaf.grad
    return result


def check(
    fast: Callable[..., Any],
    definition: Callable[..., Any],
    inputs: Mapping[str, torch.Tensor | None],
    grads: Mapping[str, torch.Tensor],
    *,
    tolerance: float,
    fast_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Compare the fast path, on guarded inputs and poisoned memory, with the definition in float64: every output and gradient.

    Inputs are rounded to the fast path's dtype first, so that only the op's own error is judged.
    """
    wide = {
        n: t.detach().double().requires_grad_(t.requires_grad) if t is not None and t.is_floating_point() else t
        for n, t in inputs.items()
    }
    want = run(definition, wide, grads, **options)
    with poisoned():
        got = run(
            fast,
            {n: guarded(t) if t is not None else None for n, t in inputs.items()},
            grads,
            **options,
            **(fast_options or {}),
        )
    assert got.keys() == want.keys()
    errors = {name: relative_error(got[name], want[name]) for name in want}
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= tolerance}
    assert not wrong, (
        f"relative error above {tolerance:.0e}: {wrong} (all: { {n: f'{e:.1e}' for n, e in errors.items()} })"
    )

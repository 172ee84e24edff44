"""Whether a kernel may be timed: outputs and gradients of a call against its definition in float64, for random output gradients,
on poisoned memory, twice with the same bits though other numbers went through in between."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

#: Largest error over largest true value: a few roundings of the type, as inputs are rounded once and probabilities once.
TOLERANCE = {torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote reads NaN inside."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _run(
    function: Callable[..., Any], inputs: dict[str, Any], seed: int, types: list[torch.dtype] | None = None
) -> dict[str, Tensor]:
    """Outputs and gradients by name, for random gradients of the outputs, rounded to `types` (default: their own)."""
    leaves = {n: x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for n, x in inputs.items()}
    out = function(**leaves)
    outs = out if isinstance(out, tuple) else (out,)
    place = outs[0].device
    random = torch.Generator(place).manual_seed(seed)
    drawn = [torch.randn(o.shape, generator=random, device=place, dtype=torch.float32) for o in outs]
    grads = [g.to(t).to(o.dtype) for g, o, t in zip(drawn, outs, types or [o.dtype for o in outs])]
    wanted = {n: x for n, x in leaves.items() if isinstance(x, Tensor) and x.requires_grad}
    found = torch.autograd.grad(outs, list(wanted.values()), grads)
    return {f"out{i}": o.detach() for i, o in enumerate(outs)} | {f"d{n}": g for n, g in zip(wanted, found)}


def error(got: Tensor, want: Tensor) -> float:
    """max|got − want| / max|want|; infinite for a wrong shape or anything that is not finite."""
    if got.shape != want.shape or not bool(torch.isfinite(got).all()):
        return float("inf")
    if not want.numel():
        return 0.0
    return float((got.double() - want.double()).abs().max() / (want.double().abs().max().item() or 1.0))


def _other(value: Any) -> Any:
    """Other numbers with the same strides; what is no floating-point tensor stays."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    other = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return other.normal_().requires_grad_(value.requires_grad)


def gate(
    function: Callable[..., Any], definition: Callable[..., Any], inputs: dict[str, Any], seed: int = 0
) -> dict[str, Any]:
    """{"passed", "errors": by output and gradient, "bits": the same twice, "tolerance"} of a call with these inputs."""

    def wide(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        return x.detach().double().requires_grad_(x.requires_grad)

    dtype = next(x.dtype for x in inputs.values() if isinstance(x, Tensor) and x.is_floating_point())
    with poisoned():
        first = _run(function, inputs, seed)
        _run(
            function, {n: _other(x) for n, x in inputs.items()}, seed + 1
        )  # what a kernel leaves lying is wrong for the next
        second = _run(function, inputs, seed)
    types = [x.dtype for n, x in first.items() if n.startswith("out")]
    want = _run(definition, {n: wide(x) for n, x in inputs.items()}, seed, types)
    errors = {n: error(first[n], want[n]) for n in want}
    bits = all(torch.equal(first[n], second[n]) for n in first)
    tolerance = TOLERANCE[dtype]
    return {
        "passed": bits and max(errors.values()) <= tolerance,
        "errors": errors,
        "bits": bits,
        "tolerance": tolerance,
    }

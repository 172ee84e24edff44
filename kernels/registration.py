"""How a kernel becomes an op of PyTorch: opaque to tracing, known to fake tensors, FLOP counters and checkpointing.

`define` registers schema, implementation and fake with torch.library; the caller wraps forward and backward ops in a plain
`torch.autograd.Function`. This form passes `torch.library.opcheck` and `torch.compile(fullgraph=True)` even while the
kernels run under Triton's interpreter, and costs half of `custom_op` with `register_autograd` per call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from javisc.kernels.dispatch import interpreting

NAMESPACE = "javisc"
_must_save: list[Any] = []


def define(
    name: str,
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    flops: Callable[..., int] | None = None,
    save: bool = False,
) -> Any:
    """Register `javisc::name` and return it.

    schema: "(Tensor x, float eps) -> (Tensor, Tensor)", with the space before the arrow. implementation: runs on CPU (under
    the interpreter) and CUDA tensors. fake: the same arguments → empty tensors of the shapes, dtypes and strides that the
    implementation returns. flops: the same arguments (tensors, not shapes) and `out_val` → FLOPs, 2 per multiply-add.
    save: selective activation checkpointing should keep its outputs instead of running it twice.
    """
    qualified = f"{NAMESPACE}::{name}"
    torch.library.define(qualified, schema)
    torch.library.impl(qualified, ("CPU", "CUDA"), _runner(implementation, fake))
    torch.library.register_fake(qualified, fake)
    packet = getattr(getattr(torch.ops, NAMESPACE), name)
    if flops is not None:
        register_flop_formula(packet, get_raw=True)(flops)
    if save:
        _must_save.append(packet.default)
    return packet.default


def must_save() -> tuple[Any, ...]:
    """The ops whose outputs a selective-checkpoint policy should keep (`CheckpointPolicy.MUST_SAVE`): attention forwards."""
    return tuple(_must_save)


def _runner(implementation: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Run on the first tensor's device; under the interpreter, whose bfloat16 arithmetic is wrong, compute in float32."""

    @functools.wraps(implementation)
    def run(*args: Any) -> Any:
        tensor = next(arg for arg in args if isinstance(arg, torch.Tensor))
        if tensor.is_cuda:
            with torch.cuda.device(tensor.device):
                return implementation(*args)
        if not (interpreting() and any(isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16 for a in args)):
            return implementation(*args)
        wide = [a.float() if isinstance(a, torch.Tensor) and a.dtype == torch.bfloat16 else a for a in args]
        results, like = implementation(*wide), fake(*args)
        if isinstance(results, torch.Tensor):
            return results.to(like.dtype)
        return tuple(result.to(model.dtype) for result, model in zip(results, like, strict=True))

    return run


def autocast(*tensors: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
    """Cast floating tensors as `scaled_dot_product_attention` does under autocast: to its dtype, never from float64."""
    first = next(tensor for tensor in tensors if tensor is not None)
    kind = first.device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return [t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]

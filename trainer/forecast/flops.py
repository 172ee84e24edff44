"""Floating-point operations, counted by PyTorch's FlopCounterMode on passes over meta tensors: shapes without memory.

Counted are products of matrices and convolutions, 2 per multiply-add, and nothing twice: attention is taken apart into its two
products here, on every device, since the backward passes of fused ones compute their logits again. So rate / peak is the usual
model FLOPs utilisation (Chowdhery et al., PaLM, appendix B). Our kernels register what they do themselves (`kernels/*/host.py`);
`footprint` counts that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from javisc.kernels import dispatch

META = torch.device("meta")
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Work:
    """FLOPs of a forward pass, and of the backward pass behind it: the gradients that exist."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Both."""
        return self.forward + self.backward


def counted(run: Callable[[], Tensor | Mapping[str, Tensor]], *, backward: bool = True) -> Work:
    """What `run` computes on meta tensors, and the backward pass of what it returns (of "loss", where that is one of several)."""
    # With gradients, asked for or not: without, the counter stumbles over modules that are given a parameter.
    with (
        torch.enable_grad(),
        dispatch.only("torch"),
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        out = run()
        forward = counter.get_total_flops()
        if backward:
            (out["loss"] if isinstance(out, Mapping) else out).sum().backward()  # type: ignore[no-untyped-call]
    return Work(float(forward), float(counter.get_total_flops() - forward))


def by_depth(count: Callable[[int], float], depth: int) -> float:
    """`count(depth)` of a stack whose layers cost alike from the second on (gradients may not reach the first's input)."""
    if depth <= 3:
        return count(depth)
    two, three = count(2), count(3)
    return two + (depth - 2) * (three - two)


def hollow(module: Module) -> Module:
    """A copy whose parameters and buffers have shapes only; the module itself stays as it is, wherever it lies."""
    memo: dict[int, Any] = {id(x): torch.empty_like(x, device=META) for x in module.buffers()}
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device=META), p.requires_grad)
    return copy.deepcopy(module, memo)


def on_meta(*tensors: Tensor) -> list[Tensor]:
    """The shapes of tensors."""
    return [torch.empty_like(x, device=META) for x in tensors]


class StepFlops:
    """FLOPs of a training step by its batch's shapes, each counted once: `model` makes the model, `loss` its step's loss."""

    def __init__(
        self, model: Callable[[], nn.Module], loss: Callable[[nn.Module, Any], Tensor | Mapping[str, Tensor]]
    ) -> None:
        self.make, self.loss = model, loss
        self.model: nn.Module | None = None
        self.known: dict[Any, float] = {}

    def __call__(self, batch: Any) -> float:
        """Forward and backward."""
        shapes = tuple(x.shape for x in vars(batch).values() if isinstance(x, Tensor))
        if shapes not in self.known:
            if self.model is None:
                with META:
                    self.model = self.make()
            model = self.model
            self.known[shapes] = counted(lambda: self.loss(model, batch)).total
        return self.known[shapes]

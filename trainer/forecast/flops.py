"""Floating-point operations of a model's step, from its layers' shapes.

Counted are products of matrices and convolutions, 2 per multiply-add, as PyTorch's FlopCounterMode counts them; nothing
recomputed is counted, so that rate / peak is the usual model FLOPs utilisation (Chowdhery et al., PaLM, appendix B). Backward
counts the gradients that exist: of a weight where it trains, of an input where anything before it does ("reached").

The models' own formulas stand beside them: `models/sync/flops.py`, `models/dit/flops.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass
class Tally:
    """FLOPs counted so far. Its methods count one layer and return whether gradients reach what comes out."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward

    def weight(self, layer: nn.Linear | nn.Conv2d | nn.Conv3d, rows: int, reached: bool) -> bool:
        """A linear layer over `rows` tokens, or a convolution with as many outputs."""
        work = 2.0 * rows * layer.weight.numel()
        self.forward += work
        self.backward += work * (layer.weight.requires_grad + reached)
        return reached or trains(layer)

    def chain(self, module: nn.Module, rows: int, reached: bool) -> bool:
        """All linear layers of a module, one after another, over the same rows."""
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                reached = self.weight(layer, rows, reached)
        return reached or trains(module)

    def attention(self, pairs: float, width: int, queries: bool = True, keys: bool = True) -> bool:
        """Logits and mix of `pairs` of query and key; two products forward, up to four backward."""
        product = 2.0 * pairs * width
        self.forward += 2 * product
        self.backward += product * (queries + 2 * keys + (queries or keys))
        return queries or keys


def trains(module: nn.Module) -> bool:
    """True if any parameter inside is trained."""
    return any(p.requires_grad for p in module.parameters())

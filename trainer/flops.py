"""Floating-point operations of a model's step, from its layers' shapes, and what a device could do at best.

Counted are products of matrices and convolutions, 2 per multiply-add, as PyTorch's FlopCounterMode counts them; nothing
recomputed is counted, so that rate / peak is the usual model FLOPs utilisation (Chowdhery et al., PaLM, appendix B). Backward
counts the gradients that exist: of a weight where it trains, of an input where anything before it does ("reached").

The models' own formulas stand beside them: `models/sync/flops.py`, `models/dit/flops.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import nn

#: Dense TFLOP/s without sparsity by the makers' data sheets: word of the device's name → bf16 and fp16, tf32, fp32.
#: The first whose words are all in the name counts.
PEAKS: tuple[tuple[tuple[str, ...], tuple[float, float, float]], ...] = (
    (("GB200",), (2500, 1250, 80)),
    (("B200",), (2250, 1125, 75)),
    (("H200", "NVL"), (835, 417, 60)),
    (("H200",), (989, 495, 67)),
    (("GH200",), (989, 495, 67)),
    (("H100", "NVL"), (835, 417, 60)),
    (("H100", "PCIe"), (756, 378, 51)),
    (("H100",), (989, 495, 67)),
    (("A100",), (312, 156, 19.5)),
    (("L40S",), (362, 183, 91.6)),
    (("A40",), (149.7, 74.8, 37.4)),
    (("A10",), (125, 62.5, 31.2)),
)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s the device's data sheet promises in fp32, bf16 or fp16; None where it is not known (every CPU is)."""
    if device.type != "cuda":
        return None
    return named_peak(torch.cuda.get_device_name(device), precision, tf32=torch.backends.cuda.matmul.allow_tf32)


def named_peak(name: str, precision: str, *, tf32: bool = False) -> float | None:
    """`peak_flops` by a device's name, such as "NVIDIA H100 80GB HBM3"."""
    words = re.split(r"[^A-Za-z0-9]+", name)
    for wanted, (half, tensor, full) in PEAKS:
        if all(word in words for word in wanted):
            return 1e12 * (half if precision in ("bf16", "fp16") else tensor if tf32 else full)
    return None


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

"""What a device could do at best, by its maker's data sheet."""

from __future__ import annotations

import re

import torch

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

"""From host memory to a device without waiting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """`x` on a device. From the CPU to a GPU it goes through pinned memory, behind what is queued: the host does not wait."""
    if device.type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


def together(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of the CPU stacked; in pinned memory where there is a GPU, from which `to_device` copies at once."""
    shape = (len(tensors), *tensors[0].shape)
    out = torch.empty(shape, dtype=tensors[0].dtype, pin_memory=torch.cuda.is_available())
    return torch.stack(list(tensors), out=out)

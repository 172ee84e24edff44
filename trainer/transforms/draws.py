"""The random numbers of one sample, each asked for by name.

A draw depends on the sample's seed and the draw's name alone, never on what was drawn before: switching one augmentation on
changes no other, and a sample looks the same however often a run was resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from javisc.trainer.data.index import draws as keyed


class Draws(Protocol):
    """Where transforms take their random numbers from."""

    def uniform(self, name: str, low: float, high: float) -> float:
        """A real number in [low, high)."""

    def integer(self, name: str, low: int, high: int) -> int:
        """A whole number in [low, high], both ends included."""

    def choice(self, name: str, values: Sequence[float]) -> float:
        """One of the values."""

    def order(self, name: str, length: int) -> list[int]:
        """A permutation of range(length)."""

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        """float32 numbers from N(0, 1)."""


class SeededDraws:
    """Draws keyed by a sample's seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(self, name: str, low: float, high: float) -> float:
        return low + (high - low) * float(keyed.uniform(self.seed, name)[0])

    def integer(self, name: str, low: int, high: int) -> int:
        return low + int(keyed.integers(high - low + 1, self.seed, name)[0])

    def choice(self, name: str, values: Sequence[float]) -> float:
        return values[self.integer(name, 0, len(values) - 1)]

    def order(self, name: str, length: int) -> list[int]:
        return [int(index) for index in keyed.order(length, self.seed, name)]

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        generator = torch.Generator().manual_seed(int(keyed.bits(self.seed, name)[0]) & (2**63 - 1))
        return torch.randn(tuple(shape), generator=generator)


def happens(draws: Draws, name: str, probability: float | None) -> bool:
    """True with the given probability; nothing is drawn where it is 0 or None."""
    return bool(probability) and float(probability or 0) > draws.uniform(name, 0.0, 1.0)

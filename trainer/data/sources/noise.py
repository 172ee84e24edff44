"""Random numbers of a batch's rows: each row draws from a generator of its own, so it matters neither who shares the batch nor on
which device or process it lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from javisc.trainer.data.index import draws
from javisc.trainer.engine.moving import to_device


def generators(seeds: Sequence[int], *words: draws.Word) -> list[Generator]:
    """A generator on the CPU for each row's seed; `words` say what it is for."""
    return [torch.Generator().manual_seed(int(draws.bits(seed, *words)[0]) & (2**63 - 1)) for seed in seeds]


def normal(shape: Sequence[int], rows: Sequence[Generator], like: Tensor | None = None) -> Tensor:
    """Standard normal draws [rows, *shape], on the device and in the precision of `like`."""
    drawn = torch.stack([torch.randn(tuple(shape), generator=row) for row in rows])
    return drawn if like is None else to_device(drawn, like.device).to(like.dtype)


def from_posterior(posterior: Any, rows: Sequence[Generator] | None, *, mode: bool = False) -> Tensor:
    """A draw from a diffusers posterior, row i by `rows[i]`, or its mean with `mode`: the numbers of its own `sample`, which
    would wait for their copy to the device."""
    if mode or rows is None:
        return posterior.mode() if mode else posterior.sample()  # type: ignore[no-any-return]
    mean: Tensor = posterior.mean
    drawn = torch.stack([torch.randn(mean.shape[1:], generator=row, dtype=mean.dtype) for row in rows])
    return mean + posterior.std * to_device(drawn, mean.device)


def uniform(shape: Sequence[int], rows: Sequence[Generator]) -> Tensor:
    """Draws [rows, *shape] from 0 to 1, on the CPU."""
    return torch.stack([torch.rand(tuple(shape), generator=row) for row in rows])

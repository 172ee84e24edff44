"""Evaluation of sharded models: their parameters are gathered in every forward pass, so all processes take equally many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

Batch = TypeVar("Batch")


def in_step(model: nn.Module, batches: Iterable[Batch], at_most: int = 0) -> Iterator[tuple[Batch, bool]]:
    """Up to `at_most` batches (0: all), each with True: it counts.

    Where `model` is sharded over processes, one that has no more gets its last batch again, or another process's if it never had
    one, with False, until all are done: the forward pass must be taken, and what comes out of it thrown away.
    """
    mine = iter(islice(batches, at_most or None))
    if not isinstance(model, FSDPModule) or dist.get_world_size() == 1:
        yield from ((batch, True) for batch in mine)
        return
    kept: list[Any] = [None]
    while True:
        batch = next(mine, None)
        if batch is not None:
            kept = [batch]
        told: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(told, (batch is not None, kept[0] is not None))
        if not any(counts for counts, _ in told):
            return
        if not all(has for _, has in told):
            lent = list(kept)
            dist.broadcast_object_list(lent, next(rank for rank, (_, has) in enumerate(told) if has))
            kept = kept if kept[0] is not None else lent
        yield kept[0], batch is not None

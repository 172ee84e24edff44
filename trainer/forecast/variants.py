"""Which variants of the kernels a recipe's steps launch: forward and backward run on fake tensors, as if on the device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from javisc.kernels import aot
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.distributed import autocast, gathered_dtype
from javisc.trainer.forecast.footprint import cast
from javisc.trainer.task import Shaped, Task


def variants(recipe: Recipe, task: Task[Any], arch: int) -> list[aot.Variant]:
    """The variants that training steps launch on an architecture (80, 90, …), over all shapes of batches that the task names;
    for a task that names none, over the first batch of its data. Raises UserError where that has none."""
    device = torch.device("cpu")  # only imagined: fake tensors have no memory anywhere
    found: Counter[aot.Variant] = Counter()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        model = task.shallow() if isinstance(task, Shaped) else task.model()
        if (dtype := gathered_dtype(model, recipe.parallel)) is not None:
            cast(model, dtype)
        model.train()
        for batch in _batches(task):
            with aot.capturing(arch) as seen:
                with autocast(model, recipe.parallel, device):
                    losses = task.loss(model, batch, device)
                (losses if isinstance(losses, torch.Tensor) else losses["loss"]).backward()  # type: ignore[no-untyped-call]
            found.update(seen)
    return list(found)


def _batches(task: Task[Any]) -> Iterator[Any]:
    if isinstance(task, Shaped):
        yield from task.examples()
        return
    source = task.source(0, 1)
    try:
        yield next(iter(source))
    finally:
        source.close()

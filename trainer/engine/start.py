"""How a run's weights come to lie where they train: made once, and given to every process as its share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.distributed import World, spread, tensors_of
from javisc.trainer.engine.frozen import frozen_of
from javisc.trainer.task import Task

Made = TypeVar("Made")


def built_and_spread(task: Task[Any], recipe: Recipe, here: World) -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """The task's model, the same spread over the processes, and, on the first, the frozen weights as they were made.

    Several processes do not each make it: the first does, in the host's memory; the others have its shape alone, and get their
    shares.
    """
    if here.size == 1:
        built = task.build()
        whole = frozen_of(built)  # as they are now: spreading gives the model others, where it moves or rounds them
        return built, spread(built, task.blocks(built), recipe.parallel, here), whole
    made = by_first(here, task.build)
    with torch.device("meta"):
        shape = task.model()
    values = {} if made is None else tensors_of(made)
    model = spread(shape, task.blocks(shape), recipe.parallel, here, values)
    return shape, model, {} if made is None else frozen_of(made)


def by_first(here: World, make: Callable[[], Made]) -> Made | None:
    """What `make` gives on the first process, None on the others. Raises its UserError on all, so that none waits for it."""
    made, wrong = None, None
    if here.first:
        try:
            made = make()
        except UserError as error:
            wrong = error
    told = [None if wrong is None else str(wrong)]
    dist.broadcast_object_list(told, 0, group=here.control)
    if told[0] is not None:
        raise wrong or UserError(told[0])
    return made

"""What a run would be, without running it: batches, parameters, memory, arithmetic."""

from __future__ import annotations

import os
from typing import Any

import torch

from javisc.trainer.config import Recipe
from javisc.trainer.task import Task


def dry_run(recipe: Recipe, task: Task[Any]) -> dict[str, Any]:
    """Batches per epoch, the first batch's shapes, parameters (trained and frozen), bytes of state per process, FLOPs of a step.

    `state_bytes` counts weights, gradients, optimizer state and the average on one process; activations depend on kernels and
    checkpointing and are not predicted.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    model = task.build()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    source = task.source(0, world)
    batches = len(source)
    batch = next(iter(source))
    shapes = {name: list(value.shape) for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    moments = {"sgd": 1 if recipe.optimizer.momentum else 0}.get(recipe.optimizer.name, 2)
    copies = 2 + moments + (1 if recipe.ema.decay > 0 else 0)
    shards = world if recipe.parallel.strategy == "fsdp2" else 1
    return {
        "task": recipe.task,
        "processes": world,
        "batches_per_epoch": batches,
        "samples_per_step": task.size(batch) * recipe.run.accumulate * world,
        "batch": shapes,
        "parameters_trained": trained,
        "parameters_frozen": frozen,
        "state_bytes": 4 * (trained * copies + frozen) // shards,
        "step_tflop": task.flops(batch) * recipe.run.accumulate * world / 1e12,
        "precision": recipe.parallel.precision,
        "strategy": recipe.parallel.strategy,
    }

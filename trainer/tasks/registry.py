"""Which task a recipe's name stands for. A task is imported when it is used: a sync run loads no diffusion model."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import Recipe, load_recipe, task_of
from javisc.trainer.task import Task

#: task → (module, its recipe's class, its own class)
TASKS: dict[str, tuple[str, str, str]] = {
    "sync": ("javisc.trainer.tasks.sync", "SyncRecipe", "SyncTask"),
    "sync-audio": ("javisc.trainer.tasks.sync_audio", "SyncAudioRecipe", "SyncAudioTask"),
    "audio": ("javisc.trainer.tasks.audio", "DiTRecipe", "AudioTask"),
    "prior": ("javisc.trainer.tasks.prior", "PriorRecipe", "PriorTask"),
    "jav": ("javisc.trainer.tasks.jav", "DiTRecipe", "JavTask"),
}


def load(name: str, overrides: Sequence[str] = ()) -> tuple[Recipe, Task[Any]]:
    """The recipe by name or path with its overrides, and its task. Raises UserError."""
    task = task_of(name)
    if task not in TASKS:
        raise UserError(f"recipe {name}: task {task!r} is not known: it may be {', '.join(TASKS)}")
    module_name, recipe_class, task_class = TASKS[task]
    module = importlib.import_module(module_name)
    recipe: Recipe = load_recipe(name, getattr(module, recipe_class), overrides)
    return recipe, getattr(module, task_class)(recipe)

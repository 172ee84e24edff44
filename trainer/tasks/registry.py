"""Which task a recipe's name stands for. A task is imported when it is used: a sync run loads no diffusion model."""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import Recipe, as_dict, check_together, differences, load_recipe, recipe_from, task_of
from javisc.trainer.task import Measures, Task

#: task → (module, its recipe's class, its own class)
TASKS: dict[str, tuple[str, str, str]] = {
    "sync": ("javisc.trainer.tasks.sync", "SyncRecipe", "SyncTask"),
    "synchformer": ("javisc.trainer.tasks.synchformer", "SynchformerRecipe", "SynchformerTask"),
    "synchformer-avclip": ("javisc.trainer.tasks.synchformer_avclip", "SegmentContrastRecipe", "SegmentContrastTask"),
    "sync-audio": ("javisc.trainer.tasks.sync_audio", "SyncAudioRecipe", "SyncAudioTask"),
    "audio": ("javisc.trainer.tasks.audio", "DiTRecipe", "AudioTask"),
    "prior": ("javisc.trainer.tasks.prior", "PriorRecipe", "PriorTask"),
    "jav": ("javisc.trainer.tasks.jav", "DiTRecipe", "JavTask"),
}


def recipe_of(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe by name or path with its overrides, its values checked. Raises UserError."""
    module, recipe_class, _ = _entry(name)
    recipe: Recipe = load_recipe(name, getattr(module, recipe_class), overrides)
    if recipe.task != (task := task_of(name)):
        raise UserError(
            f"task={recipe.task}: recipe {name} is of task {task}, and stays so; take a recipe of the other"
        )
    return recipe


def load(name: str, overrides: Sequence[str] = ()) -> tuple[Recipe, Task[Any]]:
    """The recipe by name or path with its overrides, and its task. Raises UserError."""
    module, _, task_class = _entry(name)
    recipe = recipe_of(name, overrides)
    check_together(recipe, int(os.environ.get("WORLD_SIZE", 1)))
    task: Task[Any] = getattr(module, task_class)(recipe)
    if isinstance(task, Measures):
        _check_metric(recipe, task.metrics())
    return recipe, task


def stored(settings: object, where: str) -> tuple[Recipe, Task[Any]]:
    """The recipe that a run has stored, and its task. Raises UserError if it is none of this version's."""
    task = settings.get("task") if isinstance(settings, dict) else None
    if task not in TASKS:
        raise UserError(f"{where}: its recipe's task {task!r} is not known: it may be {', '.join(TASKS)}")
    module_name, recipe_class, task_class = TASKS[task]
    module = importlib.import_module(module_name)
    recipe = recipe_from(settings, getattr(module, recipe_class), where)
    return recipe, getattr(module, task_class)(recipe)


def changes(name: str, overrides: Sequence[str]) -> list[str]:
    """Lines `key: old → new` for every setting that the overrides change in the recipe."""
    return differences(as_dict(recipe_of(name)), as_dict(recipe_of(name, overrides)))


def parts_of(task: str) -> tuple[type[Recipe], Any]:
    """A known task's recipe class and its own class."""
    module, recipe_class, task_class = TASKS[task]
    made = importlib.import_module(module)
    return getattr(made, recipe_class), getattr(made, task_class)


def _entry(name: str) -> tuple[ModuleType, str, str]:
    task = task_of(name)
    if task not in TASKS:
        raise UserError(f"recipe {name}: task {task!r} is not known: it may be {', '.join(TASKS)}")
    module, recipe_class, task_class = TASKS[task]
    return importlib.import_module(module), recipe_class, task_class


def _check_metric(recipe: Recipe, names: tuple[str, ...]) -> None:
    run = recipe.run
    if run.patience and not (run.validate_every and names):
        raise UserError(
            f"run.patience={run.patience} waits for validations, and there are none: set run.validate_every and "
            "data.valid_split, or run.patience=0"
        )
    if run.validate_every and names and run.metric not in names:
        raise UserError(f"run.metric={run.metric}: it may be {', '.join(names)}; set run.metric to one of these")

"""Previews: what a model makes of the same few inputs while it learns, as a page in the run's folder and in its logs."""

from __future__ import annotations

from typing import Any

from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.hooks import Hook
from javisc.trainer.task import Task
from javisc.trainer.use.previews.hook import Previews


def preview_hooks(recipe: Recipe, task: Task[Any]) -> list[Hook]:
    """The hook that makes a task's previews, none where `run.preview_every` is 0. Raises UserError if the task has none."""
    if not recipe.run.preview_every:
        return []
    from javisc.trainer.tasks.dit import DiTTask
    from javisc.trainer.tasks.prior import PriorTask
    from javisc.trainer.tasks.sync import SyncTask
    from javisc.trainer.tasks.synchformer import SynchformerTask

    if isinstance(task, DiTTask):
        from javisc.trainer.use.previews.clips import Clips

        return [Previews(recipe.run.preview_every, Clips(task))]
    if isinstance(task, SyncTask | SynchformerTask):
        from javisc.trainer.use.previews.offsets import Offsets

        return [Previews(recipe.run.preview_every, Offsets(task))]
    if isinstance(task, PriorTask):
        from javisc.trainer.use.previews.retrieval import Retrieval

        return [Previews(recipe.run.preview_every, Retrieval(task))]
    raise UserError(
        f"run.preview_every={recipe.run.preview_every}: task {recipe.task} has no previews; set run.preview_every=0"
    )

"""`javisc` with the toy task among its own: what torchrun starts on each node."""

from __future__ import annotations

import os

from javisc.cli import main
from javisc.trainer.tasks.registry import TASKS
from support.toy_training import ToyRecipe, ToyTask

__all__ = ["ToyRecipe"]


class SlowToyTask(ToyTask):
    """As slow as TOY_SLOW says, so that there is time to kill it."""

    def __init__(self, recipe: ToyRecipe) -> None:
        super().__init__(recipe, slow=float(os.environ.get("TOY_SLOW", "0")))


TASKS["toy"] = ("support.toy_node", "ToyRecipe", "SlowToyTask")

if __name__ == "__main__":
    main()

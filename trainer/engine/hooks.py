"""What a user adds to a run: a class with any of five methods, called in every process. Previews are made this way, too."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.distributed import World
from javisc.trainer.engine.logs import Logs
from javisc.trainer.engine.meter import Meter
from javisc.trainer.engine.optim import EMA
from javisc.trainer.task import Task


@dataclass
class Run:
    """A run as a hook sees it. `model` has no DDP around it; `step` counts the optimizer's steps that were taken. What takes time
    belongs into `with run.meter.paused():`, so that it does not count as training."""

    recipe: Recipe
    task: Task[Any]
    model: nn.Module
    ema: EMA | None
    folder: Path
    world: World
    logs: Logs
    meter: Meter
    step: int = 0
    #: Names of the samples of this process's last batches.
    keys: list[str] = field(default_factory=list)

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model in eval mode, with the average's weights where there is one; as before afterwards."""
        if self.ema is not None:
            self.ema.swap()
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()
            if self.ema is not None:
                self.ema.swap()


class Hook:
    """Override what you need. Every process calls every method at the same time, so collectives are allowed; what a method draws
    from torch's generators does not change the run, whose steps are keyed by their number."""

    def started(self, run: Run) -> None:
        """Before the first step, the checkpoint loaded."""

    def stepped(self, run: Run) -> None:
        """After an optimizer step."""

    def validated(self, run: Run, metrics: Mapping[str, float]) -> None:
        """After a validation."""

    def saved(self, run: Run, folder: Path) -> None:
        """After weights were written to `folder`: `best` or `last`."""

    def ended(self, run: Run, why: str) -> None:
        """After the last step: done, terminated or stopped early."""


def hook(name: str) -> Hook:
    """The hook `MODULE:CLASS`, made without arguments. Raises UserError if it cannot be had."""
    module, _, attribute = name.partition(":")
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(
            f"--hook {name}: write MODULE:CLASS, a class that is made without arguments ({error})"
        ) from error
    if not isinstance(made, Hook):
        raise UserError(f"--hook {name}: {attribute} is no subclass of javisc.trainer.engine.hooks.Hook")
    return made

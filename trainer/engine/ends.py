"""When a run ends: its last step, its epochs, a SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from javisc.trainer.engine.config import Recipe
from javisc.trainer.task import Source


class Epochs:
    """Which step will be a run's last, as far as is known: epochs may end it before `run.steps`."""

    def __init__(self, recipe: Recipe, source: Source[Any]) -> None:
        self.run, self.source = recipe.run, source
        self.longest = len(source) if recipe.run.epochs else 0

    def last_step(self, step: int) -> int:
        """The last step's number, by the longest epoch seen so far."""
        if not self.run.epochs:
            return self.run.steps
        left = len(self.source)
        self.longest = max(self.longest, left)
        whole = max(self.run.epochs - 1 - int(self.source.state_dict().get("epoch", 0)), -1)
        batches = left + whole * self.longest if whole >= 0 else 0
        return min(self.run.steps, step + -(-batches // self.run.accumulate))


def ended(recipe: Recipe, step: int, source: Source[Any]) -> bool:
    run = recipe.run
    return step >= run.steps or (run.epochs > 0 and int(source.state_dict().get("epoch", 0)) >= run.epochs)


def due(step: int, every: int, end: bool) -> bool:
    return bool(every) and (end or step % every == 0)


@contextmanager
def terminations() -> Iterator[Any]:
    """While open, SIGTERM is remembered instead of obeyed; yields a function that tells whether it came."""
    came = False

    def remember(_: int, __: FrameType | None) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)

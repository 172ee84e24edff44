"""Runs of the recipes that javisc brings, in processes of their own: for `toy_training.Ranks`, with program=PROGRAM."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from javisc.trainer.engine.loop import train
from javisc.trainer.tasks.registry import load
from javisc.trainer.use.previews import preview_hooks
from support.toy_training import digest

PROGRAM = "support.recipe_training:run"


def run(folder: Path, overrides: Sequence[str] = (), *, recipe: str, resume: bool = False, die_at: int = -1) -> None:
    """One process's part of a run; writes the digest of the final weights to result-RANK. `die_at`: the loss that is its last."""
    settings, task = load(recipe, overrides)
    compute, calls = task.loss, 0

    def loss(model: nn.Module, batch: Any, device: torch.device) -> Any:
        nonlocal calls
        calls += 1
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(model, batch, device)

    def write(model: nn.Module) -> None:
        (folder / f"result-{os.environ.get('RANK', 0)}").write_text(digest(model))

    task.loss = loss  # type: ignore[method-assign]
    train(settings, task, folder, resume=resume, last=write, hooks=preview_hooks(settings, task))

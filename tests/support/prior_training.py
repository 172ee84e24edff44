"""Runs of `prior-tiny` in processes of their own, for `toy_training.Ranks`."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# What the frozen networks are built from, imported once before processes are forked.
from diffusers import AutoencoderKL  # noqa: F401
from torch import Tensor, nn
from transformers import CLIPTokenizer, SpeechT5HifiGan  # noqa: F401

from javisc.trainer.loop import train
from javisc.trainer.tasks.prior import PriorTask
from javisc.trainer.tasks.registry import load
from support.toy_training import digest


def run(folder: Path, overrides: Sequence[str] = (), *, resume: bool = False, die_at: int = -1) -> None:
    """One process's part of a run; writes the digest of the final weights to result-RANK. `die_at`: the loss that is its last."""
    recipe, task = load("prior-tiny", overrides)
    assert isinstance(task, PriorTask)
    if die_at > 0:
        _deadly(task, die_at)

    def write(model: nn.Module) -> None:
        (folder / f"result-{os.environ.get('RANK', 0)}").write_text(digest(model))

    train(recipe, task, folder, resume=resume, last=write)


def _deadly(task: PriorTask, die_at: int) -> None:
    compute, calls = task.loss, 0

    def loss(model: nn.Module, batch: Any, device: torch.device) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(model, batch, device)

    task.loss = loss  # type: ignore[method-assign]

"""Settings of the process that cost speed or memory when they are left alone: reported at the start of every run."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.distributed import World, looks_for_unused
from javisc.trainer.engine.hooks import Hook, Run

ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def grow_segments() -> None:
    """Let CUDA's allocator grow its segments, which buckets of many sizes would leave in pieces. Call it before CUDA is used;
    what a user has set stays."""
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


@contextmanager
def tuned(recipe: Recipe) -> Iterator[None]:
    """TF32 as `parallel.tf32` says and, with `run.gc_every`, no collection of garbage within a step; undone afterwards."""
    matmul, convolutions = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    if recipe.parallel.tf32 != "torch":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = recipe.parallel.tf32 == "allowed"
    collecting = gc.isenabled()
    if recipe.run.gc_every:
        gc.disable()
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = matmul, convolutions
        if collecting:
            gc.enable()


class Collect(Hook):
    """Collects garbage every so many steps, on all processes in the same one: none waits for another's collector."""

    def __init__(self, every: int) -> None:
        self.every = every

    def started(self, run: Run) -> None:
        """What is there now stays: it need not be looked through again."""
        gc.collect()
        gc.freeze()

    def stepped(self, run: Run) -> None:
        """Collect, if it is time."""
        if run.step % self.every == 0:
            gc.collect()

    def ended(self, run: Run, why: str) -> None:
        """As before."""
        gc.unfreeze()


def surroundings(here: World, recipe: Recipe) -> dict[str, str | int]:
    """What a run's speed depends on beside its recipe, for its log."""
    device = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else "cpu"
    return {
        "processes": here.size,
        "device": device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "tf32_matmul": int(torch.backends.cuda.matmul.allow_tf32),
        "tf32_convolution": int(torch.backends.cudnn.allow_tf32),
        "allocator": next((os.environ[name] for name in ALLOCATOR if name in os.environ), ""),
        "gc_every": recipe.run.gc_every,
        "find_unused": int(recipe.parallel.strategy == "ddp" and looks_for_unused(recipe.parallel, here.size)),
    }

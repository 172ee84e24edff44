"""Every so many steps: the average's weights, a folder of its own, a page over all folders, the logs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule

from javisc.manifests.files import published_folder
from javisc.trainer.engine.export import whole_state
from javisc.trainer.engine.hooks import Hook, Run
from javisc.trainer.use.previews.page import write_page

#: The folder of a run that holds its previews.
FOLDER = "previews"


class Maker(Protocol):
    """What one kind of preview does. `alone`: the first process does it, with an unsharded model, while the others wait."""

    alone: bool

    def make(self, run: Run, model: nn.Module, folder: Path) -> str:
        """Write the preview's files into `folder`, tell `run.logs`, and return the HTML that shows them: links are relative to
        `folder`."""


class Previews(Hook):
    """A preview at every `every`-th step. Nothing that it draws or computes changes the run."""

    def __init__(self, every: int, maker: Maker) -> None:
        self.every, self.maker = every, maker

    def started(self, run: Run) -> None:
        """Drop previews of steps that are taken again."""
        if run.world.first:
            for later in (run.folder / FOLDER).glob("step-*"):
                if int(later.name.removeprefix("step-")) > run.step:
                    shutil.rmtree(later)

    def stepped(self, run: Run) -> None:
        """Make one, if it is time."""
        if run.step % self.every == 0:
            with run.meter.paused():
                self.preview(run)

    @torch.no_grad()
    def preview(self, run: Run) -> None:
        """Make one now."""
        folder = run.folder / FOLDER / f"step-{run.step:08d}"
        with run.evaluating() as model:
            if not self.maker.alone:
                self._make(run, model, folder)
            elif isinstance(model, FSDPModule):
                state = whole_state(model)
                if run.world.first:
                    whole = run.task.model().to(run.world.device)
                    whole.load_state_dict(state)
                    self._make(run, whole.eval(), folder)
            elif run.world.first:
                self._make(run, model, folder)
        dist.barrier(run.world.control)

    def _make(self, run: Run, model: nn.Module, folder: Path) -> None:
        if not run.world.first:
            self.maker.make(run, model, folder)
            return
        with published_folder(folder) as new:
            shown = self.maker.make(run, model, new)
            (new / "part.html").write_text(shown, encoding="utf-8")
        write_page(folder.parent, run.recipe.run.name or run.folder.resolve().name)

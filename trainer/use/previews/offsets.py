"""Previews of the sync selector: which offsets it takes for which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from javisc.trainer.engine.hooks import Run
from javisc.trainer.tasks.selector import SelectorTask
from javisc.trainer.transforms.sync_window import ClassGrid
from javisc.trainer.use.previews.page import shade

#: Pixels of a cell of the matrix in the logs.
CELL = 16


class Offsets:
    """A matrix over held-out clips: a row for each true offset, a column for each that was ranked first."""

    alone = False

    def __init__(self, task: SelectorTask) -> None:
        self.task = task

    def make(self, run: Run, model: nn.Module, folder: Path) -> str:
        """The matrix as a table, as an image for the logs, and as numbers in matrix.csv."""
        data, here = self.task.recipe.data, run.world
        split = data.train_split if data.valid_split is None else data.valid_split
        logits, targets = self.task.predictions(model, split, here.rank, here.size, here.device)
        if not here.first:
            return ""
        transforms, classes = self.task.recipe.transforms, self.task.classes
        counts = confusion(logits, targets, classes)
        seconds = [str(number) for number in range(classes)]
        if classes == transforms.classes:
            seconds = [f"{value:+.2f}" for value in ClassGrid(transforms.max_off_sec, classes).values]
        lines = [",".join(["true \\ first", *seconds])]
        lines += [",".join([s, *map(str, row)]) for s, row in zip(seconds, counts.tolist(), strict=True)]
        (folder / "matrix.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        shares = counts / counts.sum(1, keepdims=True).clip(1)
        run.logs.image(run.step, "preview/offsets", picture(shares))
        right = float(np.trace(counts) / max(counts.sum(), 1))
        return table(seconds, counts, shares, right)


def confusion(logits: Tensor, targets: Tensor, classes: int) -> NDArray[Any]:
    """Counts [true class, class ranked first]; targets without an offset (-1) are left out."""
    known = targets >= 0
    first = logits[known].argmax(1)
    flat = torch.bincount(targets[known] * classes + first, minlength=classes * classes)
    return flat.view(classes, classes).numpy()


def picture(shares: NDArray[Any]) -> NDArray[Any]:
    """Shares [n, n] as an image, uint8 [H, W, 3], dark where they are large."""
    grey = (255 * (1 - shares)).round().astype(np.uint8)
    return np.repeat(np.kron(grey, np.ones((CELL, CELL), np.uint8))[..., None], 3, axis=2)


def table(seconds: list[str], counts: NDArray[Any], shares: NDArray[Any], right: float) -> str:
    """The matrix as HTML."""
    head = "".join(f"<th>{one}</th>" for one in seconds)
    rows = []
    for name, numbers, row in zip(seconds, counts.tolist(), shares.tolist(), strict=True):
        cells = "".join(f'<td style="{shade(share)}">{n or ""}</td>' for n, share in zip(numbers, row, strict=True))
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    words = f"{counts.sum()} held-out crops, {right:.1%} of them right. Rows: the true offset in seconds; columns: ranked first."
    return f'<p>{words}</p><div class="wide"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div>'

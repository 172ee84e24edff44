"""Previews of the prior: does a caption's prior find its own clip among the clip's negatives?"""

from __future__ import annotations

import html
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from javisc.trainer.engine.hooks import Run
from javisc.trainer.models.prior import STIBPrior
from javisc.trainer.objectives.contrastive import similarities
from javisc.trainer.tasks.prior import ASPECTS, PriorTask
from javisc.trainer.use.previews.page import shade

#: Held-out batches that are looked at.
BATCHES = 4


class Retrieval:
    """For every aspect the similarity of a caption's prior with its clip and with each negative of it, and how often its own is
    the highest."""

    alone = True

    def __init__(self, task: PriorTask) -> None:
        self.task = task

    def make(self, run: Run, model: nn.Module, folder: Path) -> str:
        """A table of clips; the shares of hits go to the log."""
        assert isinstance(model, STIBPrior)
        names: list[str] = []
        found: dict[str, list[Tensor]] = {aspect: [] for aspect in ASPECTS}
        for batch in islice(self.task.shown(), BATCHES):
            inputs = self.task.inputs(batch, run.world.device)
            tokens = STIBPrior.forward(model, inputs.hidden, inputs.noise)
            size = inputs.height, inputs.width
            for aspect, values in similarities(
                model, tokens, inputs.video, inputs.audio, inputs.negatives, *size
            ).items():
                found[aspect].append(values.float().cpu())
            names += batch.keys
        tables = {aspect: torch.cat(parts) for aspect, parts in found.items()}
        hits = {aspect: float((values.argmax(1) == 0).float().mean()) for aspect, values in tables.items()}
        run.logs.row(run.step, "preview", {f"{aspect}_retrieval": share for aspect, share in hits.items()})
        return "".join(table(aspect, hits[aspect], names, values) for aspect, values in tables.items())


def table(aspect: str, hit: float, names: list[str], values: Tensor) -> str:
    """One aspect's similarities as HTML; the highest of a row is shaded."""
    head = "<th>clip</th><th>its own</th>" + "".join(f"<th>negative {n}</th>" for n in range(1, values.shape[1]))
    rows = []
    for name, row in zip(names, values.tolist(), strict=True):
        best = max(row)
        cells = "".join(f'<td style="{shade(0.6 * (value == best))}">{value:.3f}</td>' for value in row)
        rows.append(f'<tr><td class="text">{html.escape(name).replace("{", "&#123;")}</td>{cells}</tr>')
    words = (
        f"{aspect}: the own clip is the most similar for {hit:.0%} of {len(names)}; chance is {1 / values.shape[1]:.0%}"
    )
    return f'<h3>{words}</h3><div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'

"""What the steps since the last row of the log gave, kept on the device until somebody reads it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.distributed import World
from javisc.trainer.engine.logs import Logs
from javisc.trainer.engine.optim import Stepper


@dataclass(frozen=True)
class Taken:
    """A step: this process's losses by term, the norm of all processes' gradient, 1.0 if it was skipped; of each micro-batch the
    names of its samples and whether its own loss was finite."""

    step: int
    terms: dict[str, Tensor]
    norm: Tensor
    bad: Tensor
    keys: list[list[str]]
    finite: list[Tensor]


class Window:
    """Losses of the steps since the last row: their means over steps and processes, and which steps were skipped.

    All processes call all methods together. `settle` is the only place where training reads the device.
    """

    def __init__(self, here: World, limit: int) -> None:
        self.here, self.limit = here, limit
        self.taken: list[Taken] = []
        #: By name, a value for every settled step of the window.
        self.values: dict[str, list[float]] = {}

    def saw(self, taken: Taken) -> None:
        """Remember a step."""
        self.taken.append(taken)

    def settle(self, stepper: Stepper, logs: Logs) -> None:
        """Read what was remembered, write down the samples of skipped steps, and give up after too many in a row.

        Raises UserError then.
        """
        if not self.taken:
            return
        names = list(self.taken[0].terms)
        if any(list(taken.terms) != names for taken in self.taken):
            raise RuntimeError("a task's loss must have the same terms in every step")
        terms = torch.stack([torch.stack([taken.terms[name] for name in names]) for taken in self.taken])
        dist.all_reduce(terms)
        rest = torch.stack([torch.stack([taken.norm, taken.bad, stepper.skipped]) for taken in self.taken])
        rows = torch.cat([terms, rest.to(terms)], 1).tolist()
        for *losses, norm, _, _ in rows:
            given = {name: value / self.here.size for name, value in zip(names, losses, strict=True)}
            for name, value in {**given, "grad_norm": norm}.items():
                self.values.setdefault(name, []).append(value)
        skipped = [taken for taken, row in zip(self.taken, rows, strict=True) if row[-2]]
        if skipped:
            self._tell(skipped, logs)
        self.taken = []
        if (in_a_row := int(rows[-1][-1])) > self.limit:
            raise UserError(
                f"{in_a_row} steps in a row had gradients that are not finite (run.max_skipped={self.limit}): the samples are in "
                "metrics.jsonl; lower optimizer.lr, or use parallel.precision=bf16"
            )

    def _tell(self, skipped: list[Taken], logs: Logs) -> None:
        """Write down the samples of skipped steps, of all processes; those whose own loss was not finite are the suspects."""
        mine = []
        for taken in skipped:
            flags = torch.stack(taken.finite).tolist()
            keys = [key for names in taken.keys for key in names]
            suspects = [key for names, fine in zip(taken.keys, flags, strict=True) if not fine for key in names]
            mine.append((keys, suspects))
        every: list[Any] = [None] * self.here.size
        dist.all_gather_object(every, mine, group=self.here.control)
        for number, taken in enumerate(skipped):
            keys, suspects = ([key for theirs in every for key in theirs[number][part]] for part in (0, 1))
            event = "the gradient was not finite: step skipped"
            logs.row(taken.step, "event", {"event": event, "keys": keys, "suspects": suspects})

    def means(self) -> dict[str, float]:
        """The window's mean by name, over the steps whose value is finite (nan if none is), and how many steps were skipped; the
        window is empty afterwards."""
        told, skipped = {}, 0
        for name, values in self.values.items():
            fine = [value for value in values if math.isfinite(value)]
            told[name] = math.fsum(fine) / len(fine) if fine else math.nan
            if name == "grad_norm":
                skipped = len(values) - len(fine)
        self.values = {}
        return {**told, "skipped": skipped}

    def state_dict(self) -> dict[str, list[float | None]]:
        """The settled values: a resumed run's next row is the one that the run would have written."""
        return {name: [v if math.isfinite(v) else None for v in values] for name, values in self.values.items()}

    def load_state_dict(self, state: dict[str, list[float | None]]) -> None:
        """Go on with another window's values; null stands for what is not finite."""
        self.values = {name: [math.nan if v is None else v for v in values] for name, values in state.items()}

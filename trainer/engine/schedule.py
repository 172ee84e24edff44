"""Learning rates by step, and when to stop: pure functions and small states that a checkpoint can hold."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from javisc.manifests.errors import UserError
from javisc.trainer.engine.settings import setting

KINDS = ("constant", "cosine", "openclip")


@dataclass
class ScheduleConfig:
    """A linear warm-up from `start_factor` of the rate over `warmup_steps`, then the kind's own course.

    `constant` keeps the rate; `cosine` lets it fall to `end_factor` of it at step run.steps. `openclip` is cosine after a warm-up
    that begins at one step's share, whatever `start_factor` says.
    """

    kind: str = setting("constant", "The course after the warm-up.", choices=KINDS)
    warmup_steps: int = setting(1000, "Steps over which the rate rises.", least=0)
    start_factor: float = setting(0.01, "The warm-up's beginning, as a part of the rate.", least=0, most=1)
    end_factor: float = setting(0.05, "The cosine's end, as a part of the rate.", least=0, most=1)


def rate_factor(config: ScheduleConfig, step: int, last: int = 0) -> float:
    """By what the base rate is multiplied in step `step` (from 0) of `last`.

    In the warm-up f + (1 - f) · t / warmup with f = start_factor; after it 1, or with `cosine`, e being end_factor,
    e + (1 - e) · (1 + cos(π · (t - warmup) / (last - warmup))) / 2. With `openclip`, (t + 1) / warmup in the warm-up.
    """
    if config.kind not in KINDS:
        raise UserError(f"schedule.kind={config.kind!r}: it may be {', '.join(KINDS)}")
    warmup = max(config.warmup_steps, 0)
    if step < warmup and config.kind == "openclip":
        return (step + 1) / warmup
    if step < warmup:
        return config.start_factor + (1 - config.start_factor) * step / warmup
    if config.kind == "constant":
        return 1.0
    share = min((step - warmup) / max(last - warmup, 1), 1.0)
    return config.end_factor + (1 - config.end_factor) * (1 + math.cos(math.pi * share)) / 2


@dataclass
class EarlyStop:
    """Stops after `patience` evaluations without a strictly better value."""

    patience: int
    to_max: bool = True
    best: float | None = None
    waited: int = 0

    def update(self, value: float) -> bool:
        """Take an evaluation's value; True if it is the best so far. What is no number never is."""
        better = not math.isnan(value) and (
            self.best is None or (value > self.best if self.to_max else value < self.best)
        )
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)
        return better

    @property
    def triggered(self) -> bool:
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key in ("best", "waited")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], int(state["waited"])

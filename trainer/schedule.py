"""Learning rates by step, and when to stop: pure functions and small states that a checkpoint can hold."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from javisc.manifests.errors import UserError

KINDS = ("constant",)


@dataclass
class ScheduleConfig:
    """A linear warm-up from `start_factor` of the rate over `warmup_steps`, then the kind's own course."""

    kind: str = "constant"
    warmup_steps: int = 1000
    start_factor: float = 0.01


def rate_factor(config: ScheduleConfig, step: int) -> float:
    """By what the base rate is multiplied in step `step` (from 0): f + (1 - f) · min(t, warmup) / warmup."""
    if config.kind not in KINDS:
        raise UserError(f"schedule.kind={config.kind!r}: it may be {', '.join(KINDS)}")
    if config.warmup_steps <= 0:
        return 1.0
    return config.start_factor + (1 - config.start_factor) * min(step, config.warmup_steps) / config.warmup_steps


@dataclass
class EarlyStop:
    """Stops after `patience` evaluations without a strictly better value."""

    patience: int
    to_max: bool = True
    best: float | None = None
    waited: int = 0

    def update(self, value: float) -> bool:
        """Take an evaluation's value; True if it is the best so far."""
        better = self.best is None or (value > self.best if self.to_max else value < self.best)
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)
        return better

    @property
    def triggered(self) -> bool:
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key in ("best", "waited")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], int(state["waited"])

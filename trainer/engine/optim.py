"""The optimizer's step: unscale, clip, guard and update without a look at the device from the host; and the moving average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.distributed import clean
from javisc.trainer.engine.settings import setting
from javisc.trainer.task import CarryOver

OPTIMIZERS = ("adam", "adamw", "sgd")
DECAYS = ("all", "matrices")
SGD_IS_WHOLE = "optimizer.name=sgd knows no sharded tensors: use adam or adamw, or parallel.strategy=ddp"
#: Words in the names of tensors that `weight_decay_on: matrices` leaves alone, beside those of fewer than two dimensions.
_NO_DECAY = ("bn", "ln", "bias", "logit_scale")


@dataclass
class OptimizerConfig:
    """`lr` is multiplied by the number of processes where `scale_lr_by_world` is set. `eps` is Adam's.

    `weight_decay_on`: all, or matrices, which leaves biases, norms and temperatures as they are (OpenCLIP's two groups).
    """

    name: str = setting("adam", "The rule of the update.", choices=OPTIMIZERS)
    lr: float = setting(5e-6, "The learning rate, before the schedule.", above=0)
    scale_lr_by_world: bool = setting(True, "Multiply `lr` by the number of processes.")
    betas: tuple[float, float] = setting((0.9, 0.999), "Adam's decay of both moments.", least=0, most=1 - 1e-12)
    eps: float = setting(1e-7, "Adam's smallest denominator.", least=0)
    momentum: float = setting(0.9, "SGD's.", least=0, most=1 - 1e-12)
    weight_decay: float = setting(0.0, "Decoupled with adamw, part of the gradient else.", least=0)
    weight_decay_on: str = setting("all", "What decays.", choices=DECAYS)
    clip_norm: float | None = setting(1.0, "The largest norm of a step's gradient; null clips nothing.", above=0)


@dataclass
class LossScaleConfig:
    """The loss scale of fp16: halved after an overflow, doubled after `growth_interval` steps without one."""

    initial: float = setting(65536.0, "The scale at the start.", above=0)
    growth_factor: float = setting(2.0, "By what it grows.", least=1)
    backoff_factor: float = setting(0.5, "By what it shrinks after an overflow.", above=0, most=1)
    growth_interval: int = setting(2000, "Steps without an overflow after which it grows.", least=1)


def groups_of(named: Sequence[tuple[str, nn.Parameter]], config: OptimizerConfig) -> list[dict[str, Any]]:
    """The parameters as groups of one weight decay each."""
    if config.weight_decay_on == "all" or not config.weight_decay:
        return [{"params": [p for _, p in named]}]
    kept = {name for name, p in named if p.ndim < 2 or any(word in name for word in _NO_DECAY)}
    parts = ([p for name, p in named if name in kept], [p for name, p in named if name not in kept])
    return [
        {"params": part, "weight_decay": decay}
        for part, decay in zip(parts, (0.0, config.weight_decay), strict=True)
        if part
    ]


def build_optimizer(
    params: Sequence[nn.Parameter] | list[dict[str, Any]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """A fused optimizer: its kernels skip an update when the tensor `found_inf` says so, which is what the guard relies on."""
    beta1, beta2 = config.betas
    match config.name:
        case "adam":
            return torch.optim.Adam(params, config.lr, (beta1, beta2), config.eps, config.weight_decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(params, config.lr, (beta1, beta2), config.eps, config.weight_decay, fused=True)
        case "sgd":
            flat = [one for p in params for one in (p["params"] if isinstance(p, dict) else [p])]
            if any(isinstance(p, DTensor) for p in flat):
                raise UserError(SGD_IS_WHOLE)
            return torch.optim.SGD(params, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True)
    raise UserError(f"optimizer.name={config.name!r}: it may be {', '.join(OPTIMIZERS)}")


class Stepper:
    """One optimizer step at a time. A step whose gradient norm is not finite changes nothing but the skip counter.

    Everything is decided by tensors on the device; the host learns of it when it reads `skipped` for the log.
    """

    def __init__(
        self, model: nn.Module, config: OptimizerConfig, device: torch.device, scaling: LossScaleConfig | None
    ) -> None:
        self.config, self.scaling = config, scaling
        self.named = [(clean(name), p) for name, p in model.named_parameters() if p.requires_grad]
        self.params = [p for _, p in self.named]
        self.optimizer = build_optimizer(groups_of(self.named, config), config)
        self.scale = torch.tensor(1.0 if scaling is None else scaling.initial, device=device)
        self.growth = torch.zeros((), dtype=torch.int32, device=device)
        #: Steps skipped in a row.
        self.skipped = torch.zeros((), dtype=torch.float32, device=device)

    def prepare(self) -> None:
        """Make the optimizer's state without an update, so that a checkpoint can be loaded into it."""
        for p in self.params:
            p.grad = torch.zeros_like(p)
        self._update(self.config.lr, torch.ones_like(self.skipped))
        self.optimizer.zero_grad(set_to_none=True)

    def adopt(self, carried: CarryOver) -> None:
        """Take over another optimizer's moments and loss scale; parameters it did not have start fresh."""
        for name, p in self.named:
            for key, value in carried.moments.get(name, {}).items():
                mine = self.optimizer.state[p][key]
                whole = value.to(device=mine.device, dtype=mine.dtype).view(mine.shape)
                if isinstance(mine, DTensor):
                    whole = distribute_tensor(whole, mine.device_mesh, mine.placements)
                mine.copy_(whole)
        if self.scaling is not None and carried.scale is not None:
            self.scale.fill_(carried.scale)
            self.growth.fill_(carried.growth)

    def step(self, lr: float) -> tuple[Tensor, Tensor]:
        """Update the parameters at rate `lr`; returns the gradient norm before clipping, and 1.0 where the step was skipped."""
        grads = [p.grad for p in self.params if p.grad is not None]
        total = torch.nn.utils.get_total_norm(grads, foreach=True)
        norm = (total.full_tensor() if isinstance(total, DTensor) else total) / self.scale
        bad = (~norm.isfinite()).float()
        factor = 1 / self.scale
        if self.config.clip_norm is not None:
            factor = factor * (self.config.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, factor)
        self._update(lr, bad)
        if self.scaling is not None:
            s = self.scaling
            torch._amp_update_scale_(self.scale, self.growth, bad, s.growth_factor, s.backoff_factor, s.growth_interval)
        self.skipped.add_(1).mul_(bad)
        self.optimizer.zero_grad(set_to_none=True)
        return norm, bad

    def _update(self, lr: float, bad: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # The contract between GradScaler and fused optimizers: they look these two up on themselves.
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.found_inf = bad  # type: ignore[attr-defined]
        self.optimizer.step()

    def state_dict(self) -> dict[str, Tensor]:
        """The optimizer's tensors by parameter name, and the loss scale's; loaded in place."""
        state = {
            f"state.{name}.{key}": value
            for name, p in self.named
            for key, value in self.optimizer.state[p].items()
            if isinstance(value, Tensor)
        }
        return {**state, "scale": self.scale, "growth": self.growth, "skipped": self.skipped}


@dataclass
class EMAConfig:
    """A moving average of the parameters; off while `decay` is 0. With `warmup`, decay starts at 0.1: min(d, (1+n)/(10+n))."""

    decay: float = setting(0.0, "What the average keeps of itself in a step; 0 keeps no average.", least=0, most=1)
    warmup: bool = setting(False, "Start at 0.1 and rise to `decay`.")


class EMA:
    """The moving average, sharded like the model."""

    def __init__(self, model: nn.Module, config: EMAConfig) -> None:
        self.config, self.updates = config, 0
        self.source = [(clean(name), p) for name, p in model.named_parameters() if p.requires_grad]
        self.average = [p.detach().clone() for _, p in self.source]

    @torch.no_grad()
    def update(self) -> None:
        """average ← decay · average + (1 - decay) · parameters."""
        decay = self.config.decay
        if self.config.warmup:
            decay = min(decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self.average, [p.detach() for _, p in self.source], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged tensors by parameter name; loaded in place."""
        return {name: value for (name, _), value in zip(self.source, self.average, strict=True)}

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the average and the parameters: before and after an evaluation of the average."""
        for (_, p), value in zip(self.source, self.average, strict=True):
            kept = p.detach().clone()
            p.copy_(value)
            value.copy_(kept)

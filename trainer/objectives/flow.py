"""Rectified flow: x_t = (1 − t/T) x0 + (t/T) noise, the network predicts the velocity x0 − noise.

Letters: B rows; latents are [B, c, frames, ...] with the frame axis third; T = `num_timesteps`, t = 0 clean, t = T noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.settings import setting

#: (noised latents by modality, timesteps [B], frame masks by modality) → the network's outputs by modality.
Velocity = Callable[[dict[str, Tensor], Tensor, dict[str, Tensor]], Mapping[str, Tensor]]


@dataclass
class FlowConfig:
    """How times are drawn and losses taken.

    `masked_rows`: a row without a generated frame in a modality contributes 1.0 to its loss, without gradient ("one", the
    reference), or nothing and is left out of the mean ("excluded").
    """

    num_timesteps: int = setting(1000, "Times of the noise's scale.", least=1)
    sample_method: str = setting("logit-normal", "How times are drawn.", choices=("uniform", "logit-normal"))
    loc: float = setting(0.0, "The logit-normal's mean.")
    scale: float = setting(1.0, "The logit-normal's deviation.", above=0)
    use_discrete_timesteps: bool = setting(False, "Whole times alone.")
    use_timestep_transform: bool = setting(True, "Shift times for larger clips.")
    transform_scale: float = setting(1.0, "How strongly times are shifted for larger clips.", above=0)
    masked_rows: str = setting(
        "one",
        "What a row without a generated frame adds: 1.0, or nothing.",
        choices=("one", "excluded"),
    )

    def __post_init__(self) -> None:
        for name, allowed in (("sample_method", ("logit-normal", "uniform")), ("masked_rows", ("one", "excluded"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if self.use_discrete_timesteps and self.sample_method != "uniform":
            raise UserError("use_discrete_timesteps needs sample_method uniform")


def shift_times(
    t: Tensor,
    height: Tensor | float,
    width: Tensor | float,
    num_frames: Tensor | float,
    *,
    scale: float = 1.0,
    total: int = 1000,
) -> Tensor:
    """Move times towards noise for larger videos: t' = T r τ / (1 + (r − 1) τ), r = scale √(h w / 512²) √f.

    f = 1 for single images (the first row decides), else (num_frames // 17) 5. Sizes in pixels, as scalars or [B].
    """

    def row(value: Tensor | float) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float32, device=t.device)

    frames = row(num_frames)
    factor = torch.ones_like(frames) if frames.flatten()[0] == 1 else torch.div(frames, 17, rounding_mode="floor") * 5
    ratio = scale * (row(height) * row(width) / (512 * 512)).sqrt() * factor.sqrt()
    tau = t / total
    return total * ratio * tau / (1 + (ratio - 1) * tau)


def draw_times(
    rows: int,
    config: FlowConfig,
    height: Tensor | float,
    width: Tensor | float,
    num_frames: Tensor | float,
    *,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """[rows] training times: logit-normal or uniform, whole numbers if discrete, shifted if configured."""
    total = config.num_timesteps
    if config.use_discrete_timesteps:
        t = torch.randint(0, total, (rows,), device=device, generator=generator).float()
    elif config.sample_method == "uniform":
        t = torch.rand(rows, device=device, generator=generator) * total
    else:
        t = logit_normal(torch.randn(rows, device=device, generator=generator), config.loc, config.scale) * total
    if config.use_timestep_transform:
        t = shift_times(t, height, width, num_frames, scale=config.transform_scale, total=total)
    return t


def logit_normal(normal: Tensor, loc: float = 0.0, scale: float = 1.0) -> Tensor:
    """Standard normal draws → numbers in 0 to 1 whose logit is normal(loc, scale)."""
    return torch.sigmoid(loc + scale * normal)


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, total: int = 1000) -> Tensor:
    """x_t for times [B]."""
    tau = (t / total).view(-1, *[1] * (x0.ndim - 1)).to(x0.dtype)
    return (1 - tau) * x0 + tau * noise


def over_frames(mask: Tensor, like: Tensor) -> Tensor:
    """A frame mask [B, frames] shaped to broadcast over a latent [B, c, frames, ...]."""
    return mask.view(len(mask), 1, -1, *[1] * (like.ndim - 3))


@dataclass(frozen=True)
class FlowLoss:
    """`loss` [B] sums the modalities; `parts` holds each modality's [B]; `counted` which rows a modality counts for."""

    loss: Tensor
    parts: dict[str, Tensor]
    counted: dict[str, Tensor]
    noised: dict[str, Tensor]

    def mean(self) -> Tensor:
        """What is minimised: the sum of `means`."""
        return torch.stack(list(self.means().values())).sum()

    def means(self) -> dict[str, Tensor]:
        """Per modality the mean over the rows that count."""
        return {
            k: (part * self.counted[k]).sum() / self.counted[k].sum().clamp_min(1) for k, part in self.parts.items()
        }


def squared_error(predicted: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """[B]: mean squared error of a row; with a frame mask (true = generated) over its generated frames, 1e-6 in both sums."""
    error = (predicted - target).float().pow(2)
    if mask is None:
        return error.flatten(1).mean(1)
    weight = over_frames(mask.float(), error)
    per_frame = error[:, :, :1].numel() / len(error)
    return ((weight * error).flatten(1).sum(1) + 1e-6) / (weight.flatten(1).sum(1) * per_frame + 1e-6)


def flow_loss(
    velocity: Velocity,
    latents: Mapping[str, Tensor],
    noise: Mapping[str, Tensor],
    t: Tensor,
    config: FlowConfig,
    masks: Mapping[str, Tensor] | None = None,
    modalities: tuple[str, ...] = ("video", "audio"),
) -> FlowLoss:
    """Noise the latents to times t [B], predict, compare.

    `masks` [B, frames] by modality, true = generated; given frames go in clean. `modalities` are those that learn:
    ("audio",) in stage 1, where a video latent may be absent. Only the first channels of a prediction are the velocity.
    """
    masks = dict(masks or {})
    noised = {}
    for name, x0 in latents.items():
        x_t = add_noise(x0, noise[name], t, config.num_timesteps)
        noised[name] = x_t if name not in masks else torch.where(over_frames(masks[name].bool(), x0), x_t, x0)
    predicted = velocity(noised, t, masks)
    parts, counted = {}, {}
    for name in modalities:
        x0, mask = latents[name], masks.get(name)
        part = squared_error(predicted[name][:, : x0.shape[1]], x0 - noise[name], mask)
        counted[name] = torch.ones_like(part)
        if mask is not None and config.masked_rows == "excluded":
            counted[name] = mask.any(1).to(part)
            part = part * counted[name]
        parts[name] = part
    return FlowLoss(torch.stack(list(parts.values())).sum(0), parts, counted, noised)


def preference_loss(policy: Tensor, reference: Tensor, beta: float, *, anchor: float = 0.1) -> tuple[Tensor, Tensor]:
    """JavisDiT++'s preference loss of one modality: ([pairs] loss, mean implicit accuracy).

    policy, reference [2 · pairs]: flow losses L of the learning and the frozen model, winners first.
    −log σ(−β/2 ((L_w − L_l) − (L_w^ref − L_l^ref))) + anchor · L_w.
    """
    winner, loser = policy.chunk(2)
    winner_ref, loser_ref = reference.chunk(2)
    inner = -0.5 * beta * ((winner - loser) - (winner_ref - loser_ref))
    return -F.logsigmoid(inner) + anchor * winner, (inner > 0).float().mean()

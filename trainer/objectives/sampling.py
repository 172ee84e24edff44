"""From noise to latents: Euler steps along the flow, with guidance and conditioning masks.

Letters: B rows; latents are [B, c, frames, ...] with the frame axis third; T = `num_timesteps`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.objectives.flow import Velocity, add_noise, over_frames, shift_times

#: (step, modality, latent) → that step's noise for frames whose edit begins.
StepNoise = Callable[[int, str, Tensor], Tensor]


@dataclass(frozen=True)
class SamplerConfig:
    """`edit_masks`: where a mask lies between 0 and 1, the reference shows the network the noised frame and then moves the
    un-noised one ("reference"); "clean" moves the frame the network saw."""

    num_sampling_steps: int = 30
    num_timesteps: int = 1000
    cfg_scale: float = 7.0
    use_discrete_timesteps: bool = False
    use_timestep_transform: bool = True
    edit_masks: str = "clean"

    def __post_init__(self) -> None:
        if self.num_sampling_steps < 1:
            raise UserError(f"num_sampling_steps is {self.num_sampling_steps}; it must be at least 1")
        if self.edit_masks not in ("clean", "reference"):
            raise UserError(f"edit_masks is {self.edit_masks!r}; allowed are clean, reference")


def sampling_times(
    config: SamplerConfig,
    rows: int,
    height: Tensor | float,
    width: Tensor | float,
    num_frames: Tensor | float,
    device: torch.device,
) -> list[Tensor]:
    """Each step's times [rows], T (1 − i/n) shifted for the size; the shift's scale is always 1 here."""
    steps, total = config.num_sampling_steps, config.num_timesteps
    values = [(1.0 - i / steps) * total for i in range(steps)]
    if config.use_discrete_timesteps:
        values = [float(round(value)) for value in values]
    times = [torch.full((rows,), value, dtype=torch.float32, device=device) for value in values]
    if config.use_timestep_transform:
        times = [shift_times(t, height, width, num_frames, total=total) for t in times]
    return times


@torch.no_grad()
def sample(
    velocity: Velocity,
    z: Mapping[str, Tensor],
    times: list[Tensor],
    config: SamplerConfig,
    *,
    masks: Mapping[str, Tensor] | None = None,
    step_noise: StepNoise | None = None,
    progress: Callable[[int, Tensor], None] = lambda step, t: None,
) -> dict[str, Tensor]:
    """Integrate from noise z to clean latents.

    `velocity` is called once a step on the doubled batch: conditional rows first, then unconditional ones. `masks` [B,
    frames] in 0 to 1 by modality: 1 generates the frame, 0 keeps z's, in between the frame is kept until the time falls
    to mask · T, noised to that time (by `step_noise`, fresh normal noise if absent) and generated from there.
    `progress` is told every step.
    """
    masks = dict(masks or {})
    total = config.num_timesteps
    state = dict(z)
    noised = {name: mask == 1 for name, mask in masks.items()}
    for step, t in enumerate(times):
        shown, active = dict(state), {}
        for name, mask in masks.items():
            # a shifted time may exceed T by a rounding: frames at 1 are active all the same
            active[name] = (mask == 1) | (mask * total >= t[:, None])
            begins = active[name] & ~noised[name]
            if bool(begins.any()):
                x = state[name]
                noise = torch.randn_like(x) if step_noise is None else step_noise(step, name, x)
                shown[name] = torch.where(over_frames(begins, x), add_noise(x, noise, t, total), x)
            noised[name] = active[name]
        doubled = {name: torch.cat((x, x)) for name, x in shown.items()}
        out = velocity(doubled, t.repeat(2), {name: on.repeat(2, 1) for name, on in active.items()})
        span = (t - times[step + 1] if step + 1 < len(times) else t) / total
        for name, x in state.items():
            if name not in out:
                continue
            conditional, null = out[name][:, : x.shape[1]].chunk(2)
            v = (null + config.cfg_scale * (conditional - null)).to(x.dtype)
            start = x if config.edit_masks == "reference" else shown[name]
            moved = start + v * span.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
            state[name] = moved if name not in active else torch.where(over_frames(active[name], x), moved, x)
        progress(step, t)
    return state

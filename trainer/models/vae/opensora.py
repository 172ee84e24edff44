"""OpenSora-VAE v1.2: a 2-D autoencoder per frame (diffusers) and the causal temporal one over its latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from javisc.trainer.data.sources.noise import from_posterior
from javisc.trainer.data.sources.noise import normal as noise_of
from javisc.trainer.engine.moving import to_device
from javisc.trainer.engine.weights import load_strictly, read_options, read_weights
from javisc.trainer.models.frozen import need_weights
from javisc.trainer.models.vae.temporal import TemporalVAE

#: The 2-D half's layout: SDXL's autoencoder.
SPATIAL: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
}
SPATIAL_SCALE = 0.18215
SHIFT = (-0.10, 0.34, 0.27, 0.98)
SCALE = (3.85, 2.32, 2.33, 3.06)


class _Spatial(nn.Module):
    """Holds the 2-D autoencoder under its official prefix."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        from diffusers import AutoencoderKL

        kind: Any = AutoencoderKL
        self.module = kind(**options)

    def encode(self, pictures: Tensor, draws: list[Generator] | None, *, mode: bool) -> Tensor:
        """[n, 3, H, W] → scaled latents [n, 4, H/8, W/8]; `draws` has a generator per picture."""
        coder: Any = self.module
        return from_posterior(coder.encode(pictures).latent_dist, draws, mode=mode) * SPATIAL_SCALE

    def decode(self, latents: Tensor) -> Tensor:
        """The way back."""
        coder: Any = self.module
        return coder.decode(latents / SPATIAL_SCALE).sample


class OpenSoraVAE(nn.Module):
    """Videos [B, 3, T, H, W] in -1 to 1 ↔ latents [B, 4, t, H/8, W/8]; 17 frames are 5 latent frames. Frozen.

    `frames_at_once`: how many frames the 2-D half takes in one call (memory only).
    """

    scale: Tensor
    shift: Tensor
    latent_channels = 4
    group = 17

    def __init__(
        self, spatial: dict[str, Any] | None = None, temporal: dict[str, Any] | None = None, frames_at_once: int = 4
    ) -> None:
        super().__init__()
        self.frames_at_once = frames_at_once
        self.spatial_vae = _Spatial(spatial or SPATIAL)
        self.temporal_vae = TemporalVAE(**(temporal or {}))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 4, 1, 1, 1))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 4, 1, 1, 1))
        self.requires_grad_(False).eval()

    @classmethod
    def load(
        cls, path: Path | str | None, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> OpenSoraVAE:
        """From a folder or file with the official names; other sizes are told by "spatial" and "temporal" in its
        config.json."""
        folder = need_weights(path, "video_vae")
        options = read_options(folder / "config.json") if folder.is_dir() else {}
        model = cls(options.get("spatial"), options.get("temporal"))
        tensors = read_weights(folder)
        own = model.state_dict()
        tensors |= {name: tensors[name].reshape(own[name].shape) for name in ("scale", "shift") if name in tensors}
        load_strictly(model, tensors, str(folder))
        return model.to(device, dtype)

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w): 5 for every 17 frames, ceil(rest / 4) for the rest; an eighth of the picture."""
        whole, rest = divmod(frames, self.group)
        return whole * -(-self.group // 4) + -(-rest // 4), height // 8, width // 8

    @torch.no_grad()
    def encode(self, video: Tensor, *, draws: Sequence[Generator] | None = None, mode: bool = False) -> Tensor:
        """A draw from the posterior of both halves, or their means with `mode`."""
        rows, _, frames = video.shape[:3]
        flat = to_device(video, self.scale.device).to(self.scale.dtype).transpose(1, 2).flatten(0, 1)
        own = None if draws is None else [row for row in draws for _ in range(frames)]
        step = self.frames_at_once
        pictures = torch.cat(
            [
                self.spatial_vae.encode(flat[i : i + step], own and own[i : i + step], mode=mode)
                for i in range(0, len(flat), step)
            ]
        )
        latents = pictures.view(rows, frames, *pictures.shape[1:]).transpose(1, 2)
        groups = []
        for group in torch.split(latents, self.group, dim=2):
            shape = (self.latent_channels, -(-group.shape[2] // self.temporal_vae.factor), *group.shape[3:])
            noise = None if draws is None or mode else noise_of(shape, draws)
            groups.append(self.temporal_vae.encode(group, noise, mode=mode))
        return (torch.cat(groups, dim=2) - self.shift) / self.scale

    @torch.no_grad()
    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """[B, 3, frames, H, W] in about -1 to 1."""
        z = latents.to(self.scale.dtype) * self.scale + self.shift
        per_group = self.latent_size(self.group, 8, 8)[0]
        parts, left = [], frames
        for group in torch.split(z, per_group, dim=2):
            count = min(self.group, left)
            parts.append(self.temporal_vae.decode(group, count))
            left -= count
        joined = torch.cat(parts, dim=2)
        flat = joined.transpose(1, 2).flatten(0, 1)
        pictures = torch.cat([self.spatial_vae.decode(part) for part in torch.split(flat, self.frames_at_once)])
        return pictures.view(joined.shape[0], -1, *pictures.shape[1:]).transpose(1, 2)

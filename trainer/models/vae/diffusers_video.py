"""Any diffusers video autoencoder as a video codec."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.data.sources.noise import from_posterior
from javisc.trainer.engine.moving import to_device
from javisc.trainer.models.frozen import need_weights


class DiffusersVideoVAE:
    """Wraps a frozen autoencoder whose `encode` and `decode` take [B, 3, T, H, W]; latents are normalised as its config
    says."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae.eval().requires_grad_(False)
        config = vae.config
        self.latent_channels: int = getattr(config, "latent_channels", None) or config.z_dim
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        self.mean, self.std = (None if x is None else torch.tensor(x).view(1, -1, 1, 1, 1) for x in (mean, std))
        self.scaling = float(getattr(config, "scaling_factor", None) or 1.0)

    @classmethod
    def load(
        cls, path: Path | str | None, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> DiffusersVideoVAE:
        """From a folder in diffusers' layout; the class is the one its config.json names."""
        import diffusers

        folder = need_weights(path, "video_vae")
        name = diffusers.AutoencoderKL.load_config(folder, local_files_only=True).get("_class_name", "")
        kind = getattr(diffusers, name, None)
        if not name.startswith("Autoencoder") or kind is None:
            raise UserError(
                f"{folder} holds {name or 'no diffusers model'!r}; a video autoencoder of diffusers is needed"
            )
        return cls(
            kind.from_pretrained(folder, local_files_only=True, torch_dtype=dtype, low_cpu_mem_usage=False).to(device)
        )

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w), from the model's compression ratios: the first frame has a latent frame of its own."""
        time = getattr(self.vae, "temporal_compression_ratio", None) or self.vae.config.get("scale_factor_temporal", 4)
        space = getattr(self.vae, "spatial_compression_ratio", None) or self.vae.config.get("scale_factor_spatial", 8)
        return (frames - 1) // time + 1, height // space, width // space

    @torch.no_grad()
    def encode(self, video: Tensor, *, draws: Sequence[Generator] | None = None, mode: bool = False) -> Tensor:
        posterior = self.vae.encode(to_device(video, self.vae.device).to(self.vae.dtype)).latent_dist
        z = from_posterior(posterior, draws, mode=mode)
        if self.mean is not None and self.std is not None:
            return (z - to_device(self.mean, z.device).to(z.dtype)) / to_device(self.std, z.device).to(z.dtype)
        return z * self.scaling

    @torch.no_grad()
    def decode(self, latents: Tensor, frames: int) -> Tensor:
        """[B, 3, frames, H, W]."""
        z = latents.to(self.vae.dtype)
        z = z * self.std.to(z) + self.mean.to(z) if self.mean is not None and self.std is not None else z / self.scaling
        return self.vae.decode(z).sample[:, :, :frames]

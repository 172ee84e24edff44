"""AudioLDM2's autoencoder and HiFi-GAN vocoder: log-mel spectrograms ↔ latents, and spectrograms → 16 kHz waves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from javisc.trainer.data.sources.noise import from_posterior
from javisc.trainer.engine.moving import to_device
from javisc.trainer.models.frozen import need_weights


class AudioLDM2:
    """Both networks frozen, from the folders of `cvssp/audioldm2` (diffusers' and transformers' own layouts)."""

    def __init__(self, vae: Any, vocoder: Any | None) -> None:
        """`vae`: a diffusers AutoencoderKL; `vocoder`: a transformers SpeechT5HifiGan, not needed for encoding."""
        self.vae = vae.eval().requires_grad_(False)
        self.vocoder: Any = None if vocoder is None else vocoder.eval().requires_grad_(False)
        self.latent_channels: int = vae.config.latent_channels

    @classmethod
    def load(
        cls,
        vae: Path | str | None,
        vocoder: Path | str | None = None,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        decode: bool = True,
    ) -> AudioLDM2:
        """`decode=False` leaves the vocoder away."""
        from diffusers import AutoencoderKL
        from transformers import SpeechT5HifiGan

        kind: Any = AutoencoderKL
        coder = kind.from_pretrained(
            need_weights(vae, "audio_vae"), local_files_only=True, torch_dtype=dtype, low_cpu_mem_usage=False
        )
        voice: Any = None
        if decode:
            voice = SpeechT5HifiGan.from_pretrained(
                need_weights(vocoder, "vocoder"), local_files_only=True, dtype=dtype
            )
            voice = voice.to(device)
        return cls(coder.to(device), voice)

    @torch.no_grad()
    def encode(self, mel: Tensor, *, draws: Sequence[Generator] | None = None, mode: bool = False) -> Tensor:
        """Log-mel [B, 1, F, 64] → latents [B, 8, F/4, 16]: a draw from the posterior (its mean with `mode`), scaled."""
        posterior = self.vae.encode(to_device(mel, self.vae.device).to(self.vae.dtype)).latent_dist
        return from_posterior(posterior, draws, mode=mode) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, 8, F/4, 16] → log-mel [B, 1, F, 64]."""
        return self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample

    @torch.no_grad()
    def wave(self, mel: Tensor) -> Tensor:
        """Log-mel [B, 1, F, 64] → waves [B, 160 F or a few more] in float32."""
        if self.vocoder is None:
            raise ValueError("this AudioLDM2 was loaded without its vocoder (decode=False)")
        wave = self.vocoder(mel.squeeze(1).to(self.vocoder.dtype))
        return wave.float().view(len(mel), -1)

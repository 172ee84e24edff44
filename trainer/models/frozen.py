"""What the frozen encoders offer, and how their local weights are asked for.

Nothing is ever downloaded: a folder is given, or one line says what to put where.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Generator, Tensor

from javisc.manifests.errors import UserError

#: what → (option, repository on the Hugging Face hub or where else, part of it that is needed)
SOURCES: dict[str, tuple[str, str]] = {
    "t5": ("encoders.t5", "DeepFloyd/t5-v1_1-xxl"),
    "imagebind": (
        "encoders.imagebind",
        "ImageBind-huge (imagebind_huge.pth; CC BY-NC-SA 4.0) or a prior with text_encoder.* tensors",
    ),
    "clip_tokenizer": ("encoders.clip_tokenizer", "openai/clip-vit-large-patch14 (vocab.json, merges.txt)"),
    "prior": ("encoders.prior", "JavisDiT-v0.1-prior, or a run of `javisc train prior`,"),
    "video_vae": ("encoders.video_vae", "hpcai-tech/OpenSora-VAE-v1.2"),
    "audio_vae": ("encoders.audio_vae", "cvssp/audioldm2 (vae/)"),
    "vocoder": ("encoders.vocoder", "cvssp/audioldm2 (vocoder/)"),
    "opensora": ("start.opensora", "hpcai-tech/OpenSora-STDiT-v3 (model.safetensors)"),
    "audio": ("start.audio", "JavisDiT-v0.1-audio, or a run of `javisc train audio`,"),
}


def need_weights(path: Path | str | None, what: str) -> Path:
    """The folder or file of a frozen encoder; UserError that says what to download where if it is not there."""
    option, source = SOURCES[what]
    if path is None or not str(path):
        raise UserError(f"{option} is not set; download {source} and set {option}=FOLDER")
    if not Path(path).exists():
        raise UserError(f"{option}: {path} is not there; download {source} into it, or set {option} to where it lies")
    return Path(path)


class TextEncoder(Protocol):
    """Captions → hidden states [B, 1, L, C] and mask [B, L] (1 = real token)."""

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]: ...


class PriorTextEncoder(Protocol):
    """Captions → hidden states [B, L, C] for the prior."""

    def encode(self, captions: list[str]) -> Tensor: ...


class VideoCodec(Protocol):
    """Videos [B, 3, T, H, W] in -1 to 1 ↔ latents [B, c, t, h, w].

    Encoding draws from the posterior, row i with `draws[i]` (torch's generator without), or takes its mean with `mode`.
    """

    latent_channels: int

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]: ...
    def encode(self, video: Tensor, *, draws: Sequence[Generator] | None = None, mode: bool = False) -> Tensor: ...
    def decode(self, latents: Tensor, frames: int) -> Tensor: ...


class AudioCodec(Protocol):
    """Log-mel spectrograms [B, 1, F, 64] ↔ latents [B, c, F/4, 16] → waves [B, n] at 16 kHz. Encoding as in `VideoCodec`."""

    latent_channels: int

    def encode(self, mel: Tensor, *, draws: Sequence[Generator] | None = None, mode: bool = False) -> Tensor: ...
    def decode(self, latents: Tensor) -> Tensor: ...
    def wave(self, mel: Tensor) -> Tensor: ...

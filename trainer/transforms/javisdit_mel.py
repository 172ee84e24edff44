"""AudioLDM2's log-mel spectrogram, as JavisDiT feeds it to the audio VAE."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torchaudio
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.data.index.lengths import padded


@dataclass(frozen=True)
class MelConfig:
    """Sizes in samples, frequencies in Hz. `multiple`: frames are padded to it (32 in v0.1, 8 in v1.0). `padding`: the value of
    padded frames in log space, 0.0 as the official weights saw (which is not silence: it is log 1), or log(1e-5), silence."""

    sample_rate: int = 16000
    fft: int = 1024
    hop: int = 160
    window: int = 1024
    mels: int = 64
    low: float = 0.0
    high: float = 8000.0
    default_seconds: float = 10.24
    multiple: int = 32
    padding: str = "zero"

    def __post_init__(self) -> None:
        if self.padding not in ("zero", "silence"):
            raise UserError(f"padding is {self.padding!r}; allowed are zero, silence")


FLOOR = 1e-5


def normalise(wave: Tensor) -> Tensor:
    """Waves [..., n]: minus the mean, peak to 0.5, clipped to ±1. Loudness is lost; it is per crop."""
    wave = wave - wave.mean(-1, keepdim=True)
    return (0.5 * wave / (wave.abs().amax(-1, keepdim=True) + 1e-8)).clamp(-1, 1)


@functools.lru_cache(maxsize=8)
def _filters(config: MelConfig, device: torch.device) -> Tensor:
    return mel_filters(config).to(device)


def mel_filters(config: MelConfig) -> Tensor:
    """[mels, fft/2 + 1] area-normalised triangles on Slaney's scale (librosa's default)."""
    return torchaudio.functional.melscale_fbanks(
        config.fft // 2 + 1, config.low, config.high, config.mels, config.sample_rate, norm="slaney", mel_scale="slaney"
    ).T.contiguous()


def magnitudes(wave: Tensor, config: MelConfig) -> Tensor:
    """[..., n] → [..., fft/2 + 1, 1 + n // hop]: periodic Hann window, reflected by half a window at both ends."""
    window = torch.hann_window(config.window, periodic=True, device=wave.device, dtype=wave.dtype)
    flat = wave.reshape(-1, wave.shape[-1])
    if flat.shape[-1] <= config.fft // 2:
        raise ValueError(f"{flat.shape[-1]} samples are too few for a window of {config.fft}")
    spectrum = torch.stft(
        flat, config.fft, config.hop, config.window, window, center=True, pad_mode="reflect", return_complex=True
    )
    return spectrum.abs().view(*wave.shape[:-1], *spectrum.shape[1:])


def log_mel(wave: Tensor, config: MelConfig) -> Tensor:
    """Normalised waves [..., n] → natural log of the mel magnitudes [..., 1 + n // hop, mels], floored at 1e-5."""
    mel = _filters(config, wave.device) @ magnitudes(wave, config)
    return mel.clamp_min(FLOOR).log().transpose(-1, -2)


def mel_input(wave: Tensor, config: MelConfig = MelConfig(), seconds: float | None = None) -> Tensor:
    """What the audio VAE takes: waves [..., n] → [..., 1, frames, mels].

    `frames` = int(seconds · 100) rounded up to the multiple; a longer spectrogram is cut, a shorter one padded.
    """
    target = padded(
        int((config.default_seconds if seconds is None else seconds) * config.sample_rate / config.hop), config.multiple
    )
    mel = log_mel(normalise(wave), config)[..., :target, :]
    value = 0.0 if config.padding == "zero" else math.log(FLOOR)
    mel = torch.nn.functional.pad(mel, (0, 0, 0, target - mel.shape[-2]), value=value)
    return mel.unsqueeze(-3)

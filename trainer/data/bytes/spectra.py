"""Spectrograms inside the DALI graph: SparseSync's log power spectrogram and AudioLDM2's log-mel.

The same numbers as `javisc.trainer.transforms`, computed by DALI's operators beside the video, on either device.

Legend: L samples, F frequency rows, T columns.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from nvidia.dali import fn, types
from nvidia.dali.math import abs as dabs
from nvidia.dali.math import clamp, log
from nvidia.dali.math import max as dmax

Spectrum = Literal["none", "sync", "audioldm"]

MEL_HOP = 160
MEL_BINS = 64


def hann(length: int) -> list[float]:
    """The periodic Hann window: 0.5 - 0.5 cos(2 pi n / length)."""
    return [float(value) for value in 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)]


def mel_frames(samples: int, rate: int = 16000, multiple: int = 32) -> int:
    """Columns of the log-mel of a clip: int(seconds * 100), rounded up to a multiple (32, JavisDiT++ 8)."""
    wanted = int(samples / rate * 100)
    return -(-wanted // multiple) * multiple


def mono(sound: Any) -> Any:
    """(L, channels) → (L,): the mean of the channels."""
    return fn.reductions.mean(sound, axes=[1])


def sync(sound: Any) -> Any:
    """(L,) → (257, L // 128 + 1): Hann 512, hop 128, power 2, natural log of (power + 1e-6), rows to mean 0 and deviation 1.

    The deviation is the unbiased one; 1e-6 is added to it.
    """
    power = fn.spectrogram(
        sound, nfft=512, window_length=512, window_step=128, window_fn=hann(512), power=2, center_windows=True
    )
    level = log(power + np.float32(1e-6))
    mean = fn.reductions.mean(level, axes=[1], keep_dims=True)
    deviation = fn.reductions.std_dev(level, mean, axes=[1], ddof=1, keep_dims=True)
    return (level - mean) / (deviation + np.float32(1e-6))


def audioldm(sound: Any, frames: Any, padding: float = 0.0) -> Any:
    """(L,) → (frames, 64): AudioLDM2's log-mel; shorter ones are padded with `padding`, longer ones cut.

    The wave is freed of its mean, scaled to a peak of 0.5 and clipped; STFT 1024/160 with reflected ends, magnitude, Slaney mel
    filters of equal area from 0 to 8000 Hz, natural log of max(., 1e-5).
    """
    centred = sound - fn.reductions.mean(sound, axes=[0], keep_dims=True)
    peak = fn.reductions.max(dabs(centred), axes=[0], keep_dims=True)
    wave = clamp(centred / (peak + np.float32(1e-8)) * np.float32(0.5), np.float32(-1), np.float32(1))
    magnitude = fn.spectrogram(
        wave, nfft=1024, window_length=1024, window_step=MEL_HOP, window_fn=hann(1024), power=1, center_windows=True
    )
    mel = fn.mel_filter_bank(
        magnitude,
        sample_rate=16000.0,
        nfilter=MEL_BINS,
        freq_low=0.0,
        freq_high=8000.0,
        mel_formula="slaney",
        normalize=True,
    )
    level = fn.transpose(log(dmax(mel, np.float32(1e-5))), perm=[1, 0])
    shape = fn.cat(frames, types.Constant(np.asarray([MEL_BINS], np.int32), device="cpu"), axis=0)
    return fn.slice(level, start=[0, 0], shape=shape, axes=[0, 1], out_of_bounds_policy="pad", fill_values=[padding])

"""Separation without weights: medians of the spectrogram, and a factorisation of it. The sources sum to the mixture.

Both give masks that sum to one for every cell of a short-time Fourier transform, which is linear: so sources sum to the mixture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from scipy.signal import istft, stft

Array = NDArray[np.float64]
#: Seconds of a frame, of the horizontal median, and hertz of the vertical one.
_FRAME, _LONG, _WIDE = 0.064, 0.5, 500.0
#: Iterations for the spectra, and for the activations of a stretch once these are known; frames that the spectra are learnt from.
_LEARN, _FIT, _FRAMES = 100, 50, 4000


def transform(wave: Array, rate: int) -> NDArray[np.complex128]:
    """The short-time Fourier transform [bins, frames], Hann, three quarters overlapping."""
    size = _size(rate)
    wave = np.pad(wave, (0, max(0, size - len(wave))))
    return np.asarray(stft(wave, rate, nperseg=size, noverlap=size - size // 4)[2])


def inverse(spectrum: NDArray[np.complex128], rate: int, length: int) -> Array:
    """The wave [length] of a transform."""
    size = _size(rate)
    wave: Array = istft(spectrum, rate, nperseg=size, noverlap=size - size // 4)[1][:length]
    return np.pad(wave, (0, length - len(wave)))


def _size(rate: int) -> int:
    return 1 << max(6, round(np.log2(_FRAME * rate)))


def hpss(wave: Array, rate: int) -> list[Array]:
    """Harmonic and percussive part, [samples] each (Fitzgerald 2010: medians along time and along frequency, as Wiener masks)."""
    mixture = transform(wave, rate)
    power = np.abs(mixture)
    size = _size(rate)
    along, across = _odd(_LONG * rate / (size // 4)), _odd(_WIDE * size / rate)
    harmonic = median_filter(power, (1, along), mode="reflect") ** 2
    percussive = median_filter(power, (across, 1), mode="reflect") ** 2
    total = harmonic + percussive
    mask = np.divide(harmonic, total, out=np.full_like(total, 0.5), where=total > 0)
    first = inverse(mixture * mask, rate, len(wave))
    return [first, wave - first]


def _odd(length: float) -> int:
    return 2 * max(1, round(length / 2)) + 1


def spectra(wave: Array, rate: int, count: int, seed: int) -> Array:
    """Spectra [bins, count] that a sound is made of, the loudest first: a factorisation of its magnitudes by the multiplicative
    updates of Lee and Seung (2001) for the Kullback-Leibler divergence. Learnt from frames all over the sound."""
    magnitudes = np.abs(transform(wave, rate))
    magnitudes = magnitudes[:, :: max(1, -(-magnitudes.shape[1] // _FRAMES))]
    draw = np.random.Generator(np.random.PCG64(seed))
    basis = draw.uniform(0.1, 1, (len(magnitudes), count))
    gains = draw.uniform(0.1, 1, (count, magnitudes.shape[1]))
    for _ in range(_LEARN):
        gains *= _ratio(basis.T, magnitudes / _sum(basis, gains), basis.sum(0)[:, None])
        basis *= _ratio(magnitudes / _sum(basis, gains), gains.T, gains.sum(1)[None])
    order = np.argsort(-basis.sum(0) * gains.sum(1), kind="stable")
    return basis[:, order] / np.maximum(basis[:, order].sum(0), 1e-12)


def _sum(basis: Array, gains: Array) -> Array:
    return np.maximum(basis @ gains, 1e-12)


def _ratio(left: Array, right: Array, norm: Array) -> Array:
    return (left @ right) / np.maximum(norm, 1e-12)


def nmf(wave: Array, rate: int, basis: Array) -> list[Array]:
    """The part [samples] of each spectrum of a `basis` [bins, count] in a wave."""
    mixture = transform(wave, rate)
    magnitudes = np.abs(mixture)
    gains = np.full((basis.shape[1], magnitudes.shape[1]), 1.0)
    for _ in range(_FIT):
        gains *= _ratio(basis.T, magnitudes / _sum(basis, gains), basis.sum(0)[:, None])
    total = _sum(basis, gains)
    parts = [inverse(mixture * (np.outer(basis[:, k], gains[k]) / total), rate, len(wave)) for k in range(len(gains))]
    parts[-1] = wave - sum(parts[:-1], np.zeros(len(wave)))
    return parts

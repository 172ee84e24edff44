"""SparseSync's sound transforms: waveforms (N,) float32 in [-1, 1], log spectrograms (F,T)."""

from __future__ import annotations

import math

import soxr
import torch
import torch.nn.functional as F
import torchaudio
from torch import Tensor

from javisc.trainer.transforms.draws import Draws, happens

N_FFT = 512
HOP = 128


def power_spectrogram(wave: Tensor) -> Tensor:
    """(N,) → (257, N // 128 + 1): Hann window 512, hop 128, centred with reflection, power 2."""
    window = torch.hann_window(N_FFT, device=wave.device)
    spectrum = torch.stft(wave, N_FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True)
    return spectrum.abs().square()


def log(power: Tensor) -> Tensor:
    """Natural logarithm of (power + 1e-6)."""
    return (power + 1e-6).log()


def standardise(spectrogram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each frequency row to mean 0 and (unbiased) deviation 1 over time; also the means and deviations (F,), to undo it."""
    means, stds = spectrogram.mean(1), spectrogram.std(1)
    return (spectrogram - means[:, None]) / (stds[:, None] + 1e-6), means, stds


def mask_band(spectrogram: Tensor, axis: int, width: float, draws: Draws, name: str) -> Tensor:
    """Set a random band of at most `width` rows (axis 0) or columns (axis 1) to 0, a high value on this logarithmic scale."""
    size = spectrogram.shape[axis]
    value = draws.uniform(f"{name}_width", 0.0, 1.0) * width
    first = int(draws.uniform(f"{name}_start", 0.0, 1.0) * (size - value))
    masked = spectrogram.clone()
    masked.narrow(axis, max(first, 0), min(int(value), size - max(first, 0))).zero_()
    return masked


def louder(wave: Tensor) -> Tensor:
    """Twice the amplitude, clipped."""
    return (wave * 2).clamp(-1, 1)


def lowpass(wave: Tensor, rate: int) -> Tensor:
    """A second-order low-pass at 100 Hz, Q 0.707, clipped."""
    return torchaudio.functional.lowpass_biquad(wave, rate, 100.0, 0.707)


def add_noise(wave: Tensor, draws: Draws) -> Tensor:
    """White noise of deviation 0.01 on top."""
    return wave + 0.01 * draws.normal("noise", wave.shape).to(wave.device)


#: Freeverb's delays in samples at 44100 Hz (public domain, Jezar at Dreampoint), and how far the right channel's differ.
_COMBS = (1116, 1188, 1277, 1356, 1422, 1491, 1557, 1617)
_ALLPASSES = (225, 341, 441, 556)
_SPREAD = 12


def reverb(wave: Tensor, rate: int) -> Tensor:
    """The wet part alone of a Freeverb with sox's default settings, its two channels averaged, clipped.

    The filters are linear, so their product is applied in the frequency domain, over a length in which their echoes have died
    away (below -100 dB). Sox: reverberance 50 %, damping 50 %, room 100 %, stereo depth 100 %, no pre-delay.
    """
    base = 100 / (math.log(1 - 0.98) * (-1 / math.log(1 - 0.3)) + 1)
    feedback = 1 - math.exp((50 - base) / ((-1 / math.log(1 - 0.3)) * base))
    damping = 0.5 * 0.3 + 0.2
    # A loop loses at least `feedback` per longest delay; the all-passes, 0.5 per delay, fade sooner.
    tail = math.ceil(math.log(1e-5) / math.log(feedback)) * (_COMBS[-1] + _SPREAD) * rate // 44100
    length = 1 << (len(wave) + tail - 1).bit_length()
    turn = torch.linspace(0, math.pi, length // 2 + 1, dtype=torch.float64)

    def delayed(samples: int) -> Tensor:
        return torch.polar(torch.ones_like(turn), -turn * samples)

    response = torch.zeros(len(turn), dtype=torch.complex128)
    loss = (1 - damping) / (1 - damping * delayed(1))
    for offset in (0, _SPREAD):
        sign, combs, passes = 1, torch.zeros_like(response), torch.ones_like(response)
        for delay in _COMBS:
            z = delayed(int(rate / 44100 * (delay + sign * offset) + 0.5))
            combs += z / (1 - feedback * loss * z)
            sign = -sign
        for delay in _ALLPASSES:
            z = delayed(int(rate / 44100 * (delay + sign * offset) + 0.5))
            passes *= z / (1 - 0.5 * z) - 1
            sign = -sign
        response += combs * passes / 2
    wet = torch.fft.irfft(torch.fft.rfft(wave.double().cpu(), length) * response * 0.015, length)[: len(wave)]
    return wet.to(wave).clamp(-1, 1)


def stretch(wave: Tensor, factor: float, rate: int) -> Tensor:
    """Make a sound `factor` times as long at the same pitch, by overlapping segments that match best (WSOLA).

    Verhelst & Roelands, ICASSP 1993, with sox's sizes: segments of 82 ms, a search over 14.68 ms, overlaps of 12 ms.
    """
    segment, search, overlap = (int(seconds * rate + 0.5) for seconds in (0.082, 0.01468, 0.012))
    length = int(len(wave) * factor + 0.5)
    step = segment - overlap
    padded = F.pad(wave, (0, segment + search + overlap))
    fade = torch.linspace(0, 1, overlap)
    out = torch.zeros(length + segment + overlap)
    out[:segment] = padded[:segment]
    done = step
    while done < length:
        start = min(int(done / factor), len(padded) - segment - search)
        tail = out[done : done + overlap]
        candidates = padded[start : start + search + overlap].unfold(0, overlap, 1)
        best = start + int((candidates.square().sum(1) - 2 * candidates @ tail).argmin())  # least squared difference
        piece = padded[best : best + segment]
        out[done : done + overlap] = tail * (1 - fade) + piece[:overlap] * fade
        out[done + overlap : done + segment] = piece[overlap:]
        done += step
    return out[:length]


def raise_pitch(wave: Tensor, rate: int, cents: float = 1000) -> Tensor:
    """The sound at a higher pitch and its own length: stretched, then played faster."""
    ratio = 2 ** (cents / 1200)
    longer = stretch(wave.cpu().float(), ratio, rate)
    faster = torch.from_numpy(soxr.resample(longer.numpy(), rate * ratio, rate))
    return F.pad(faster, (0, max(0, len(wave) - len(faster))))[: len(wave)].to(wave)


def augment(wave: Tensor, rate: int, probability: float, draws: Draws) -> Tensor:
    """Each of reverb, volume, pitch, low-pass and noise, in this order and independently, with the probability."""
    if happens(draws, "reverb", probability):
        wave = reverb(wave, rate)
    if happens(draws, "volume", probability):
        wave = louder(wave)
    if happens(draws, "pitch", probability):
        wave = raise_pitch(wave, rate)
    if happens(draws, "lowpass", probability):
        wave = lowpass(wave, rate)
    return add_noise(wave, draws) if happens(draws, "gauss_noise", probability) else wave


def corrupt_outside(wave: Tensor, kept: tuple[int, int], kind: str, draws: Draws) -> Tensor:
    """Sound outside [first, stop) becomes silence (`mute`) or uniform noise in [-1, 1] (`rand`)."""
    if kind not in ("mute", "rand"):
        raise ValueError(f"corrupt_type={kind!r}: it may be mute or rand")
    first, stop = kept
    if kind == "mute":
        filler = torch.zeros_like(wave)
    else:  # Φ maps N(0,1) to U(0,1)
        filler = 2 * torch.special.ndtr(draws.normal("corrupt", wave.shape).to(wave.device)) - 1
    filler[first:stop] = wave[first:stop]
    return filler


def trim_or_tile(wave: Tensor, rate: int, duration: int = 10) -> Tensor:
    """Repeat a sound `duration` times and keep that many seconds; what is shorter than a second stays short."""
    return wave.repeat(duration)[: duration * rate]


def center_part(length: int, wanted: int) -> int:
    """Where a centred crop of `wanted` samples starts, halves rounded to even."""
    return round((length - wanted) / 2)

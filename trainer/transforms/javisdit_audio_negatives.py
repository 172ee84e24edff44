"""Sounds that no longer fit their video: JavisDiT's spatial and temporal audio augmentations.

Waves are [n] in -1 to 1 on any device; draws come by name from the sample's seed. Windows are half-open sample ranges.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torchaudio
from torch import Tensor

from javisc.trainer.transforms.draws import Draws

LOUD = 0.1
Span = tuple[int, int]
CURVES = ("sine", "cosine", "up", "down")


class SoundPool(Protocol):
    """Other sounds to add."""

    def source(self, draws: Draws, apart_from: str) -> tuple[Tensor, list[Span]] | None:
        """A sound at the sample rate from another file than `apart_from`, and where it is active; None if the pool is empty."""

    def separated(self, name: str) -> list[tuple[Tensor, list[Span]]]:
        """The separated tracks of a file, on the file's own clock, and where each is active."""


def loud_spans(wave: Tensor, pieces: int = 10, level: float = LOUD) -> list[Span]:
    """Where a wave is loud: cut into equal pieces, those with RMS from `level` up, neighbours joined."""
    edges = [round(i * len(wave) / pieces) for i in range(pieces + 1)]
    parts = [(start, end) for start, end in itertools.pairwise(edges) if end > start]
    if not parts:
        return []
    # One look at the device for all pieces.
    loudness = torch.stack([wave[start:end].square().mean().sqrt() for start, end in parts]).tolist()
    spans: list[Span] = []
    for (start, end), rms in zip(parts, loudness, strict=True):
        if rms >= level:
            if spans and spans[-1][1] == start:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((start, end))
    return spans


def window(wave: Tensor, draws: Draws, low: float, high: float) -> Span:
    """A window of low·n to high·n samples: inside a loud span that is long enough, else over a loud span, else anywhere."""
    total = len(wave)
    length = draws.integer("window.length", max(1, int(total * low)), max(1, int(total * high)))
    spans = loud_spans(wave)
    roomy = [span for span in spans if span[1] - span[0] >= length]
    if roomy:
        first, last = roomy[draws.integer("window.span", 0, len(roomy) - 1)]
        start = draws.integer("window.start", first, last - length)
    elif spans:
        first, last = spans[draws.integer("window.span", 0, len(spans) - 1)]
        start = draws.integer(
            "window.start", max(0, last - length), max(max(0, last - length), min(first, total - length))
        )
    else:
        start = draws.integer("window.start", 0, total - length)
    return start, start + length


def curve(name: str, length: int, gain: float, like: Tensor) -> Tensor:
    """A gain times sin(0…π), cos(0…π), a rise 0…1 or a fall 1…0, over `length` samples."""
    steps = torch.linspace(0, 1, length, device=like.device, dtype=like.dtype)
    shape = {"sine": torch.sin(steps * math.pi), "cosine": torch.cos(steps * math.pi), "up": steps, "down": 1 - steps}[
        name
    ]
    return gain * shape


def scale_volume(wave: Tensor, span: Span, name: str, gain: float) -> Tensor:
    """A window multiplied by a curve, clipped to ±1."""
    out = wave.clone()
    part = out[span[0] : span[1]]
    part.copy_((part * curve(name, len(part), gain, part)).clamp(-1, 1))
    return out


def reference_volume_span(start: int, seconds: float, total: int) -> Span:
    """The reference's window for `scale_volume`: seconds are multiplied by the crop's length, not by the sample rate."""
    return start, min(total, start + int(seconds * total))


def stall(wave: Tensor, span: Span) -> Tensor:
    """Silence of a window's length inserted at its start; the end is cut."""
    quiet = torch.zeros_like(wave[span[0] : span[1]])
    return torch.cat((wave[: span[0]], quiet, wave[span[0] :]))[: len(wave)]


def repeat(wave: Tensor, span: Span, copies: int = 2) -> Tensor:
    """Copies of a window inserted at its start (the reference inserts two); the end is cut."""
    part = wave[span[0] : span[1]]
    return torch.cat((wave[: span[0]], *[part] * copies, wave[span[0] :]))[: len(wave)]


def other_crop(source: Tensor, start: int, length: int, draws: Draws, *, rule: str = "corrected") -> Tensor | None:
    """Another crop of the same file than the one at `start`; None if there is none.

    "corrected": any other legal start. "reference": drawn from [0, total − end), so starts behind that are never used.
    """
    total = len(source)
    starts = total - length + 1 if rule == "corrected" else total - (start + length)
    if starts < 1 or (starts == 1 and start == 0):
        return None
    skip = start < starts
    drawn = draws.integer("crop.start", 0, starts - 1 - skip)
    drawn += skip and drawn >= start
    return source[drawn : drawn + length]


def change_speed(wave: Tensor, span: Span, rate: float) -> Tensor:
    """A window played `rate` times as fast at its pitch (phase vocoder), zero-padded or cut to its length."""
    part = wave[span[0] : span[1]]
    fft, hop = 1024, 256
    if len(part) <= fft:
        return wave
    frame = torch.hann_window(fft, device=wave.device)
    spectrum = torch.stft(part, fft, hop, window=frame, return_complex=True)
    advance = torch.linspace(0, math.pi * hop, spectrum.shape[-2], device=wave.device)[:, None]
    stretched = torchaudio.functional.phase_vocoder(spectrum, rate, advance)
    sound = torch.istft(stretched, fft, hop, window=frame, length=round(len(part) / rate))
    out = wave.clone()
    out[span[0] : span[1]] = torch.nn.functional.pad(sound, (0, max(0, len(part) - len(sound))))[: len(part)]
    return out


def change_frequency(wave: Tensor, hertz: float, rate: int) -> Tensor:
    """The spectrum moved by a number of Hz: bins of the short-time transform are rolled."""
    fft = 1024
    frame = torch.hann_window(fft, device=wave.device)
    spectrum = torch.stft(wave, fft, window=frame, return_complex=True)
    return torch.istft(spectrum.roll(round(hertz * fft / rate), -2), fft, window=frame, length=len(wave))


def add_sound(wave: Tensor, other: Tensor, active: Sequence[Span], draws: Draws) -> Tensor:
    """An excerpt of another sound, taken from where it is active (else loud), added at a random offset, clipped to ±1."""
    longest = min(len(wave), len(other))
    length = draws.integer("add.length", max(1, longest // 3), max(1, longest - 1))
    spans = list(active) or loud_spans(other)
    first = 0
    if spans:
        start, end = spans[draws.integer("add.span", 0, len(spans) - 1)]
        first = draws.integer("add.from", min(start, max(end - length, 0)), max(start, end - length))
    first = max(0, min(first, len(other) - length))
    offset = draws.integer("add.at", 0, len(wave) - length)
    out = wave.clone()
    out[offset : offset + length] += other[first : first + length].to(wave)
    return out.clamp(-1, 1)


def remove_sound(wave: Tensor, span: Span, separated: Tensor | None, *, rule: str = "corrected") -> Tensor:
    """A window without a separated track (the reference subtracts the wrong way round, which turns the sign), or silent
    without one."""
    out = wave.clone()
    part = out[span[0] : span[1]]
    if separated is None:
        part.zero_()
    else:
        rest = part - separated[span[0] : span[1]].to(part)
        part.copy_(rest if rule == "corrected" else -rest)
    return out

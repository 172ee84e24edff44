"""Time stamps that swing around samples which are in truth contiguous, and how clean a tone is."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: (phase of each stamp in periods, random numbers) → deviation between -1 and 1.
SHAPES: dict[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "sine": lambda phase, _: np.sin(2 * np.pi * phase),
    "sawtooth": lambda phase, _: 2 * (phase % 1) - 1,
    "square": lambda phase, _: np.where(phase % 1 < 0.5, 1.0, -1.0),
    "random": lambda phase, dice: dice.uniform(-1, 1, len(phase)),
    "late packets": lambda phase, dice: (dice.uniform(size=len(phase)) < 0.05).astype(float),
    "every seventh late": lambda phase, _: (np.arange(len(phase)) % 7 == 6).astype(float),
}


def wobble(shape: str, seconds: Floats, size: float, period: float, seed: int) -> Floats:
    """Deviations in seconds, up to `size`, of stamps at `seconds`."""
    dice = np.random.default_rng(seed)
    return size * SHAPES[shape](seconds / period + dice.uniform(), dice)


def off_tone(sound: NDArray[np.float32], rate: int, tone: float = 1000.0, width: float = 10.0) -> float:
    """Energy further than `width` Hz from `tone`, dB below the energy near it."""
    spectrum = np.abs(np.fft.rfft(sound.astype(np.float64) * np.blackman(len(sound)))) ** 2
    near = np.abs(np.fft.rfftfreq(len(sound), 1 / rate) - tone) < width
    return float(10 * np.log10(spectrum[~near].sum() / spectrum[near].sum() + 1e-20))

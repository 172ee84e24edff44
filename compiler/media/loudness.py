"""Integrated loudness after ITU-R BS.1770-4, streaming, in numpy alone."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

BLOCK, STEP = 0.4, 0.1
ABSOLUTE_GATE = -70.0
RELATIVE_GATE = -10.0


def k_weighting(rate: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Coefficients (b0 b1 b2 a1 a2) of the two biquads of BS.1770's K filter at `rate`.

    The standard tabulates them at 48 kHz only; these are the analogue prototypes behind the table (shelf: 1681.97 Hz,
    3.99984 dB, Q 0.707175; high pass: 38.1355 Hz, Q 0.500327), by the bilinear transform at any rate.
    """
    k = math.tan(math.pi * 1681.974450955533 / rate)
    gain, q = 10 ** (3.999843853973347 / 20), 0.7071752369554196
    band = gain**0.4996667741545416
    a0 = 1 + k / q + k * k
    shelf = (
        (gain + band * k / q + k * k) / a0,
        2 * (k * k - gain) / a0,
        (gain - band * k / q + k * k) / a0,
        2 * (k * k - 1) / a0,
        (1 - k / q + k * k) / a0,
    )
    k, q = math.tan(math.pi * 38.13547087602444 / rate), 0.5003270373238773
    a0 = 1 + k / q + k * k
    high_pass = (1.0, -2.0, 1.0, 2 * (k * k - 1) / a0, (1 - k / q + k * k) / a0)
    return shelf, high_pass


def impulse_response(rate: int) -> NDArray[np.float64]:
    """The K filter's impulse response until it has died away below -120 dB (0.15 s)."""
    length = int(0.15 * rate)
    signal = np.zeros(length)
    signal[0] = 1.0
    for b0, b1, b2, a1, a2 in k_weighting(rate):
        out = np.empty(length)
        x1 = x2 = y1 = y2 = 0.0
        for n, x in enumerate(signal.tolist()):
            y = b0 * x + b1 * x1 + b2 * x2 - a1 * y1 - a2 * y2
            x1, x2, y1, y2 = x, x1, y, y1
            out[n] = y
        signal = out
    return signal


class Meter:
    """Feed blocks of shape (n, channels); `integrated` gives LUFS. Memory: one number per 0.1 s."""

    _responses: dict[int, tuple[int, int, NDArray[np.complex64]]] = {}  # noqa: RUF012 - a cache shared on purpose

    def __init__(self, rate: int) -> None:
        self.rate = rate
        if rate not in self._responses:
            response = impulse_response(rate)
            size = 1 << (4 * len(response)).bit_length()
            self._responses[rate] = len(response), size, np.fft.rfft(response, size).astype(np.complex64)
        self._taps, self._size, self._response = self._responses[rate]
        self._tail: NDArray[np.float32] | None = None
        self._rest = np.zeros(0)
        self._step = round(STEP * rate)
        self._energy: list[float] = []

    def push(self, sound: NDArray[np.float32]) -> None:
        """Add samples (n, channels) in -1 to 1. Every channel has weight one (mono, left, right)."""
        before = self._taps - 1
        if self._tail is None:
            self._tail = np.zeros((sound.shape[1], before), np.float32)
        joined = np.concatenate([self._tail, sound.T], axis=1)
        self._tail = joined[:, joined.shape[1] - before :]
        hop = self._size - before  # overlap-save: all pieces in one call
        pieces = -(-len(sound) // hop)
        padded = np.pad(joined, ((0, 0), (0, pieces * hop + before - joined.shape[1])))
        views = np.lib.stride_tricks.sliding_window_view(padded, self._size, axis=1)[:, ::hop]
        filtered = np.fft.irfft(np.fft.rfft(views, axis=2) * self._response, self._size, axis=2)[:, :, before:]
        square = np.einsum("cpn,cpn->pn", filtered, filtered).reshape(-1)[: len(sound)]
        power = np.concatenate([self._rest, square.astype(np.float64)])
        whole = len(power) // self._step * self._step
        self._energy += (power[:whole].reshape(-1, self._step).sum(axis=1) / self._step).tolist()
        self._rest = power[whole:]

    def integrated(self) -> float | None:
        """Gated loudness in LUFS; None below 0.4 s or where every block falls to the gate."""
        steps = np.array(self._energy)
        count = round(BLOCK / STEP)
        if len(steps) < count:
            return None
        blocks = np.convolve(steps, np.ones(count) / count, "valid")
        loud = blocks[_lufs(blocks) > ABSOLUTE_GATE]
        if not len(loud):
            return None
        gate = float(_lufs(np.array([loud.mean()]))[0]) + RELATIVE_GATE
        loud = loud[_lufs(loud) > gate]
        return float(_lufs(np.array([loud.mean()]))[0]) if len(loud) else None


def _lufs(power: NDArray[np.float64]) -> NDArray[np.float64]:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-20))

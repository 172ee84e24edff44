"""Integrated loudness after ITU-R BS.1770-4, streaming, in numpy alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCK, STEP = 0.4, 0.1
ABSOLUTE_GATE = -70.0
RELATIVE_GATE = -10.0
#: Samples that are filtered in one row.
RUN = 64
#: What is left of a state is nothing below this.
FADED = 1e-12


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


@dataclass(frozen=True)
class _System:
    """The K filter on rows of RUN samples: y = [x, state] · `gives`, the next row's state = state · `keeps[0]` + x · `leaves`.

    `keeps` are that matrix's powers 1, 2, 4 … as far as they are not nothing.
    """

    gives: NDArray[np.float32]  # (RUN + 4, RUN)
    leaves: NDArray[np.float32]  # (RUN, 4)
    keeps: tuple[NDArray[np.float64], ...]  # (4, 4) each

    @classmethod
    def of(cls, rate: int) -> _System:
        (b0, b1, b2, a1, a2), (d0, d1, d2, c1, c2) = k_weighting(rate)
        # Transposed direct form II: y = b0 x + s0, s0' = b1 x - a1 y + s1, s1' = b2 x - a2 y; the second takes the first's y.
        step = np.array([[-a1, 1, 0, 0], [-a2, 0, 0, 0], [d1 - c1 * d0, 0, -c1, 1], [d2 - c2 * d0, 0, -c2, 0]])
        enters = np.array([b1 - a1 * b0, b2 - a2 * b0, (d1 - c1 * d0) * b0, (d2 - c2 * d0) * b0])
        shows, through = np.array([d0, 0, 1, 0]), d0 * b0
        powers = [np.eye(4)]
        for _ in range(RUN):
            powers.append(step @ powers[-1])
        response = np.array([through, *(shows @ power @ enters for power in powers[: RUN - 1])])
        later = np.arange(RUN)[None, :] - np.arange(RUN)[:, None]
        gives = np.concatenate(
            [np.where(later >= 0, response[later], 0), np.stack([shows @ p for p in powers[:RUN]]).T]
        )
        leaves = np.stack([powers[RUN - 1 - n] @ enters for n in range(RUN)])
        keeps = [powers[RUN].T]
        while np.abs(keeps[-1]).max() > FADED:
            keeps.append(keeps[-1] @ keeps[-1])
        return cls(gives.astype(np.float32), leaves.astype(np.float32), tuple(keeps))

    def run(
        self, rows: NDArray[np.float32], state: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Filter (channels, rows, RUN) from `state` (channels, 4): samples (channels, rows · RUN) and the state behind them."""
        states = np.concatenate([state[:, None], rows @ self.leaves], axis=1)
        for power, keep in enumerate(self.keeps):
            if (back := 1 << power) >= states.shape[1]:
                break
            states[:, back:] += states[:, :-back] @ keep
        inputs = np.concatenate([rows, states[:, :-1].astype(np.float32)], axis=2)
        return (inputs @ self.gives).reshape(len(rows), -1), states[:, -1]


class Meter:
    """Feed blocks of shape (n, channels); `integrated` gives LUFS. Memory: one number per 0.1 s.

    The two biquads are one linear system of four states. `RUN` samples are one row of a matrix: what they give is the row
    times the system's response, and the states between the rows are added up by doubling, until what is left of them is nothing.
    """

    _systems: dict[int, _System] = {}  # noqa: RUF012 - a cache shared on purpose

    def __init__(self, rate: int) -> None:
        self.rate = rate
        if rate not in self._systems:
            self._systems[rate] = _System.of(rate)
        self._system = self._systems[rate]
        self._state: NDArray[np.float64] | None = None  # (channels, 4), where the rows begin
        self._left = np.zeros((0, 0), np.float32)  # (channels, fewer than RUN): samples that fill no row yet
        self._rest = np.zeros(0, np.float32)
        self._step = round(STEP * rate)
        self._energy: list[float] = []

    def push(self, sound: NDArray[np.float32]) -> None:
        """Add samples (n, channels) in -1 to 1. Every channel has weight one (mono, left, right)."""
        channels = sound.shape[1]
        if self._state is None:
            self._state, self._left = np.zeros((channels, 4)), np.zeros((channels, 0), np.float32)
        joined = np.concatenate([self._left, sound.T], axis=1)
        whole = joined.shape[1] // RUN * RUN
        self._left = joined[:, whole:]
        if whole:
            filtered, self._state = self._system.run(joined[:, :whole].reshape(channels, -1, RUN), self._state)
            self._rest = self._steps(self._energy, filtered)

    def _steps(self, energy: list[float], filtered: NDArray[np.float32]) -> NDArray[np.float32]:
        """Append the mean power of each whole step to `energy`; returns the power of the samples that fill none."""
        power = np.einsum("cn,cn->n", filtered, filtered)
        if len(self._rest):
            power = np.concatenate([self._rest, power])
        whole = len(power) // self._step * self._step
        steps = np.add.reduce(power[:whole].reshape(-1, self._step), axis=1, dtype=np.float64)
        energy += (steps / self._step).tolist()
        return power[whole:]

    def _energies(self) -> NDArray[np.float64]:
        """Mean power of every whole step, those that the samples which fill no row complete included."""
        energy, left = list(self._energy), self._left.shape[1]
        if left and self._state is not None:
            row = np.pad(self._left, ((0, 0), (0, RUN - left)))[:, None]
            self._steps(energy, self._system.run(row, self._state)[0][:, :left])
        return np.array(energy, np.float64)

    def integrated(self) -> float | None:
        """Gated loudness in LUFS; None below 0.4 s or where every block falls to the gate."""
        steps = self._energies()
        count = round(BLOCK / STEP)
        if len(steps) < count:
            return None
        blocks = np.convolve(steps, np.ones(count) / count, "valid").astype(np.float64)
        loud = blocks[_lufs(blocks) > ABSOLUTE_GATE]
        if not len(loud):
            return None
        gate = float(_lufs(np.array([loud.mean()]))[0]) + RELATIVE_GATE
        loud = loud[_lufs(loud) > gate]
        return float(_lufs(np.array([loud.mean()]))[0]) if len(loud) else None


def _lufs(power: NDArray[np.float64]) -> NDArray[np.float64]:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-20))

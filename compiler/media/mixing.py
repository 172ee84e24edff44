"""Channels: the mix to one or two, and channels that cancel each other in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from javisc.compiler.media.stamps import Sound

#: Channels cancel each other where their mix has less than this share of the power that unrelated ones would give.
CANCELLED = 0.15
#: Mean power of the differences below which there is nothing to cancel: -80 dB.
AUDIBLE = 1e-8
#: Share of the sounding seconds that has to be cancelled.
MAX_CANCELLED = 0.25

#: Weight of a source channel in the left and right of a stereo mix (ITU-R BS.775; LFE is left out, as there).
_HALF_POWER = 0.5**0.5
_LEFT_RIGHT: dict[str, tuple[float, float]] = {
    "FL": (1, 0),
    "FR": (0, 1),
    "FC": (_HALF_POWER, _HALF_POWER),
    "LFE": (0, 0),
    "LFE2": (0, 0),
    "BL": (_HALF_POWER, 0),
    "BR": (0, _HALF_POWER),
    "SL": (_HALF_POWER, 0),
    "SR": (0, _HALF_POWER),
    "BC": (0.5, 0.5),
    "FLC": (1, 0),
    "FRC": (0, 1),
    "WL": (1, 0),
    "WR": (0, 1),
    "DL": (1, 0),
    "DR": (0, 1),
}


def mix_matrix(names: tuple[str, ...], channels: int) -> Sound:
    """Weights (channels, len(names)) of a downmix to 1 or 2 channels that cannot clip: each row's sum is at most one.

    Channels of unknown position count alike; two of them are left and right.
    """
    if len(names) == 1:
        return np.ones((channels, 1), np.float32)
    if len(names) == 2 and not any(name in _LEFT_RIGHT for name in names):
        names = ("FL", "FR")  # containers without a layout mean this
    if all(name in _LEFT_RIGHT for name in names) and any(any(_LEFT_RIGHT[name]) for name in names):
        matrix = np.array([_LEFT_RIGHT[name] for name in names], np.float64).T
    else:
        matrix = np.ones((2, len(names)))
    if channels == 1:
        matrix = matrix.sum(axis=0, keepdims=True)
    return (matrix / max(matrix.sum(axis=1).max(), 1e-9)).astype(np.float32)


class Cancelling:
    """Finds source channels that cancel each other in the mix, as the two of a stereo sound with one inverted do.

    Of unrelated channels the powers add: a mixed channel with weights w of channels with powers p has the power sum(w² p). For
    two channels alike in power the share of it that a mix really has is one plus their correlation. Judged second by second,
    below some 3 kHz and with less say for less frequency: rumble correlates by chance, and codecs leave noise at the top.
    """

    def __init__(self) -> None:
        self.sounding = 0
        self._cancelled = np.zeros(0, np.int64)  # seconds by mixed channel
        self._weights = np.zeros((0, 0))
        self._powers = np.zeros(0)  # of the source's channels, in the seconds that are cancelled
        self._sums: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._samples = 0

    def push(self, source: Sound, matrix: Sound, mixed: Sound, rate: int) -> None:
        """Add samples (channels, n) before and after mixing by `matrix`."""
        if self._weights.shape != matrix.shape:
            self.sounding, self._sums = 0, None
            self._weights = matrix.astype(np.float64)
            self._cancelled, self._powers = np.zeros(len(matrix), np.int64), np.zeros(matrix.shape[1])
        before, after = _power(source, rate), _power(mixed, rate)
        if self._sums is not None:
            before, after = before + self._sums[0], after + self._sums[1]
        self._sums, self._samples = (before, after), self._samples + source.shape[1]
        if self._samples >= rate:
            self._judge()

    def _judge(self) -> None:
        if self._sums is None:
            return
        before, after = self._sums
        expected = self._weights**2 @ before
        if expected.max() > AUDIBLE * self._samples:
            self.sounding += 1
            gone = (after < CANCELLED * expected) & (expected > AUDIBLE * self._samples)
            self._cancelled += gone
            if gone.any():
                self._powers += before
        self._sums, self._samples = None, 0

    @property
    def found(self) -> bool:
        """True if channels cancel each other; ask at the end."""
        return bool(self.replacements())

    def replacements(self) -> dict[int, int]:
        """The loudest source channel of each mixed one whose channels cancel each other; call it at the end."""
        self._judge()
        if not self.sounding:
            return {}
        return {
            int(row): int((self._weights[row] ** 2 * self._powers).argmax())
            for row in np.flatnonzero(self._cancelled > MAX_CANCELLED * self.sounding)
        }


def _power(sound: Sound, rate: int) -> NDArray[np.float64]:
    """Power of each channel's differences between means of some 1/6000 s, summed."""
    size = max(rate // 6000, 1)
    whole = sound.shape[1] // size * size
    means = sound[:, :whole].reshape(len(sound), -1, size).sum(axis=2)
    change = np.diff(means, axis=1)
    return np.einsum("cn,cn->c", change, change, dtype=np.float64) / size

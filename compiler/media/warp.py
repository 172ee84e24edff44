"""Resampling by a hair: sound played at a speed that changes by parts per thousand, continuous from chunk to chunk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

#: Samples that the filter sees on either side.
MARGIN = 16
#: Steps between two samples at which the filter is tabulated; between them it is interpolated.
PHASES = 512
_KAISER = 8.0


@lru_cache(maxsize=1)
def _table() -> NDArray[np.float32]:
    """(PHASES + 1, 2 * MARGIN) taps of a Kaiser-windowed sinc at every fraction; each row's sum is one."""
    fraction = np.arange(PHASES + 1)[:, None] / PHASES
    at = np.arange(2 * MARGIN)[None] - (MARGIN - 1) - fraction
    taps = np.sinc(at) * np.i0(_KAISER * np.sqrt(np.maximum(1 - (at / MARGIN) ** 2, 0))) / np.i0(_KAISER)
    return (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)


def warp(
    sound: NDArray[np.float32],
    before: NDArray[np.float32],
    after: Sequence[NDArray[np.float32]],
    fraction: float,
    step: float,
) -> tuple[NDArray[np.float32], float]:
    """`sound` (channels, n) at the places fraction, fraction + step, … below n; and what the next chunk's fraction is.

    `before` are the samples that came before, `after` those that come next, as far as there are any (the last one is held).
    """
    n = sound.shape[1]
    count = max(int(np.ceil((n - fraction) / step - 1e-9)), 0)
    if count == 0:
        return sound[:, :0], fraction - n
    at = fraction + step * np.arange(count)
    pad = np.zeros((sound.shape[0], 0), np.float32) if not after else np.concatenate(after, axis=1)[:, :MARGIN]
    joined = np.concatenate([before[:, -MARGIN:], sound, pad], axis=1)
    left = MARGIN - min(before.shape[1], MARGIN)
    joined = np.pad(joined, ((0, 0), (left, 2 * MARGIN - pad.shape[1])), mode="edge")
    whole = np.floor(at + 1e-9).astype(np.int64)
    phase = np.maximum(at - whole, 0) * PHASES
    row = np.minimum(phase.astype(np.int64), PHASES - 1)
    part = (phase - row).astype(np.float32)[:, None]
    table = _table()
    taps = table[row] * (1 - part) + table[row + 1] * part
    first = whole + 1  # MARGIN - 1 samples before the whole one, in a line that begins MARGIN samples earlier
    seen = np.lib.stride_tricks.sliding_window_view(joined, 2 * MARGIN, axis=1)[:, first]
    out = np.einsum("cnk,nk->cn", seen, taps)
    rest = fraction + step * count - n
    return np.ascontiguousarray(out, np.float32), (rest if rest > 1e-7 else 0.0)

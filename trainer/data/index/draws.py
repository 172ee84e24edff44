"""Random numbers that belong to a place, not to a moment.

A draw is a pure function of the words that name it (seed, epoch, row, what for), so any process can make any draw in any
order and resuming needs no generator state. The mixer is the finaliser of SplitMix64 (Steele, Lea & Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), applied once per word.
"""

from __future__ import annotations

import zlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Word: TypeAlias = int | str | NDArray[np.integer]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


def _word(value: Word) -> NDArray[np.uint64]:
    if isinstance(value, str):
        value = zlib.crc32(value.encode())
    if isinstance(value, int):
        return np.asarray([value & 0xFFFFFFFFFFFFFFFF], dtype=np.uint64)
    return np.asarray(value).astype(np.int64, copy=False).view(np.uint64)


def bits(*words: Word) -> NDArray[np.uint64]:
    """64 random bits for each combination of the words; arrays broadcast, the result has at least one dimension."""
    state = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            z = (state ^ _word(word)) + _GAMMA
            z = (z ^ (z >> np.uint64(30))) * _M1
            z = (z ^ (z >> np.uint64(27))) * _M2
            state = z ^ (z >> np.uint64(31))
    return state


def uniform(*words: Word) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits."""
    return (bits(*words) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(high: int | NDArray[np.integer], *words: Word) -> NDArray[np.int64]:
    """Uniform whole numbers in [0, high); `high` may be an array and must be positive (bias below 2^-40 for high < 2^13)."""
    return np.minimum(np.floor(uniform(*words) * high), np.asarray(high) - 1).astype(np.int64)


def order(length: int, *words: Word) -> NDArray[np.int64]:
    """A uniform permutation of range(length)."""
    return np.argsort(bits(*words, np.arange(length, dtype=np.int64)), kind="stable")

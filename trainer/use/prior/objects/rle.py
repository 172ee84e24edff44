"""Masks as COCO's run lengths: columns one after the other, runs of zeros and ones in turn, zeros first.

The compressed form writes each run as the difference to the one two before it, in groups of five bits, lowest first, as
characters from "0" on; the sixth bit says that more follow.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
#: A larger picture is none of ours.
MAX_PIXELS = 8192 * 4352


def encode(mask: Mask) -> dict[str, Any]:
    """A mask [h, w] as {"size": [h, w], "counts": text}."""
    height, width = mask.shape
    flat = np.concatenate([[False], mask.T.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    runs = np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()
    if len(runs) > 1 and runs[-1] == 0:
        runs.pop()
    letters = []
    for number, run in enumerate(runs):
        left = run - runs[number - 2] if number > 2 else run
        more = True
        while more:
            bits = left & 0x1F
            left >>= 5
            more = left != (-1 if bits & 0x10 else 0)
            letters.append(chr(48 + (bits | 0x20 if more else bits)))
    return {"size": [height, width], "counts": "".join(letters)}


def decode(rle: Any) -> Mask:
    """The mask [h, w] of run lengths, compressed or a list. Raises ValueError for anything else."""
    size, counts = (rle.get("size"), rle.get("counts")) if isinstance(rle, dict) else (None, None)
    if not isinstance(size, list) or len(size) != 2 or any(type(side) is not int or side < 1 for side in size):
        raise ValueError(f"a mask's size is {str(size)[:60]}")
    height, width = size
    if height * width > MAX_PIXELS:
        raise ValueError(f"a mask of {width} x {height} pixels is larger than any picture")
    runs = _runs(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or any(type(run) is not int or run < 0 for run in runs):
        raise ValueError("a mask's counts are no run lengths")
    if sum(runs) != height * width:
        raise ValueError(f"a mask's runs are {sum(runs)} pixels, its size {width} x {height}")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _runs(text: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 35:
            raise ValueError(f"a mask's counts hold {letter!r}, which is none of their characters")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("a mask's counts end in the middle of a number")
    return runs


def tight(mask: Mask) -> tuple[int, int, int, int] | None:
    """The box (x, y, w, h) around a mask's pixels; None without any."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1

"""Memory of batches, used again when nobody holds it any longer: fresh pages cost more than what is written to them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class BatchMemory:
    """Hands out arrays. One that is gone, with every tensor and view made of it, is handed out again. Safe for many threads.

    `most` free ones are kept, the largest. An array's slices do not keep it: who writes into them holds the array itself.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self.lock = threading.RLock()
        self.free: list[npt.NDArray[np.uint8]] = []

    def take(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        """An array of any content."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        with self.lock:
            fits = [buffer for buffer in self.free if size <= len(buffer) <= 2 * size + 4096]
            buffer = min(fits, key=len) if fits else np.empty(size, np.uint8)
            self.free = [kept for kept in self.free if kept is not buffer]
        out: npt.NDArray[np.generic] = buffer[:size].view(dtype).reshape(shape)
        weakref.finalize(out, self._back, buffer).atexit = False
        return out

    def _back(self, buffer: npt.NDArray[np.uint8]) -> None:
        # Re-entrant: the collector may free an array while this thread is inside `take`.
        with self.lock:
            self.free = sorted([*self.free, buffer], key=len)[-self.most :]

"""Decoded clips kept in memory, for small pictures that many epochs come back to."""

from __future__ import annotations

import threading
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from javisc.trainer.data.bytes.decode import frames, samples
from javisc.trainer.data.bytes.reader import CorruptSample, Reader
from javisc.trainer.data.index.catalog import Catalog
from javisc.trainer.data.index.windows import Window

#: Frames (T, H, W, 3) uint8 and sound (L, channels) float32.
Decoded = tuple[NDArray[np.uint8], NDArray[np.float32]]


class ClipCache:
    """Whole decoded clips by row, until `limit` bytes are full; what came first stays.

    Epochs go round all clips, and round a cache that is too small the least recently used clip is always the next one wanted:
    keeping the first gives limit / total hits where throwing out the oldest gives none. Safe for many threads.
    """

    def __init__(self, catalog: Catalog, reader: Reader, limit: int, fps: Fraction, gop: int) -> None:
        self.catalog, self.reader = catalog, reader
        self.limit, self.bytes = limit, 0
        self.fps, self.gop = fps, gop
        self.lock = threading.Lock()
        self.clips: dict[int, Decoded] = {}

    def window(self, row: int, window: Window) -> Decoded | None:
        """The window of a clip that is kept, or now decoded because it fits; None: the window is to be decoded alone.

        Sound past its end is zeros, as in `decode.samples`. Raises CorruptSample or DecodeError.
        """
        clip = self.clips.get(row) or self._added(row)
        if clip is None:
            return None
        taken = slice(window.first, window.first + (window.count - 1) * window.stride + 1, window.stride)
        sound = clip[1][window.audio_first : window.audio_first + window.audio_count]
        return clip[0][taken], np.pad(sound, ((0, window.audio_count - len(sound)), (0, 0)))

    def _added(self, row: int) -> Decoded | None:
        count, heard, height, width = (
            int(self.catalog.numbers[name][row]) for name in ("num_frames", "num_samples", "height", "width")
        )
        if count < 1 or heard < 0 or self.bytes + count * height * width * 3 + heard * 4 > self.limit:
            return None
        url, members, digest = self.catalog.place(row, ["flac", "mp4"])
        data = self.reader.read(url, members, digest)
        if missing := [ext for ext in ("flac", "mp4") if ext not in data]:
            raise CorruptSample(f"{url}: the sample has no .{missing[0]}")
        clip = (frames(data["mp4"], 0, count, fps=self.fps, gop=self.gop), samples(data["flac"], 0, heard))
        with self.lock:
            size = clip[0].nbytes + clip[1].nbytes
            if row not in self.clips and self.bytes + size <= self.limit:
                self.clips[row] = clip
                self.bytes += size
        return clip

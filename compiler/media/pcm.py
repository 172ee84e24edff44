"""Samples of a sound until it is finished: in memory while they are few, in a scratch file from there on."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

#: Bytes that stay in memory: four minutes of 16 kHz mono. Files cost a short sound more than its decoding.
IN_MEMORY = 8 << 20


class Pcm:
    """Bytes that are written one after the other, with leaps: what is leapt over is zero. `path` is made only where needed."""

    def __init__(self, path: Path, most: int = IN_MEMORY) -> None:
        self._path, self._most = path, most
        self._file: BinaryIO = io.BytesIO()
        self._held = True

    def write(self, content: bytes) -> None:
        """Write at the place and go on behind it."""
        if self._held and self._file.tell() + len(content) > self._most:
            self._spill()
        self._file.write(content)

    def seek(self, at: int) -> None:
        """Go to byte `at`."""
        if self._held and at > self._most:
            self._spill()
        self._file.seek(at)

    def resize(self, size: int) -> None:
        """Cut to `size` bytes, or fill up with zeros."""
        if self._held and size > self._most:
            self._spill()
        missing = size - self._file.seek(0, io.SEEK_END)
        if self._held and missing > 0:
            self._file.write(bytes(missing))
        else:
            self._file.truncate(size)

    def samples(self) -> NDArray[np.int16]:
        """Everything as samples of 16 bits, little-endian; memory-mapped where it lies in the file."""
        if isinstance(self._file, io.BytesIO):
            return np.frombuffer(self._file.getvalue(), "<i2")
        self._file.flush()
        return np.memmap(self._path, "<i2", "r")

    def close(self) -> None:
        """Drop everything."""
        self._file.close()
        if not self._held:
            self._path.unlink(missing_ok=True)

    def _spill(self) -> None:
        assert isinstance(self._file, io.BytesIO)
        at, content = self._file.tell(), self._file.getvalue()
        self._file = self._path.open("w+b", buffering=1 << 18)
        self._held = False
        self._file.write(content)
        self._file.seek(at)

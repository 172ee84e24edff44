"""A member of a shard as a file of its own, so that a check reads it piece by piece and never holds it whole."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path
from typing import BinaryIO

#: Members up to this size are read whole; a longer one is judged through `Part`.
WHOLE = 64 << 20
_PIECE = 1 << 20


class Part(io.RawIOBase):
    """`length` bytes of a file from `offset` on, read-only. Reads go straight to the file: what is read is not kept."""

    def __init__(self, path: Path, offset: int, length: int) -> None:
        self._path, self._file = path, path.open("rb", buffering=0)
        self._offset, self._length, self._at = offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        """Fill a buffer from the current place; returns how many bytes came, 0 at the end."""
        view = memoryview(buffer)[: max(0, self._length - self._at)]  # type: ignore[arg-type]
        count = os.preadv(self._file.fileno(), [view], self._offset + self._at) if len(view) else 0
        self._at += count
        return count

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place in the member."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if start + place < 0:
            raise OSError(f"{start + place} is before the member's start")
        self._at = start + place
        return self._at

    def tell(self) -> int:
        return self._at

    def __len__(self) -> int:
        return self._length

    def close(self) -> None:
        self._file.close()
        super().close()

    def again(self) -> Part:
        """The same part, opened anew."""
        return Part(self._path, self._offset, self._length)

    def crc32(self) -> int:
        """CRC-32 of all of it."""
        self.seek(0)
        found = 0
        while piece := self.read(_PIECE):
            found = zlib.crc32(piece, found)
        return found


def stream_of(content: bytes | Part) -> BinaryIO:
    """A member's content as an open file at its start."""
    if isinstance(content, bytes):
        return io.BytesIO(content)
    return io.BufferedReader(content.again())

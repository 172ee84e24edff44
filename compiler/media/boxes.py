"""Walking MP4 and MOV files: boxes (ISO/IEC 14496-12) and the NAL units of H.264 packets (ISO/IEC 14496-15)."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

#: More boxes in a row, or units in a packet, than any writer makes.
MAX_BOXES = 100_000
MAX_UNITS = 64
#: NAL unit types of H.264.
IDR, SEI = 5, 6


class BoxError(ValueError):
    """A box or NAL unit whose size is nonsense."""


class Truncated(BoxError):
    """A box that ends before what it must hold."""


@dataclass(frozen=True)
class Box:
    """A box in `file`: its type, where it begins, where its content begins and ends. `whole`: not cut by its parent."""

    file: BinaryIO
    kind: bytes
    start: int
    body: int
    end: int
    whole: bool = True

    def read(self, at: int, layout: str) -> tuple[int, ...]:
        """The numbers of a `struct` layout, `at` bytes into the content. Raises Truncated if they pass the box's end."""
        size = struct.calcsize(layout)
        content = b""
        if at >= 0 and self.body + at + size <= self.end:
            self.file.seek(self.body + at)
            content = self.file.read(size)
        if len(content) < size:
            raise Truncated(f"the box {self.name} ends early")
        return struct.unpack(layout, content)

    def boxes(self) -> Iterator[Box]:
        """The boxes inside."""
        return boxes(self.file, self.body, self.end)

    @property
    def name(self) -> str:
        """The type as text; bytes that are no letters are escaped."""
        return self.kind.decode("ascii", "backslashreplace")


def boxes(file: BinaryIO, start: int, end: int) -> Iterator[Box]:
    """The boxes between two offsets, each at most up to `end`. Raises BoxError at a size that is nonsense."""
    for _ in range(MAX_BOXES):
        if start + 8 > end:
            return
        file.seek(start)
        head = file.read(16)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head[:8])
        body = 8
        if size == 1:
            size, body = int.from_bytes(head[8:16], "big"), 16
        elif size == 0:
            size = end - start
        if size < body:
            raise BoxError(f"box {kind!r} at byte {start} has the size {size}")
        yield Box(file, kind, start, min(start + body, end), min(start + size, end), start + size <= end)
        start += size
    raise BoxError(f"more than {MAX_BOXES} boxes in a row")


def file_boxes(file: BinaryIO) -> Iterator[Box]:
    """The boxes of a whole file."""
    return boxes(file, 0, file.seek(0, io.SEEK_END))


def nal_units(packet: bytes) -> list[tuple[int, bytes]]:
    """(type, content) of the NAL units of an H.264 packet with four-byte lengths. Raises BoxError where these are wrong."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(packet):
        size = int.from_bytes(packet[at : at + 4], "big")
        content = packet[at + 4 : at + 4 + size]
        if size == 0 or len(content) < size or len(found) >= MAX_UNITS:
            raise BoxError("broken NAL units")
        found.append((content[0] & 31, content))
        at += 4 + size
    return found

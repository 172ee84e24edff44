"""A parquet file's sizes are looked at before polars trusts them: one that cannot be true takes the whole process down.

Apache Thrift's compact protocol, parquet.thrift's FileMetaData and PageHeader are read just far enough to bound every length:
a list or text by the bytes that are left, a column's chunk by the file, a page by its chunk, rows by what a file of that
size can hold.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

MAGIC = b"PAR1"
#: Rows that a file may claim: a table of javisc tells its rows apart, which takes space. Constant columns take almost none.
MIN_ROWS, ROWS_PER_BYTE = 1 << 24, 64
MAX_DEPTH = 16
MAX_HEADER = 1 << 16  #: bytes of a page's header: it may hold a column's smallest and largest text
STRUCT, LIST, SET, BINARY, DOUBLE = 12, 9, 10, 8, 7


def check_sizes(stream: BinaryIO) -> None:
    """Raise ValueError if a parquet file is damaged so that its sizes cannot be true. stream: open, at any place."""
    size = stream.seek(0, 2)
    if size < 12:
        raise ValueError("it is too short for a parquet file")
    stream.seek(size - 8)
    length, magic = struct.unpack("<I4s", stream.read(8))
    if magic != MAGIC:
        raise ValueError("it does not end as a parquet file does")
    if length > size - 12:
        raise ValueError(f"its footer is said to have {length} bytes, the file has {size}")
    stream.seek(size - 8 - length)
    try:
        for start, end, values in list(_chunks(_Reader(stream.read(length)).struct(0), size)):
            _pages(stream, start, end, values)
    except (IndexError, KeyError, TypeError, AttributeError):  # a field is missing or another kind of thing
        raise ValueError("its descriptions end early or are none") from None


def _pages(stream: BinaryIO, start: int, end: int, values: int) -> None:
    """Go from page to page of a column's chunk, which hold `values` values altogether."""
    seen = 0
    while start < end:
        stream.seek(start)
        reader = _Reader(stream.read(min(MAX_HEADER, end - start)))
        page = reader.struct(0)
        _within("bytes", page[2], (1 << 31) - 1)
        start += reader.at + _within("bytes", page[3], end - start - reader.at)
        data = page.get(5) or page.get(8)
        count = _within("values", (data or page.get(7, {1: 0}))[1], max(values, MIN_ROWS))
        seen += count if data else 0
    if seen != values:
        raise ValueError(f"the pages of a column hold {seen} values, {values} are said")


def _chunks(meta: dict[int, Any], size: int) -> Iterator[tuple[int, int, int]]:
    """(first byte, byte after the last, values) of each column's part of each group of rows."""
    limit = max(MIN_ROWS, ROWS_PER_BYTE * size)
    rows = 0
    for group in meta.get(4, []):
        rows += _within("rows", group[3], limit)
        for column in group.get(1, []):
            chunk = column.get(3)
            if chunk is None:
                raise ValueError("a column's description is missing")
            _within("values", chunk[5], limit)
            _within("bytes", chunk[6], limit * 1024)
            packed = _within("bytes", chunk[7], size)
            for place in (9, 10, 11):  # data, index and dictionary pages
                _within("bytes", chunk.get(place, 0), size)
            # Arrow writes 0 for the data of a chunk that has but its empty dictionary.
            start = min(place for place in (chunk[9], chunk.get(11), size) if place)
            if packed and start + packed > size:
                raise ValueError("a column lies beyond the end of the file")
            yield start, start + packed, chunk[5]
    if rows != meta[3]:
        raise ValueError(f"its groups hold {rows} rows, {meta[3]} are said")


def _within(what: str, count: int, limit: int) -> int:
    if not 0 <= count <= limit:
        raise ValueError(f"it claims {count} {what}")
    return count


class _Reader:
    """Values of the compact protocol, one after the other. Raises IndexError at the end of the bytes."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number in it has no end")

    def integer(self) -> int:
        """A signed number in zigzag form."""
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def skip(self, count: int) -> None:
        if count > len(self.content) - self.at:
            raise ValueError(f"it claims a text of {count} bytes, {len(self.content) - self.at} are left")
        self.at += count

    def fields(self) -> Iterator[tuple[int, int]]:
        """(identifier, type) of each field of a struct, up to its end."""
        identifier = 0
        while head := self.byte():
            identifier = identifier + (head >> 4) if head >> 4 else self.integer()
            yield identifier, head & 15

    def struct(self, depth: int) -> dict[int, Any]:
        if depth > MAX_DEPTH:
            raise ValueError(f"its description is nested deeper than {MAX_DEPTH} levels")
        return {identifier: self.value(kind, depth) for identifier, kind in self.fields()}

    def value(self, kind: int, depth: int, within: bool = False) -> Any:
        """A value of a field. within: of a list, where a truth value takes a byte of its own. Texts are passed over."""
        if kind in (1, 2):
            return self.skip(within)
        if kind in (3, 4, 5, 6):
            return self.skip(1) if kind == 3 else self.integer()
        if kind == DOUBLE:
            return self.skip(8)
        if kind == BINARY:
            return self.skip(self.varint())
        if kind in (LIST, SET):
            return self.items(depth)
        if kind == STRUCT:
            return self.struct(depth + 1)
        raise ValueError(f"it holds a value of the unknown type {kind}")

    def items(self, depth: int) -> list[Any]:
        head = self.byte()
        count = head >> 4 if head >> 4 < 15 else self.varint()
        if count > len(self.content) - self.at:  # each takes a byte at least
            raise ValueError(f"it claims a list of {count}, {len(self.content) - self.at} bytes are left")
        return [self.value(head & 15, depth, within=True) for _ in range(count)]

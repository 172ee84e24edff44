"""A parquet table with other columns than it had: those that stay are copied as they lie, neither unpacked nor packed again.

Apache Parquet's layout (parquet.thrift): chunks of columns by groups of rows, each followed by its own description, then the
indices of their pages, then the footer, whose places are all that changes. What comes out has the bytes that polars writes of
the same rows; a table that is not laid out as polars of this version does it is left to polars.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from javisc.manifests.parquet_sizes import MAGIC
from javisc.manifests.thrift import Struct, read_struct, replaced, value_of, write_struct

#: FileMetaData
_SCHEMA, _ROWS, _GROUPS, _KEYED, _MADE_BY = 2, 3, 4, 5, 6
#: RowGroup
_CHUNKS, _UNPACKED, _GROUP_ROWS, _GROUP_START, _PACKED = 1, 2, 3, 5, 6
#: ColumnChunk
_END, _META, _PAGES_AT, _PAGES_LENGTH, _BOUNDS_AT, _BOUNDS_LENGTH = 2, 3, 4, 5, 6, 7
#: ColumnMetaData
_PATH, _META_UNPACKED, _META_PACKED, _DATA, _DICTIONARY = 3, 6, 7, 9, 11
_STRUCTS = 12


class _OtherLayoutError(Exception):
    """The file is not laid out as polars of this version does it."""


@dataclass
class _Chunk:
    """A column's part of a group of rows, in the file where it lies."""

    file: BinaryIO
    told: Struct
    start: int
    packed: int
    unpacked: int

    def __post_init__(self) -> None:
        meta = write_struct(value_of(self.told, _META))
        there = {number for number, _, _ in self.told}
        if there - {_BOUNDS_AT, _BOUNDS_LENGTH} != {_END, _META, _PAGES_AT, _PAGES_LENGTH}:
            raise _OtherLayoutError
        # Polars counts a chunk's end from its data, though a dictionary may stand before them.
        if value_of(self.told, _END) != value_of(value_of(self.told, _META), _DATA) + self.packed:
            raise _OtherLayoutError
        if _at(self.file, self.start + self.packed, len(meta)) != meta:
            raise _OtherLayoutError


class _File:
    """A parquet file: its footer, and the chunks of each group of rows by the name of their column."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.stream: BinaryIO = stack.enter_context(path.open("rb"))
        size = self.stream.seek(0, 2)
        length, magic = struct.unpack("<I4s", _at(self.stream, size - 8, 8))
        if magic != MAGIC or length > size - 12:
            raise _OtherLayoutError
        raw = _at(self.stream, size - 8 - length, length)
        self.footer = read_struct(raw)
        if write_struct(self.footer) != raw:
            raise _OtherLayoutError
        self.made_by = value_of(self.footer, _MADE_BY)
        self.groups: list[Struct] = value_of(self.footer, _GROUPS)[1]
        self.rows = [value_of(group, _GROUP_ROWS) for group in self.groups]

    def chunks(self, group: int) -> dict[str, list[_Chunk]]:
        found: dict[str, list[_Chunk]] = {}
        for told in value_of(self.groups[group], _CHUNKS)[1]:
            meta = value_of(told, _META)
            start = min(place for place in (value_of(meta, _DATA), value_of(meta, _DICTIONARY)) if place)
            name = value_of(meta, _PATH)[1][0].decode()
            chunk = _Chunk(self.stream, told, start, value_of(meta, _META_PACKED), value_of(meta, _META_UNPACKED))
            found.setdefault(name, []).append(chunk)
        return found


def splice(base: Path, beside: Path | None, columns: Sequence[str], like: Path, out: Path) -> bool:
    """Write `columns` to `out`: those that `beside` has from there, the others from `base`, whose rows both have.

    like: an empty table of those columns, as polars writes it. False, and nothing worth reading in `out`, if one of the files is
    laid out otherwise than polars does it, and it must be written by polars. Raises OSError.
    """
    try:
        with ExitStack() as stack:
            files = [_File(path, stack) for path in (base, *([beside] if beside is not None else []))]
            form = _File(like, stack)
            if any(file.made_by != form.made_by or file.rows != files[0].rows for file in files):
                return False
            _write(files, columns, form, stack.enter_context(out.open("wb")))
    except (_OtherLayoutError, IndexError, KeyError, TypeError, ValueError, struct.error):
        return False
    return True


def _write(files: list[_File], columns: Sequence[str], form: _File, out: BinaryIO) -> None:
    out.write(MAGIC)
    groups: list[Struct] = []
    moved: list[list[tuple[_Chunk, Struct, int]]] = []
    for number, group in enumerate(files[0].groups):
        found: dict[str, list[_Chunk]] = {}
        for file in files:
            found |= file.chunks(number)
        start = out.tell()
        moved.append([_moved(chunk, out) for name in columns for chunk in found[name]])
        sizes = {_UNPACKED: 0, _PACKED: 0}
        for chunk, _, _ in moved[-1]:
            sizes[_UNPACKED] += chunk.unpacked
            sizes[_PACKED] += chunk.packed
        groups.append(replaced(group, {**sizes, _GROUP_START: start}))
    bounds = [[_bounds(out, chunk) for chunk, _, _ in those] for those in moved]
    pages = [[_pages(out, chunk, by) for chunk, _, by in those] for those in moved]
    for at, those in enumerate(moved):
        told = [
            replaced(chunk, {**bound, **page})
            for (_, chunk, _), bound, page in zip(those, bounds[at], pages[at], strict=True)
        ]
        groups[at] = replaced(groups[at], {_CHUNKS: (_STRUCTS, told)})
    rows = value_of(files[0].footer, _ROWS)
    footer = write_struct(replaced(form.footer, {_ROWS: rows, _GROUPS: (_STRUCTS, groups)}))
    out.write(footer + struct.pack("<I", len(footer)) + MAGIC)


def _moved(chunk: _Chunk, out: BinaryIO) -> tuple[_Chunk, Struct, int]:
    """A chunk with its description copied: (chunk, what is told of it now, by how many bytes it moved)."""
    at = out.tell()
    chunk.file.seek(chunk.start)
    left = chunk.packed
    while left:
        piece = chunk.file.read(min(left, 1 << 20))
        if not piece:
            raise _OtherLayoutError
        out.write(piece)
        left -= len(piece)
    by = at - chunk.start
    meta = value_of(chunk.told, _META)
    meta = replaced(
        meta, {place: value_of(meta, place) + by for place in (_DATA, _DICTIONARY) if value_of(meta, place)}
    )
    out.write(write_struct(meta))
    return chunk, replaced(chunk.told, {_END: value_of(chunk.told, _END) + by, _META: meta}), by


def _bounds(out: BinaryIO, chunk: _Chunk) -> dict[int, int]:
    """Copy the smallest and largest values of a chunk's pages, where they are told: where that lies now, and its length."""
    if value_of(chunk.told, _BOUNDS_AT) is None:
        return {}
    raw = _at(chunk.file, value_of(chunk.told, _BOUNDS_AT), value_of(chunk.told, _BOUNDS_LENGTH))
    out.write(raw)
    return {_BOUNDS_AT: out.tell() - len(raw), _BOUNDS_LENGTH: len(raw)}


def _pages(out: BinaryIO, chunk: _Chunk, by: int) -> dict[int, int]:
    """Write where a chunk's pages lie, which is `by` bytes on: where that lies now, and its length."""
    raw = _at(chunk.file, value_of(chunk.told, _PAGES_AT), value_of(chunk.told, _PAGES_LENGTH))
    told = read_struct(raw)
    if write_struct(told) != raw:
        raise _OtherLayoutError
    kind, pages = value_of(told, 1)
    moved = write_struct(replaced(told, {1: (kind, [replaced(page, {1: value_of(page, 1) + by}) for page in pages])}))
    out.write(moved)
    return {_PAGES_AT: out.tell() - len(moved), _PAGES_LENGTH: len(moved)}


def _at(file: BinaryIO, start: int, length: int) -> bytes:
    if start < 0 or length < 0:
        raise _OtherLayoutError
    file.seek(start)
    found = file.read(length)
    if len(found) < length:
        raise _OtherLayoutError
    return found

"""Apache Thrift's compact protocol, as parquet's footers are written in it: structs read and written again, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: (number, kind, value) of each field, in order.
Struct = list[tuple[int, int, Any]]
TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = (4, 5, 6)


def value_of(struct: Struct, number: int) -> Any:
    """The value of a field; None if it is not there."""
    return next((value for one, _, value in struct if one == number), None)


def replaced(struct: Struct, values: Mapping[int, Any]) -> Struct:
    """The struct with other values in some of its fields. Raises KeyError if it lacks one."""
    if missing := set(values) - {number for number, _, _ in struct}:
        raise KeyError(min(missing))
    return [(number, kind, values.get(number, value)) for number, kind, value in struct]


def read_struct(content: bytes) -> Struct:
    """The struct that begins with the first byte. Raises IndexError where it ends early, ValueError for what is none."""
    return _Reader(content).struct()


def write_struct(struct: Struct) -> bytes:
    """The bytes of a struct."""
    out = bytearray()
    _struct(out, struct)
    return bytes(out)


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]

    def varint(self) -> int:
        value = shift = 0
        while (byte := self.byte()) >= 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number has no end")
        return value | byte << shift

    def integer(self) -> int:
        value = self.varint()
        return (value >> 1) ^ -(value & 1)

    def bytes(self, count: int) -> bytes:
        if count > len(self.content) - self.at:
            raise IndexError(count)
        self.at += count
        return self.content[self.at - count : self.at]

    def struct(self) -> Struct:
        found: Struct = []
        number = 0
        while head := self.byte():
            number = number + (head >> 4) if head >> 4 else self.integer()
            kind = head & 15
            found.append((number, kind, kind == TRUE if kind in (TRUE, FALSE) else self.value(kind)))
        return found

    def value(self, kind: int) -> Any:
        if kind in _INTEGERS:
            return self.integer()
        if kind == BINARY:
            return self.bytes(self.varint())
        if kind == STRUCT:
            return self.struct()
        if kind in (LIST, SET):
            head = self.byte()
            count = head >> 4 if head >> 4 < 15 else self.varint()
            return head & 15, [self.value(head & 15) for _ in range(count)]
        if kind in (TRUE, FALSE, BYTE):  # truths in lists take a byte
            return self.byte()
        if kind == DOUBLE:
            return self.bytes(8)
        raise ValueError(f"a value of the unknown type {kind}")


def _varint(out: bytearray, value: int) -> None:
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)


def _struct(out: bytearray, struct: Struct) -> None:
    last = 0
    for number, kind, value in struct:
        step = number - last
        if 0 < step <= 15:
            out.append(step << 4 | kind)
        else:
            out.append(kind)
            _varint(out, number << 1 ^ number >> 63)
        last = number
        if kind not in (TRUE, FALSE):
            _value(out, kind, value)
    out.append(0)


def _value(out: bytearray, kind: int, value: Any) -> None:
    if kind in _INTEGERS:
        _varint(out, value << 1 ^ value >> 63)
    elif kind == BINARY:
        _varint(out, len(value))
        out.extend(value)
    elif kind == STRUCT:
        _struct(out, value)
    elif kind in (LIST, SET):
        inner, items = value
        out.append((len(items) << 4 if len(items) < 15 else 0xF0) | inner)
        if len(items) >= 15:
            _varint(out, len(items))
        for item in items:
            _value(out, inner, item)
    elif kind == DOUBLE:
        out.extend(value)
    else:
        out.append(value)

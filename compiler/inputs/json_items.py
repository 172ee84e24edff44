"""The items of a list in a JSON file that is longer than memory, one after the other."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

#: Bytes that are read at a time.
CHUNK = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_OF_NUMBERS = frozenset("0123456789+-.eE")


def items_of(stream: BinaryIO, name: str | None, limit: int) -> Iterator[Any]:
    """Yield the items of the list under `name` at the top of a file of at most `limit` bytes, or of the list that it is (None).

    Raises ValueError or RecursionError for what is no JSON in UTF-8, too long, or has no such list, or two: `json.loads` says
    which.
    """
    text = _Text(stream, limit)
    if name is None:
        yield from _list(text)
    else:
        yield from _under(text, name)
    if text.peek():
        raise ValueError("there is more after the end")


def _under(text: _Text, name: str) -> Iterator[Any]:
    text.take("{")
    found, more = False, text.peek() != "}"
    while more:
        if text.peek() != '"':
            raise ValueError("a name is expected")
        key = text.value()
        text.take(":")
        if key != name:
            text.value()
        elif found:
            raise ValueError(f"{name} is there twice")
        else:
            found = True
            yield from _list(text)
        if more := text.peek() == ",":
            text.take(",")
    text.take("}")
    if not found:
        raise ValueError(f"there is no {name}")


def _list(text: _Text) -> Iterator[Any]:
    text.take("[")
    if text.peek() != "]":
        yield text.value()
        while text.peek() == ",":
            text.take(",")
            yield text.value()
    text.take("]")


class _Text:
    """A file's text from where it is looked at."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._left = stream, limit
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text, self._at, self._ended = "", 0, False

    def peek(self) -> str:
        """The next character that is no blank; "" at the end."""
        while True:
            blank = _SPACE.match(self._text, self._at)
            assert blank is not None
            self._at = blank.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read()

    def take(self, character: str) -> None:
        """Pass over the next character, which must be this one."""
        if self.peek() != character:
            raise ValueError(f"{character} is expected")
        self._at += 1

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                found, end = _DECODER.raw_decode(self._text, self._at)
            except ValueError:
                if self._ended:
                    raise
            else:
                # A number may go on behind what is there, also after its point or the e of its exponent.
                if self._ended or (end < len(self._text) and self._text[end] not in _OF_NUMBERS):
                    self._at = end
                    return found
            self._read()

    def _read(self) -> None:
        """Read on, twice as much as waits: so a long value is looked at a few times only."""
        raw = self._stream.read(max(CHUNK, len(self._text) - self._at))
        self._left -= len(raw)
        if self._left < 0:
            raise ValueError("the file is too long")
        self._text = self._text[self._at :] + self._decode(raw, final=not raw)
        self._at, self._ended = 0, not raw

"""Reading annotation files that nobody vouches for: tables, JSON, YAML and plain lists, every one of them bounded.

A file that is missing, too large or of another form is the user's to mend (`UserError`). A bad row is not: it is recorded in
`Problems`, with file and line, and the rest of the file is read.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from javisc.compiler.inputs.json_items import items_of
from javisc.manifests.errors import UserError
from javisc.manifests.rows import MAX_FIELD

#: Bytes of one line. The longest line of the corpora known here has some 3,000.
MAX_LINE = 1 << 20
#: Bytes of a JSON file. WavCaps' largest has about 200 MB.
MAX_JSON = 1 << 30
#: Bytes of a YAML file, which is read whole. MACS's has about 4 MB.
MAX_YAML = 64 << 20
#: Levels of nesting in a YAML file. MACS has five.
MAX_DEPTH = 32
#: Characters of a caption. T5 is given 300 tokens; nothing sensible comes near.
MAX_CAPTION = 10_000


@dataclass
class Problems:
    """Bad rows of annotation files: all are counted, the first `keep` are listed as (file, line, message)."""

    keep: int = 100_000
    count: int = 0
    rows: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, file: Path, line: int, message: str) -> None:
        self.count += 1
        if len(self.rows) < self.keep:
            self.rows.append((str(file), line, message))


def lines(path: Path, problems: Problems) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text without its line end, LF or CR LF) of a UTF-8 file, with or without byte order mark.

    Lines that are over `MAX_LINE` bytes or no UTF-8 are recorded in `problems`. Raises UserError for UTF-16 and unreadable files.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    with file:
        number = 0
        while raw := file.readline(MAX_LINE + 1):
            number += 1
            if number == 1:
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(
                        f"{path}: is UTF-16, annotation files are read as UTF-8; convert it, e.g. with iconv"
                    )
                raw = raw.removeprefix(b"\xef\xbb\xbf")
                if b"\r" in raw.rstrip(b"\r\n"):
                    raise UserError(f"{path}: its lines end in CR alone, as old Macs wrote them; convert it to LF")
            if len(raw) > MAX_LINE:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(MAX_LINE)
                problems.add(path, number, f"line of more than {MAX_LINE} bytes")
                continue
            try:
                yield number, raw.decode().rstrip("\r\n")
            except UnicodeDecodeError as error:
                problems.add(path, number, f"not UTF-8: {error.reason} at byte {error.start}")


@dataclass(frozen=True)
class Source:
    """A file (or folder) that a corpus needs: where it may lie under the corpus root, '/'-separated, first match wins."""

    places: tuple[str, ...]

    def find(self, root: Path) -> Path | None:
        for place in self.places:
            path = root / place
            if path.exists():
                return path
        return None

    def need(self, root: Path) -> Path:
        """The file's path. Raises UserError, naming every place looked at, where it is not there."""
        path = self.find(root)
        if path is None:
            raise UserError(f"{root}: {self.places[0]} is not there (looked for {', '.join(self.places)})")
        return path

    def wrong(self, path: Path) -> str | None:
        """What the file that was found lacks, in words, or None. Reads no more than a header."""
        return None

    def __str__(self) -> str:
        return self.places[0]


def missing(sources: tuple[Source, ...], root: Path) -> list[str]:
    """What keeps `sources` from being read, of which at least one has to be there; empty: nothing."""
    found = {source: path for source in sources if (path := source.find(root)) is not None}
    if not found:
        if len(sources) == 1:
            return [f"{sources[0]} is not there"]
        return [f"none of {', '.join(source.places[0] for source in sources)} is there"]
    return [failure for source, path in found.items() if (failure := source.wrong(path)) is not None]


@dataclass(frozen=True)
class Table(Source):
    """A delimited table. Without `header`, `columns` are all its fields; lines starting with `comment` do not count."""

    columns: tuple[str, ...]
    header: bool = True
    delimiter: str = ","
    comment: str | None = None

    def wrong(self, path: Path) -> str | None:
        try:
            self._open(path, Problems())
        except UserError as error:
            return str(error)
        return None

    def __str__(self) -> str:
        return f"{self.places[0]} (columns {', '.join(self.columns)})"

    def rows(self, root: Path, problems: Problems) -> Iterator[tuple[int, tuple[str, ...]]]:
        """Yield (line, the fields named in `columns`, stripped). Raises UserError for a missing file or column."""
        path = self.need(root)
        reader, picks, width, numbers = self._open(path, problems)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                problems.add(path, numbers[0], f"{error}")
                continue
            if not row or all(not value.strip() for value in row):
                continue
            if len(row) != width:
                problems.add(path, numbers[0], f"{len(row)} fields, {width} expected")
                continue
            yield numbers[0], tuple(row[pick].strip() for pick in picks)

    def _open(self, path: Path, problems: Problems) -> tuple[Any, Sequence[int], int, list[int]]:
        """The CSV reader behind its header, the positions of the wanted columns, the width, [the current line]."""
        current = [0]

        def text() -> Iterator[str]:
            for number, line in lines(path, problems):
                current[0] = number
                if self.comment is None or not line.startswith(self.comment):
                    yield line + "\n"

        # skipinitialspace: AudioSet writes `id, 30.000, 40.000, "/m/1,/m/2"`, where the quote follows a blank.
        csv.field_size_limit(MAX_FIELD)  # what an open quote may swallow
        reader = csv.reader(text(), delimiter=self.delimiter, skipinitialspace=True, strict=True)
        if not self.header:
            return reader, range(len(self.columns)), len(self.columns), current
        try:
            header = [name.strip() for name in next(reader, [])]
        except csv.Error as error:
            raise UserError(f"{path}: its first line is no table header ({error})") from None
        absent = [name for name in self.columns if name not in header]
        if absent:
            there = ", ".join(repr(name[:40])[1:-1] for name in header[:20]) or "none"
            raise UserError(f"{path}: has no column {', '.join(map(repr, absent))}; its columns are: {there}")
        return reader, [header.index(name) for name in self.columns], len(header), current


@dataclass(frozen=True)
class Lines(Source):
    """A plain text file, one entry a line; empty lines do not count."""

    def rows(self, root: Path, problems: Problems) -> Iterator[tuple[int, str]]:
        for number, line in lines(self.need(root), problems):
            if line.strip():
                yield number, line.strip()


@dataclass(frozen=True)
class Json(Source):
    """A JSON file of at most `MAX_JSON` bytes. Its lists are read item by item."""

    def value(self, root: Path) -> Any:
        """The parsed value. Raises UserError where the file is missing, too large or no JSON."""
        path = self.need(root)
        try:
            return json.loads(_content(path, MAX_JSON))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is no JSON ({error}); download it again") from None

    def items(self, root: Path, name: str | None, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (position from 1, item) of the list under `name` at the top, or of the list that the file is (None).

        Raises UserError where there is no such list.
        """
        path = self.need(root)
        try:
            with path.open("rb") as stream:
                yield from _dicts(items_of(stream, name, MAX_JSON), path, problems)
        except (OSError, ValueError, RecursionError):
            value = self.value(root)  # which tells what is wrong with it
            found = value if name is None else value.get(name) if isinstance(value, dict) else None
            what = "is no list" if name is None else f"has no list {name!r} at the top"
            raise UserError(
                f"{path}: {what}" if not isinstance(found, list) else f"{path}: has {name!r} twice"
            ) from None


@dataclass(frozen=True)
class Yaml(Source):
    """A YAML file of plain values: no tags of other languages, no aliases (they let a small file grow without bound)."""

    def items(self, root: Path, name: str, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield (position from 1, item) of the list under `name`. Raises UserError: no such list, aliases."""
        path = self.need(root)
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        content = _content(path, MAX_YAML)
        try:
            depth = 0
            for event in yaml.parse(content, Loader=loader):
                if isinstance(event, yaml.AliasEvent):
                    raise UserError(f"{path}: uses YAML aliases, which no annotation file needs; write it out in full")
                depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
                if depth > MAX_DEPTH:  # the loader below recurses, in C, and would take the process with it
                    raise UserError(f"{path}: is nested deeper than {MAX_DEPTH} levels; is it the corpus' own file?")
            value = yaml.load(content, Loader=loader)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise UserError(f"{path}: is no plain YAML ({error})") from None
        found = value.get(name) if isinstance(value, dict) else None
        if not isinstance(found, list):
            raise UserError(f"{path}: has no list {name!r} at the top")
        yield from _dicts(found, path, problems)


def _content(path: Path, limit: int) -> str:
    """The text of a whole UTF-8 file of at most `limit` bytes."""
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if len(raw) > limit:
        raise UserError(f"{path}: has more than {limit} bytes, too many for an annotation file of its kind")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start})") from None


def _dicts(values: Iterable[Any], path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, value in enumerate(values, 1):
        if isinstance(value, dict):
            yield number, value
        else:
            problems.add(path, number, f"item {number} is no mapping")

"""Tables of rows from elsewhere, read strictly: CSV, TSV, parquet and JSONL. What a row does not say well is a named fault.

A row of another width than the header, a quote that never ends, bytes that are no UTF-8, a word where a number belongs: each
would make a shorter caption or a null without a word. They are collected with their lines, and the table is refused with them.
"""

from __future__ import annotations

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import polars as pl

from javisc.manifests.absent import NAMES, WORDS, word
from javisc.manifests.damage import POLARS_FAULTS, sized
from javisc.manifests.environment import open_fetched
from javisc.manifests.errors import UserError
from javisc.manifests.urls import is_url

#: A caption longer than this is no caption; a row longer than this is no row.
MAX_FIELD = 1 << 17
FLOATS = frozenset({"offset_sec", "vstart_sec", "window_start", "window_end"})
#: Names under which one caption, and several, are found in tables and JSON.
ONE_CAPTION, MANY_CAPTIONS = ("text", "caption"), ("texts", "captions")
CAPTION_NAMES = (*ONE_CAPTION, *MANY_CAPTIONS)
#: Faults that a message shows.
_SHOWN = 3


@dataclass
class Faults:
    """Rows of a table that cannot be taken as they stand."""

    path: str
    count: int = 0
    shown: list[str] = field(default_factory=list)
    hidden: bool = False
    last: int | None = None

    def add(self, line: int, message: str) -> None:
        self.count += line != self.last  # a row may have several faults
        self.last = line
        if len(self.shown) < _SHOWN:
            self.shown.append(f"line {line}: {message}")
        else:
            self.hidden = True

    def check(self) -> None:
        """Raise UserError, with the first lines, if there are any."""
        if self.count:
            more = "; …" if self.hidden else ""
            rows = "1 row is" if self.count == 1 else f"{self.count} rows are"
            raise UserError(f"{self.path}: {rows} unusable: {'; '.join(self.shown)}{more}: mend the table")


def read_rows(path: str, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line or row number, row as a dictionary) of a table; CSV and TSV give texts, None where empty.

    Bad rows go to `faults`, which the caller checks at the end. Raises UserError if the file cannot be read at all.
    """
    suffix = Path(path).suffix.lower()
    reader = {".parquet": _parquet, ".jsonl": _jsonl, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _csv}.get(suffix)
    if reader is None:
        raise UserError(f"{path}: tables are .csv, .tsv, .parquet or .jsonl")
    try:
        yield from reader(path, faults)
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, ImportError, *POLARS_FAULTS) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def open_bytes(path: str) -> BinaryIO:
    """Open a local file or URL for reading; the caller closes it. Raises OSError, ValueError or ImportError; Unavailable."""
    return open_fetched(path) if is_url(path) else cast(BinaryIO, open(path, "rb"))  # noqa: PTH123


def raw_lines(stream: BinaryIO, most: int = -1) -> Iterator[bytes]:
    """The lines of a file, at most so many bytes at a time, without the mark that Windows sets before UTF-8."""
    mark = b"\xef\xbb\xbf"
    while raw := stream.readline(most):
        yield raw.removeprefix(mark)
        mark = b""


def _parquet(path: str, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    with ExitStack() as stack:
        local = Path(path)
        if is_url(path):
            copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="javisc-table-", suffix=".parquet"))
            with open_bytes(path) as stream:
                shutil.copyfileobj(stream, copy, 1 << 20)
            copy.flush()
            local = Path(copy.name)
        sized(path, local)
        number = 0
        for batch in pl.scan_parquet(local, glob=False).collect_batches(chunk_size=20_000, maintain_order=True):
            for row in batch.iter_rows(named=True):
                number += 1
                yield number, row


def _lines(path: str, faults: Faults) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their ends, numbered from 1."""
    with open_bytes(path) as stream:
        number = 0
        while raw := stream.readline(MAX_FIELD + 1):
            number += 1
            if number == 1:
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(f"{path} is UTF-16, tables are read as UTF-8: convert it, e.g. with iconv")
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if len(raw) > MAX_FIELD:
                raise UserError(
                    f"{path}: line {number} is longer than {MAX_FIELD} bytes: it is no table of one row a line"
                )
            try:
                yield number, raw.decode()
            except UnicodeDecodeError as error:
                faults.add(number, f"is not UTF-8 (byte {error.start})")


def _jsonl(path: str, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path, faults):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            faults.add(number, f"is no JSON ({error})")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            faults.add(number, "is no JSON object")


def _csv(path: str, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(MAX_FIELD)
    at = [0]

    def text() -> Iterator[str]:
        for number, line in _lines(path, faults):
            at[0] = number
            yield line

    lines = text()
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path} has no rows; its first line must name the columns")
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    # Where the header has blanks after its commas, the rows have them too: they are no part of names and quotes.
    spaced = f"{delimiter} " in first
    try:
        names = [
            name.strip()
            for name in next(csv.reader([first], delimiter=delimiter, skipinitialspace=spaced, strict=True))
        ]
    except (csv.Error, StopIteration) as error:
        raise UserError(f"{path}: its first line names no columns ({error})") from None
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise UserError(f"{path}: the column {twice} is there twice: name every column once")
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=spaced, strict=True)
    while True:
        start = at[0] + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            faults.add(start, f"its quotes do not pair ({error})")
            continue
        if not any(value.strip() for value in row):
            continue
        if len(row) != len(names):
            faults.add(start, _width(row, names, delimiter))
            continue
        yield start, {name: value or None for name, value in zip(names, row, strict=True)}


def read_plain_csv(path: str) -> pl.DataFrame | None:
    """A local CSV or TSV at once, `line` and its columns as texts, null where empty; None for one that read_rows must look at.

    Plain is a table each of whose lines is a row of the header's width, in UTF-8, with quotes only around whole cells: of such
    a table read_rows says the same, many times slower.
    """
    try:
        if (plainly := scan_plain_csv(path)) is None:
            return None
        lazy, rows = plainly
        frame = lazy.collect()
    except (OSError, UnicodeDecodeError, *POLARS_FAULTS):
        return None
    lines = pl.int_range(2, frame.height + 2, eager=True).alias("line")
    return frame.insert_column(0, lines) if frame.height == rows else None


def scan_plain_csv(path: str) -> tuple[pl.LazyFrame, int] | None:
    """What read_plain_csv reads but `line`, and how many rows it must come to.

    Raises OSError, UnicodeDecodeError and what polars does.
    """
    delimiter = "\t" if path.lower().endswith(".tsv") else ","
    with open(path, "rb") as stream:  # noqa: PTH123
        first = stream.readline(MAX_FIELD + 1).removeprefix(b"\xef\xbb\xbf").decode().rstrip("\r\n")
    names = first.split(delimiter)
    if '"' in first or " " in first or not all(names) or len(set(names)) < len(names) or "line" in names:
        return None
    cell = rf'(?:[^"{delimiter}\x00\r]*|"(?:[^"\x00\r]|"")*")'
    whole = rf"^{cell}(?:{delimiter}{cell}){{{len(names) - 1}}}\r?$"
    blank = rf'^[\s"{delimiter}]*$'
    lines = pl.scan_lines(path, name="line", glob=False)
    fit = pl.col("line").str.contains(whole) & (pl.col("line").str.len_bytes().is_between(1, MAX_FIELD - 2))
    rows, good = lines.select(pl.len(), (fit & ~pl.col("line").str.contains(blank)).sum().alias("good")).collect(
        engine="streaming"
    ).row(0)  # fmt: skip
    lazy = pl.scan_csv(path, separator=delimiter, infer_schema=False, glob=False)
    if good < rows or lazy.collect_schema().names() != names:
        return None
    empty = [pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in names]
    return lazy.select(empty), rows - 1


def _width(row: list[str], names: list[str], delimiter: str) -> str:
    """What a row of another width says, and why it probably is one."""
    shown = repr(delimiter.join(row)[:80])
    said = f"{len(row)} fields where the header has {len(names)}: {shown}"
    return said + ('; a text with commas stands in "quotes"' if len(row) > len(names) and delimiter == "," else "")


def cell(column: str, value: Any) -> Any:
    """A cell as its column's type; None where it says nothing, as a word for an absent value does.

    Raises ValueError where it cannot be what the column holds.
    """
    if isinstance(value, list | tuple | dict):
        raise ValueError(f"{column} is a {type(value).__name__}, one value is expected")
    text = word(value)
    if text is None:
        return None
    if column in NAMES:
        return plain(text)
    text = text.strip()
    if text in WORDS:
        return None
    if column not in FLOATS:
        return plain(text)
    try:
        number = float(text)
    except ValueError:
        raise ValueError(f"{column} {text[:40]!r} is no number") from None
    if not abs(number) < float("inf"):
        raise ValueError(f"{column} {text[:40]!r} is no finite number")
    return number


def cells(row: Mapping[str, Any], columns: Mapping[str, str], line: int, faults: Faults) -> dict[str, Any]:
    """The cells of a row that say something: `columns` maps the table's names to ours, a later one fills what an earlier left."""
    found: dict[str, Any] = {}
    for name, column in columns.items():
        if row.get(name) is None or column in found:
            continue
        try:
            value = cell(column, row[name])
        except ValueError as error:
            faults.add(line, str(error).replace(column, name, 1))  # as the table calls it
            continue
        if value is not None:
            found[column] = value
    return found


def plain(text: str) -> str:
    """Text without half surrogates, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def captions_of(value: Any) -> list[str] | None:
    """Captions from a string, a list of strings, or a JSON list in a string; None where there is none."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = None
        if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed):
            value = parsed
    items = value if isinstance(value, list) else [value]
    words = (word(item) for item in items if isinstance(item, str | bytes))
    return [plain(text) for each in words if each is not None and (text := each.strip()) not in WORDS] or None


def captions_of_row(row: Mapping[str, Any], line: int, faults: Faults) -> list[str] | None:
    """The captions of a table's row; a number, an object or bytes that are no text in a caption's place are named faults."""
    given = {name: row[name] for name in CAPTION_NAMES if row.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, str) and (what := _no_caption(value)):
            faults.add(line, f"{name} is {what}, a caption is text or a list of texts")
    return captions_in(given) if given else None


def _no_caption(value: Any) -> str | None:
    """What a cell is that can be no caption, in words; None for texts, lists of them, and what says nothing."""
    if isinstance(value, list):
        inner = (_no_caption(item) or ("a list" if isinstance(item, list) else None) for item in value)
        return next((f"a list with {what}" for what in inner if what), None)
    if isinstance(value, bytes):
        return None if word(value) is not None or not value.strip() else "no UTF-8"
    if value is None or isinstance(value, str) or value != value:  # NaN is pandas' word for nothing
        return None
    return "an object" if isinstance(value, Mapping) else str(value)[:40]


def captions_in(value: Any) -> list[str] | None:
    """The captions of a row, or of what a JSON file holds: under one of CAPTION_NAMES, or as text, or a list of either.

    One caption and several in one row are taken together, the one first.
    """
    if isinstance(value, Mapping):
        one, many = (
            next((found for name in names if (found := captions_of(value.get(name)))), [])
            for names in (ONE_CAPTION, MANY_CAPTIONS)
        )
        return list(dict.fromkeys([*one, *many])) or None
    if isinstance(value, list):
        lists = [captions_in(item) if isinstance(item, dict) else captions_of(item) for item in value]
        return [text for texts in lists if texts for text in texts] or None
    return captions_of(value)

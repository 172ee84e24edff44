"""Lists of inputs and tables of captions: CSV, TSV, parquet, JSONL and plain text, read as streams of rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import polars as pl

from javisc.manifests.absent import NAMES, WORDS, word
from javisc.manifests.environment import open_fetched
from javisc.manifests.errors import UserError
from javisc.manifests.schema import CARRIED
from javisc.manifests.urls import is_url

LIST_SUFFIXES = frozenset({".txt", ".list", ".csv", ".tsv", ".parquet", ".jsonl", ".ndjson"})
#: A caption longer than this is no caption; a row longer than this is no row.
MAX_FIELD = 1 << 20
FLOATS = frozenset({"offset_sec", "vstart_sec", "window_start", "window_end"})
TAKEN = ("path", "relpath", "id", "audio_path", *CARRIED, "window_start", "window_end")


def read_rows(path: str, *, delimiter: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the rows of a CSV, TSV, parquet or JSONL file as dictionaries (CSV: strings, None where empty).

    Raises UserError if the file cannot be read or parsed.
    """
    suffix = Path(path).suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet(path)
        elif suffix in (".jsonl", ".ndjson"):
            yield from _jsonl(path)
        elif suffix in (".csv", ".tsv"):
            yield from _csv(path, delimiter or ("\t" if suffix == ".tsv" else ","))
        else:
            raise UserError(f"{path}: tables are .csv, .tsv, .parquet or .jsonl")
    except FileNotFoundError:
        raise UserError(f"{path} is not there") from None
    except (OSError, ImportError, pl.exceptions.PolarsError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def open_bytes(path: str) -> BinaryIO:
    """Open a local file or URL for reading; the caller closes it. Raises OSError, ValueError or ImportError; Unavailable."""
    return open_fetched(path) if is_url(path) else cast(BinaryIO, open(path, "rb"))  # noqa: PTH123


def _open(path: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", errors="replace", newline="")


def _parquet(path: str) -> Iterator[dict[str, Any]]:
    if is_url(path):
        with open_bytes(path) as stream:
            frame: pl.LazyFrame = pl.read_parquet(stream.read()).lazy()
    else:
        frame = pl.scan_parquet(path, glob=False)
    for batch in frame.collect_batches(chunk_size=20_000, maintain_order=True):
        yield from batch.iter_rows(named=True)


def _jsonl(path: str) -> Iterator[dict[str, Any]]:
    with _open(path) as stream:
        number = 0
        while line := stream.readline(MAX_FIELD + 1):
            number += 1
            if len(line) > MAX_FIELD:
                raise UserError(f"{path}: line {number} is longer than {MAX_FIELD} characters")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}: line {number} is no JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}: line {number} is no JSON object")
            yield row


def _csv(path: str, delimiter: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(MAX_FIELD)
    with _open(path) as stream:
        reader = csv.reader(stream, delimiter=delimiter)
        header = next(reader, None)
        if header is None:
            raise UserError(f"{path} has no rows; its first line must name the columns")
        names = [name.strip() for name in header]
        for row in reader:
            if row:
                yield {name: value or None for name, value in zip(names, row, strict=False)}


def read_list(path: str) -> Iterator[dict[str, Any]]:
    """Yield the inputs of a list: `path` and, where the table has them, relpath, id, labels and windows.

    Plain text (.txt, .list): a path a line. Tables need the column `path` (any table that JavisDiT's tools wrote has it).
    Raises UserError.
    """
    if Path(path).suffix.lower() in (".txt", ".list"):
        yield from _lines(path)
        return
    for number, row in enumerate(read_rows(path), 1):
        name = row.get("path")
        if not isinstance(name, str) or not name:
            raise UserError(f"{path}: row {number} has no `path`; a list needs the column path, one file a row")
        found = {column: typed(column, row.get(column)) for column in TAKEN if row.get(column) is not None}
        yield {**found, "path": plain(name)}


def _lines(path: str) -> Iterator[dict[str, Any]]:
    try:
        with open_bytes(path) as stream:
            for raw in stream:
                # Paths are bytes: what is no UTF-8 keeps its bytes as surrogates, as the os module does it.
                if name := raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape"):
                    yield {"path": name}
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def typed(column: str, value: Any) -> Any:
    """A cell as its column's type: floats from text, one string or a list of strings as captions; None where it says nothing.

    A word for an absent value ("None", "nan") says nothing, and in a name it is a name.
    """
    if column in FLOATS:
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        return number if number == number and abs(number) != float("inf") else None
    if column == "texts":
        return captions_of(value)
    text = word(value)
    if text is None or column in NAMES:
        return None if text is None else plain(text)
    return None if (text := text.strip()) in WORDS else plain(text)


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

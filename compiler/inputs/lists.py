"""Lists of inputs: plain text with a path a line, or tables with a column `path`, read as streams of rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from javisc.manifests.errors import UserError
from javisc.manifests.rows import Faults, captions_of_row, cells, open_bytes, raw_lines, read_rows
from javisc.manifests.schema import CARRIED
from javisc.manifests.urls import is_url, join

LIST_SUFFIXES = frozenset({".txt", ".list", ".csv", ".tsv", ".parquet", ".jsonl", ".ndjson"})
#: Columns that a list may have → ours. A manifest is a list too: it calls the window clip_start and clip_end.
TAKEN = {
    **{name: name for name in ("path", "relpath", "id", "audio_path", *CARRIED) if name not in ("text", "texts")},
    **{name: name for name in ("window_start", "window_end")},
    "clip_start": "window_start",
    "clip_end": "window_end",
}
#: How other tables call windows: not guessed, since they may also say where a clip was cut from, but not passed over in silence.
_LIKE_WINDOWS = (
    *(tuple(f"{name}{end}" for name in ("start", "end")) for end in ("", "_time", "_sec", "_seconds", "_s")),
    ("begin", "end"),
    ("t_start", "t_end"),
    ("start_timestamp", "end_timestamp"),
)
#: What a list may say of an object, so that it is not asked for.
TOLD = ("source_bytes", "mtime_ns")
#: Columns of an S3 Inventory, which names objects by these instead of `path`.
INVENTORY = ("bucket", "key")


def read_list(path: str) -> Iterator[dict[str, Any]]:
    """Yield the inputs of a list: `path` and, where the table has them, relpath, id, audio_path, labels, captions, windows.

    Plain text (.txt, .list): a path a line. Tables need the column `path` (any table that JavisDiT's tools wrote has it), or
    bucket and key, as an S3 Inventory has them (`stock`). TOLD: what the table says of an object's size and time.
    Raises UserError, for bad rows when the list is at its end, for windows by another name at once.
    """
    if Path(path).suffix.lower() in (".txt", ".list"):
        yield from _lines(path)
        return
    faults = Faults(path)
    names: set[str] = set()
    for line, row in read_rows(path, faults):
        stock = "path" not in row and all(name in row for name in INVENTORY)
        if "path" not in row and not stock:
            raise UserError(f"{path}: line {line} has no `path`; a list needs the column path, one file a row")
        if names != row.keys():  # of a table once, of JSON lines where they change
            _check_windows(path, row)
            names = set(row)
        if stock and (_says(row, "is_delete_marker", "true") or _says(row, "is_latest", "false")):
            continue
        found = cells(row, TAKEN, line, faults)
        if stock and row["bucket"] and row["key"]:
            found["path"] = f"s3://{row['bucket']}/{row['key']}"
            found |= {"relpath": str(row["key"]), "stock": True}
        try:
            found |= _told(row, stock)
        except (ValueError, TypeError, OverflowError) as error:
            faults.add(line, f"size or time: {str(error)[:80]}")
            continue
        if "path" not in found:
            faults.add(line, "path is empty")
            continue
        texts = captions_of_row(row, line, faults)
        yield {**found, **({"text": texts[0], "texts": texts} if texts else {})}
    faults.check()


def _check_windows(path: str, row: dict[str, Any]) -> None:
    """Raise UserError where a table says windows by names that are not read: whole files would be built in their place."""
    if row.keys() & {"clip_start", "clip_end", "window_start", "window_end"}:
        return
    for start, end in _LIKE_WINDOWS:
        if start in row and end in row:
            raise UserError(
                f"{path}: the columns {start} and {end} are not read: call them clip_start and clip_end, in seconds, if they are "
                "windows of the file in path; else leave them out"
            )


def _says(row: dict[str, Any], name: str, value: str) -> bool:
    return str(row.get(name)).lower() == value


def _told(row: dict[str, Any], stock: bool) -> dict[str, int]:
    """TOLD of a row, or nothing where one lacks. Raises ValueError, TypeError or OverflowError for what is no size or time."""
    size, when = row.get("size" if stock else "source_bytes"), row.get("last_modified_date" if stock else "mtime_ns")
    if size in (None, "") or when in (None, ""):
        return {}
    told = {"source_bytes": int(size)}
    if told["source_bytes"] < 0:
        raise ValueError(f"{size} bytes")
    if stock and isinstance(when, str):
        when = datetime.fromisoformat(when)
    if isinstance(when, datetime):
        when = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()) * 10**9
    return {**told, "mtime_ns": int(when)}  # type: ignore[arg-type]


def _lines(path: str) -> Iterator[dict[str, Any]]:
    try:
        with open_bytes(path) as stream:
            for number, raw in enumerate(raw_lines(stream)):
                if number == 0 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise UserError(f"{path} is UTF-16, lists are read as UTF-8: convert it, e.g. with iconv")
                # Paths are bytes: what is no UTF-8 keeps its bytes as surrogates, as the os module does it.
                if name := raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape"):
                    yield {"path": name}
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def folder_of(table: str) -> str:
    """Where relative paths of a table start: its folder, absolute, or the URL of it."""
    return table.rsplit("/", 1)[0] if is_url(table) else os.path.dirname(os.path.abspath(table))  # noqa: PTH100, PTH120


def resolved(name: str, folder: str) -> str:
    """A path of a list or table of captions as an absolute path or URL: from the table's folder (`folder_of`).

    Where nothing is there, from the working folder.
    """
    if is_url(name) or os.path.isabs(name):  # noqa: PTH117
        return name
    if is_url(folder):
        return join(folder, name)
    beside = os.path.join(folder, name)  # noqa: PTH118
    if not os.path.lexists(beside) and os.path.lexists(name):
        return os.path.abspath(name)  # noqa: PTH100
    return beside

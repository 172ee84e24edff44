"""Lists of inputs: plain text with a path a line, or tables with a column `path`, read as streams of rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from javisc.manifests.errors import UserError
from javisc.manifests.rows import Faults, captions_in, cells, open_bytes, read_rows
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


def read_list(path: str) -> Iterator[dict[str, Any]]:
    """Yield the inputs of a list: `path` and, where the table has them, relpath, id, audio_path, labels, captions, windows.

    Plain text (.txt, .list): a path a line. Tables need the column `path` (any table that JavisDiT's tools wrote has it).
    Raises UserError, for bad rows when the list is at its end.
    """
    if Path(path).suffix.lower() in (".txt", ".list"):
        yield from _lines(path)
        return
    faults = Faults(path)
    for line, row in read_rows(path, faults):
        if "path" not in row:
            raise UserError(f"{path}: line {line} has no `path`; a list needs the column path, one file a row")
        found = cells(row, TAKEN, line, faults)
        if "path" not in found:
            faults.add(line, "path is empty")
            continue
        texts = captions_in(row)
        yield {**found, **({"text": texts[0], "texts": texts} if texts else {})}
    faults.check()


def _lines(path: str) -> Iterator[dict[str, Any]]:
    try:
        with open_bytes(path) as stream:
            for raw in stream:
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

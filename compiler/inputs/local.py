"""Finding inputs: folders, single files, lists of paths and object-store prefixes become the input table."""

from __future__ import annotations

import os
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.inputs.found import SCAN_SCHEMA, SIDECAR, Row, ScanReport, named, refused, suffix_of
from javisc.compiler.inputs.inventory import is_inventory
from javisc.compiler.inputs.lists import LIST_SUFFIXES, TOLD, folder_of, read_list, resolved
from javisc.compiler.inputs.remote import below, listed_by, remote_row
from javisc.compiler.inputs.sidecars import SUFFIXES, Beside, beside
from javisc.compiler.inputs.table import normal_relpath, shown
from javisc.manifests.environment import ask_local
from javisc.manifests.errors import UserError
from javisc.manifests.objects import Info, infos
from javisc.manifests.partitions import Partitions, by
from javisc.manifests.urls import is_url

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".m2v", ".flv", ".f4v"}
    | {".3gp", ".3g2", ".wmv", ".asf", ".ogv", ".264", ".h264", ".265", ".h265", ".hevc"}
)
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff"})
#: Rows per batch: what is held as Python objects at one time.
BATCH = 20_000
#: Entries of one folder that are held at a time, and the parts that a longer list of them is cut into.
MANY, PARTS = 100_000, 64


def scan(
    raw: Iterable[str | os.PathLike[str]],
    suffixes: frozenset[str] = VIDEO_SUFFIXES,
    *,
    out: str | None = None,
    report: ScanReport | None = None,
    scratch: Path | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield the inputs under `raw` as frames of SCAN_SCHEMA, in batches and in no particular order.

    raw: folders (recursive), media files, lists of paths (.txt .list .csv .tsv .parquet .jsonl), manifests of S3
    Inventories (manifest.json), or fsspec URLs.
    out: the dataset being written; never descended into, wherever it lies. scratch: a folder for lists longer than memory.
    What cannot be an input file (a folder named .mp4, a dangling link, an empty file) comes as a row with `refused`.
    Raises UserError if one of `raw` does not exist or holds nothing that can be read.
    """
    report = report if report is not None else ScanReport()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="javisc-scan-", dir=scratch) as folder:
        for number, root in enumerate(raw):
            for row in _rows(os.fspath(root), suffixes, out, report, Path(folder, str(number))):
                report.files += 1
                if row.get("refused"):
                    report.refused[row["refused"]] += 1
                rows.append(row)
                if len(rows) >= BATCH:
                    yield pl.DataFrame(rows, schema=SCAN_SCHEMA)
                    rows = []
    yield pl.DataFrame(rows, schema=SCAN_SCHEMA)


def _rows(root: str, suffixes: frozenset[str], out: str | None, report: ScanReport, folder: Path) -> Iterator[Row]:
    if is_inventory(root) and (is_url(root) or os.path.isfile(root)):  # noqa: PTH113
        yield from listed_by(root, suffixes, out, report, folder)
        return
    if is_url(root):
        if Path(root).suffix.lower() in LIST_SUFFIXES:
            yield from _listed(root, suffixes, report)
        else:
            yield from below(root, suffixes, out, report, folder)
        return
    absolute = os.path.abspath(root)  # noqa: PTH100 (keeps links: the path is stored as it was given)
    if os.path.isdir(absolute):  # noqa: PTH112 (names may be undecodable: os.path keeps them)
        yield from _folder(absolute, suffixes, out, report, folder)
    elif not os.path.lexists(absolute):
        raise UserError(f"{shown(root)} is not there: give a folder, a list of paths or a media file")
    elif suffix_of(absolute) in LIST_SUFFIXES:
        yield from _listed(absolute, suffixes, report)
    else:
        yield _input(absolute, os.path.basename(absolute), os.stat, beside(absolute), seen=False)  # noqa: PTH119


def _folder(root: str, suffixes: frozenset[str], out: str | None, report: ScanReport, scratch: Path) -> Iterator[Row]:
    """Walk a folder without recursion, following links but never into a folder's own ancestors or into `out`."""
    skip = _identity(out) if out is not None and not is_url(out) else None
    top = _identity(root)
    if skip is not None and top == skip:
        raise UserError(f"{shown(root)} is the dataset itself: give the folder of raw media, or another --out")
    stack: list[tuple[str, str, tuple[Any, ...]]] = [(root, "", (top,))]
    while stack:
        folder, prefix, ancestors = stack.pop()
        try:
            entries = ask_local(lambda folder=folder: _listing(folder, scratch), folder)  # type: ignore[misc]
        except FileNotFoundError:  # deleted since its parent was listed
            continue
        except OSError as error:
            if not prefix:
                raise UserError(f"{shown(root)} cannot be read: {error.strerror}; mend its permissions") from error
            yield refused(folder, prefix.rstrip("/"), "unreadable", f"folder cannot be read: {error.strerror}")
            continue
        for together in entries:
            captions = Beside(entry.name for entry in together)
            for entry in together:
                path, relpath = os.path.join(folder, entry.name), prefix + entry.name  # noqa: PTH118
                media = suffix_of(entry.name) in suffixes
                if _is_folder(entry):
                    if media:
                        yield refused(path, relpath, "unreadable", "a folder, not a file")
                    here = _identity(path)
                    if here in ancestors:
                        report.loops += 1
                    elif skip is None or here != skip:
                        stack.append((path, relpath + "/", (*ancestors, here)))
                elif media:
                    found = captions.of(entry.name)
                    sidecar = None if found is None else os.path.join(folder, found)  # noqa: PTH118
                    yield _input(path, relpath, lambda _, entry=entry: entry.stat(), sidecar)
                elif suffix_of(entry.name) not in SUFFIXES:
                    report.pass_over(path)
            report.stray_sidecars += captions.unused


@dataclass(frozen=True)
class _Entry:
    """What of an entry of a folder was written down."""

    path: str
    name: str
    folder: bool

    def is_dir(self) -> bool:
        return self.folder

    def stat(self) -> os.stat_result:
        return os.stat(self.path)  # noqa: PTH116


def _is_folder(entry: os.DirEntry[str] | _Entry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _listing(folder: str, scratch: Path) -> Iterable[list[Any]]:
    """The entries of a folder in lists, of which each has all of some stems; in one, sorted, unless they are MANY."""
    with os.scandir(folder) as found:
        first = list(islice(found, MANY))
        if len(first) < MANY:
            return [sorted(first, key=lambda entry: os.fsencode(entry.name))]
        schema = pl.Schema({"name": pl.Binary(), "stem": pl.Binary(), "folder": pl.Boolean()})
        parts = Partitions(scratch / uuid.uuid4().hex, PARTS, schema)
        entries = chain(first, found)
        while some := list(islice(entries, BATCH)):
            names = [os.fsencode(entry.name) for entry in some]
            stems = [os.path.splitext(name)[0] for name in names]  # noqa: PTH122
            columns = {"name": names, "stem": stems, "folder": [_is_folder(entry) for entry in some]}
            parts.add(pl.DataFrame(columns, schema=schema), by("stem"))
    return (
        [
            _Entry(os.path.join(folder, os.fsdecode(name)), os.fsdecode(name), is_folder)  # noqa: PTH118
            for name, is_folder in frame.select("name", "folder").sort("name").iter_rows()
        ]
        for frame in parts
    )


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _input(path: str, relpath: str, ask: Any, sidecar: str | None = None, *, seen: bool = True) -> Row:
    """A row for a local file, refused if it is no regular file or has no bytes. seen: it was listed in its folder just now."""
    try:
        status = ask_local(lambda: ask(path), path) if seen else ask(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, which only a list can hold
        return refused(path, relpath, "unreadable", getattr(error, "strerror", None) or str(error))
    if not stat.S_ISREG(status.st_mode):
        return refused(path, relpath, "unreadable", "no regular file")
    if status.st_size == 0:
        return {**refused(path, relpath, "empty", "the file has no bytes"), "source_bytes": 0}
    row = named(path, relpath)
    row.update(source_bytes=status.st_size, mtime_ns=status.st_mtime_ns)
    if sidecar is not None:
        row[SIDECAR] = os.fsencode(sidecar)
    return row


def _listed(path: str, suffixes: frozenset[str], report: ScanReport) -> Iterator[Row]:
    """The rows of a list; relative paths start at the list's folder, or, not being there, at the working folder.

    An inventory of a bucket is no choice of anybody's: of its objects those are taken that a scan of the bucket would take.
    """
    folder = folder_of(path)
    lines = (row for row in read_list(path) if not row.pop("stock", False) or _taken(row["path"], suffixes, report))
    while some := list(islice(lines, BATCH)):
        named = [(labels, resolved(labels.pop("path"), folder)) for labels in some]
        both = [(labels, name, resolved(labels.pop("audio_path", name), folder)) for labels, name in named]
        asked = [
            url
            for labels, *names in both
            for url in names
            if is_url(url) and not (url == names[0] and "source_bytes" in labels)
        ]
        objects = infos(asked) if asked else {}
        for labels, name, sound in both:
            yield _listed_row(labels, name, sound, folder, objects)


def _taken(path: str, suffixes: frozenset[str], report: ScanReport) -> bool:
    """True for a kind that is scanned; others are counted."""
    if (suffix := suffix_of(path)) in suffixes:
        return True
    if suffix not in SUFFIXES:
        report.pass_over(path)
    return False


def _listed_row(
    labels: dict[str, Any], name: str, sound: str, folder: str, objects: Mapping[str, Info | Exception]
) -> Row:
    """The row of a line of a list. objects: what is known of URLs; what the list itself says of one's size is believed."""
    told = {column: labels.pop(column) for column in TOLD if column in labels}
    given = labels.pop("relpath", None)
    if given is None:
        inside = name if is_url(name) else os.path.normpath(name)
        within = inside.startswith(folder.rstrip("/") + "/")
        given = inside[len(folder) + 1 :] if within else name.split("://", 1)[1] if is_url(name) else inside
    if is_url(name) and "source_bytes" in told:
        known: Info | Exception = {"type": "file", "size": told["source_bytes"], "mtime_ns": told["mtime_ns"]}
        objects = {**({sound: objects[sound]} if sound in objects else {}), name: known}
    row = _source(name, given, objects)
    if not is_url(name) and not row.get("refused") and "text" not in labels and (caption := beside(name)) is not None:
        row[SIDECAR] = os.fsencode(caption)
    row |= labels
    return row if sound == name else _with_sound(row, sound, objects)


def _source(path: str, relpath: str, objects: Mapping[str, Info | Exception]) -> Row:
    """The row of a file or URL that somebody named."""
    if is_url(path):
        return remote_row(path, relpath, objects[path])
    return _input(path, normal_relpath(relpath), os.stat, seen=False)


def _with_sound(row: Row, sound: str, objects: Mapping[str, Info | Exception]) -> Row:
    """The row with a file of its own for the sound; refused where that cannot be an input."""
    heard = _source(sound, sound, objects)
    row |= {
        "audio_path": heard["path"],
        "audio_bytes": heard.get("source_bytes"),
        "audio_mtime_ns": heard.get("mtime_ns"),
    }
    if heard.get("refused") and not row.get("refused"):
        row |= {
            "refused": heard["refused"],
            "refused_message": f"audio_path {heard['path']}: {heard['refused_message']}",
        }
    return row

"""Finding inputs: folders, single files, lists of paths and object-store prefixes become the input table."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.inputs.lists import LIST_SUFFIXES, TOLD, folder_of, read_list, resolved
from javisc.compiler.inputs.sidecars import SUFFIXES, Beside, beside
from javisc.compiler.inputs.table import INPUT_SCHEMA, normal_relpath, shown, undecodable
from javisc.manifests.environment import ask_local
from javisc.manifests.errors import UserError
from javisc.manifests.objects import Info, infos, listing
from javisc.manifests.urls import filesystem, is_url

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".m2v", ".flv", ".f4v"}
    | {".3gp", ".3g2", ".wmv", ".asf", ".ogv", ".264", ".h264", ".265", ".h265", ".hevc"}
)
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff"})
#: Column of the scan beside INPUT_SCHEMA: the caption file that lies beside the input, as the system writes its name.
SIDECAR = "sidecar"
SCAN_SCHEMA = pl.Schema({**INPUT_SCHEMA, SIDECAR: pl.Binary()})
#: Suffixes that are counted apart, and that are named.
MAX_KINDS, KINDS_SAID = 1000, 12
OTHER = "other"
#: Rows per batch: what is held as Python objects at one time.
BATCH = 20_000

Row = dict[str, Any]


@dataclass
class ScanReport:
    """What the scan met besides inputs; said after it. used: files that are read otherwise, such as a table of captions."""

    used: frozenset[str] = frozenset()
    files: int = 0
    others: Counter[str] = field(default_factory=Counter)
    loops: int = 0
    twice: int = 0
    stray_sidecars: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        said = [f"found {self.files} files"]
        if self.others:
            said.append(f"{self.others.total()} files of other kinds were passed over: {self._kinds()}")
        if self.loops:
            said.append(f"{self.loops} links that lead back into their own folder were not followed")
        if self.twice:
            said.append(f"{self.twice} inputs were named more than once and count once")
        return said

    def pass_over(self, path: str) -> None:
        """Count a file of a kind that is not scanned."""
        if path in self.used:
            return
        suffix = _suffix(path)
        if (
            not suffix.isprintable()
            or len(suffix) > 12
            or (suffix not in self.others and len(self.others) >= MAX_KINDS)
        ):
            suffix = OTHER
        self.others[suffix or "without a suffix"] += 1

    def _kinds(self) -> str:
        """The kinds that were passed over with their counts, the most frequent first."""
        order = sorted(self.others.items(), key=lambda item: (item[0] == OTHER, -item[1], item[0]))
        named = ", ".join(f"{kind} {count}" for kind, count in order[:KINDS_SAID])
        rest = sum(count for _, count in order[KINDS_SAID:])
        return named + (f", {rest} of {len(order) - KINDS_SAID} more kinds" if rest else "")


def scan(
    raw: Iterable[str | os.PathLike[str]],
    suffixes: frozenset[str] = VIDEO_SUFFIXES,
    *,
    out: str | None = None,
    report: ScanReport | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield the inputs under `raw` as frames of SCAN_SCHEMA, in batches and in no particular order.

    raw: folders (recursive), media files, lists of paths (.txt .list .csv .tsv .parquet .jsonl), or fsspec URLs.
    out: the dataset being written; never descended into, wherever it lies.
    What cannot be an input file (a folder named .mp4, a dangling link, an empty file) comes as a row with `refused`.
    Raises UserError if one of `raw` does not exist or holds nothing that can be read.
    """
    report = report if report is not None else ScanReport()
    rows: list[Row] = []
    for root in raw:
        for row in _rows(os.fspath(root), suffixes, out, report):
            report.files += 1
            if row.get("refused"):
                report.refused[row["refused"]] += 1
            rows.append(row)
            if len(rows) >= BATCH:
                yield pl.DataFrame(rows, schema=SCAN_SCHEMA)
                rows = []
    yield pl.DataFrame(rows, schema=SCAN_SCHEMA)


def _rows(root: str, suffixes: frozenset[str], out: str | None, report: ScanReport) -> Iterator[Row]:
    if is_url(root):
        if Path(root).suffix.lower() in LIST_SUFFIXES:
            yield from _listed(root, suffixes, report)
        else:
            yield from _remote(root, suffixes, out, report)
        return
    absolute = os.path.abspath(root)  # noqa: PTH100 (keeps links: the path is stored as it was given)
    if os.path.isdir(absolute):  # noqa: PTH112 (names may be undecodable: os.path keeps them)
        yield from _folder(absolute, suffixes, out, report)
    elif not os.path.lexists(absolute):
        raise UserError(f"{shown(root)} is not there: give a folder, a list of paths or a media file")
    elif _suffix(absolute) in LIST_SUFFIXES:
        yield from _listed(absolute, suffixes, report)
    else:
        yield _input(absolute, os.path.basename(absolute), os.stat, beside(absolute), seen=False)  # noqa: PTH119


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122


def _folder(root: str, suffixes: frozenset[str], out: str | None, report: ScanReport) -> Iterator[Row]:
    """Walk a folder without recursion, following links but never into a folder's own ancestors or into `out`."""
    skip = _identity(out) if out is not None and not is_url(out) else None
    top = _identity(root)
    if skip is not None and top == skip:
        raise UserError(f"{shown(root)} is the dataset itself: give the folder of raw media, or another --out")
    stack: list[tuple[str, str, tuple[Any, ...]]] = [(root, "", (top,))]
    while stack:
        folder, prefix, ancestors = stack.pop()
        try:
            entries = ask_local(lambda folder=folder: _listing(folder), folder)  # type: ignore[misc]
        except FileNotFoundError:  # deleted since its parent was listed
            continue
        except OSError as error:
            if not prefix:
                raise UserError(f"{shown(root)} cannot be read: {error.strerror}; mend its permissions") from error
            yield _refused(folder, prefix.rstrip("/"), "unreadable", f"folder cannot be read: {error.strerror}")
            continue
        captions = Beside(entry.name for entry in entries)
        for entry in entries:
            path, relpath = os.path.join(folder, entry.name), prefix + entry.name  # noqa: PTH118
            media = _suffix(entry.name) in suffixes
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            if is_folder:
                if media:
                    yield _refused(path, relpath, "unreadable", "a folder, not a file")
                here = _identity(path)
                if here in ancestors:
                    report.loops += 1
                elif skip is None or here != skip:
                    stack.append((path, relpath + "/", (*ancestors, here)))
            elif media:
                found = captions.of(entry.name)
                sidecar = None if found is None else os.path.join(folder, found)  # noqa: PTH118
                yield _input(path, relpath, lambda _, entry=entry: entry.stat(), sidecar)
            elif _suffix(entry.name) not in SUFFIXES:
                report.pass_over(path)
        report.stray_sidecars += captions.unused


def _listing(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted(found, key=lambda entry: os.fsencode(entry.name))


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
        return _refused(path, relpath, "unreadable", getattr(error, "strerror", None) or str(error))
    if not stat.S_ISREG(status.st_mode):
        return _refused(path, relpath, "unreadable", "no regular file")
    if status.st_size == 0:
        return {**_refused(path, relpath, "empty", "the file has no bytes"), "source_bytes": 0}
    row = _named(path, relpath)
    row.update(source_bytes=status.st_size, mtime_ns=status.st_mtime_ns)
    if sidecar is not None:
        row[SIDECAR] = os.fsencode(sidecar)
    return row


def _named(path: str, relpath: str) -> Row:
    relpath = shown(relpath)
    name = relpath.rsplit("/", 1)[-1]
    stem, dot, _ = name.rpartition(".")
    return {
        "path": shown(path),
        "raw_path": undecodable(path),
        "relpath": relpath,
        "id": stem if dot and stem else name,
    }


def _refused(path: str, relpath: str, reason: str, message: str) -> Row:
    return {**_named(path, relpath), "refused": reason, "refused_message": message}


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
    if (suffix := _suffix(path)) in suffixes:
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
        return _remote_row(path, relpath, objects[path])
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


def _remote_row(url: str, relpath: str, found: Info | Exception) -> Row:
    if isinstance(found, Exception):
        return _refused(url, normal_relpath(relpath), "unreadable", str(found) or type(found).__name__)
    return _object(url, relpath, found)


def _object(url: str, relpath: str, info: dict[str, Any]) -> Row:
    if info.get("type") != "file":
        return _refused(url, normal_relpath(relpath), "unreadable", "no file")
    if info.get("size") == 0:
        return {**_refused(url, normal_relpath(relpath), "empty", "the object has no bytes"), "source_bytes": 0}
    row = _named(url, normal_relpath(relpath))
    changed = info.get("LastModified") or info.get("last_modified") or info.get("mtime") or info.get("updated")
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    row["source_bytes"] = info.get("size")
    row["mtime_ns"] = info.get("mtime_ns", int(changed * 1e9) if isinstance(changed, int | float) else None)
    return row


def _remote(root: str, suffixes: frozenset[str], out: str | None, report: ScanReport) -> Iterator[Row]:
    try:
        _, base = filesystem(root.rstrip("/"))
        found = listing(root)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{root} cannot be listed: {error}") from error
    if not found:
        raise UserError(f"{root} holds nothing: give a prefix with files below it")
    scheme = root.split("://", 1)[0]
    inside_out = out.rstrip("/") + "/" if out is not None and is_url(out) else None
    captions = Beside(found)
    for name in sorted(found):
        url = f"{scheme}://{name.lstrip('/') if scheme != 'file' else name}"
        if inside_out is not None and url.startswith(inside_out):
            continue
        if _suffix(name) not in suffixes:
            if _suffix(name) not in SUFFIXES:
                report.pass_over(url)
            continue
        relpath = name[len(base) :].lstrip("/") or name.rsplit("/", 1)[-1]
        row = _object(url, relpath, found[name])
        if (caption := captions.of(name)) is not None:
            row[SIDECAR] = (os.path.splitext(url)[0] + os.path.splitext(caption)[1]).encode()  # noqa: PTH122
        yield row
    report.stray_sidecars += captions.unused

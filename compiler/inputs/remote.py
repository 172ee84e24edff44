"""Objects as inputs: what lies below a prefix, in parts of a list that may be longer than memory, and what one object is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import polars as pl

from javisc.compiler.inputs.found import SIDECAR, SIDECAR_TAG, Row, ScanReport, named, refused, suffix_of
from javisc.compiler.inputs.inventory import read_inventory
from javisc.compiler.inputs.sidecars import SUFFIXES, Beside
from javisc.compiler.inputs.table import normal_relpath
from javisc.manifests.errors import UserError
from javisc.manifests.objects import Info, listing
from javisc.manifests.partitions import Partitions, by
from javisc.manifests.urls import filesystem, is_url

#: An object of a list. stem: of its name; objects of one stem are looked at together. tag: what changes with its content.
_LISTED = pl.Schema(
    {
        "name": pl.String(),
        "stem": pl.String(),
        "type": pl.String(),
        "size": pl.Int64(),
        "mtime_ns": pl.Int64(),
        "tag": pl.String(),
    }
)
#: Parts of a list: of a hundred million objects, one holds a million and a half.
_PARTS = 64


def remote_row(url: str, relpath: str, found: Info | Exception) -> Row:
    """The row of a URL that somebody named."""
    if isinstance(found, Exception):
        return refused(url, normal_relpath(relpath), "unreadable", str(found) or type(found).__name__)
    return object_row(url, relpath, found)


def object_row(url: str, relpath: str, info: Info) -> Row:
    """The row of an object, as a store tells of it."""
    if info.get("type") != "file":
        return refused(url, normal_relpath(relpath), "unreadable", "no file")
    if info.get("size") == 0:
        return {**refused(url, normal_relpath(relpath), "empty", "the object has no bytes"), "source_bytes": 0}
    return {**named(url, normal_relpath(relpath)), "source_bytes": info.get("size"), "mtime_ns": _mtime_ns(info)}


def _mtime_ns(info: Info) -> int | None:
    if "mtime_ns" in info:
        return None if info["mtime_ns"] is None else int(info["mtime_ns"])
    changed = info.get("LastModified") or info.get("last_modified") or info.get("mtime") or info.get("updated")
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return int(changed * 1e9) if isinstance(changed, int | float) else None


def below(root: str, suffixes: frozenset[str], out: str | None, report: ScanReport, folder: Path) -> Iterator[Row]:
    """The inputs below a prefix. folder: scratch for the list. Raises UserError where nothing can be listed."""
    try:
        _, base = filesystem(root.rstrip("/"))
        parts = _spooled(listing(root), folder)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{root} cannot be listed: {error}") from error
    if not parts.height:
        raise UserError(f"{root} holds nothing: give a prefix with files below it")
    yield from _rows(parts, root.split("://", 1)[0], base, suffixes, out, report)


def listed_by(path: str, suffixes: frozenset[str], out: str | None, report: ScanReport, folder: Path) -> Iterator[Row]:
    """The inputs that an S3 Inventory lists, as a scan of its bucket would find them. path: its manifest. Raises UserError."""
    inventory = read_inventory(path)

    def current() -> Iterator[list[tuple[str, Info]]]:
        for page in inventory.pages():
            found = [item for item in page if item is not None]
            report.versions += len(page) - len(found)
            yield found

    yield from _rows(_spooled(current(), folder), "s3", inventory.bucket, suffixes, out, report)


def _rows(
    parts: Partitions, scheme: str, base: str, suffixes: frozenset[str], out: str | None, report: ScanReport
) -> Iterator[Row]:
    inside_out = out.rstrip("/") + "/" if out is not None and is_url(out) else None
    for frame in parts:
        captions = Beside(frame["name"])
        tags = {name: tag for name, tag in frame.select("name", "tag").iter_rows() if suffix_of(name) in SUFFIXES}
        for info in frame.sort("name").iter_rows(named=True):
            name = info.pop("name")
            url = f"{scheme}://{name.lstrip('/') if scheme != 'file' else name}"
            if inside_out is not None and url.startswith(inside_out):
                continue
            if suffix_of(name) not in suffixes:
                if suffix_of(name) not in SUFFIXES:
                    report.pass_over(url)
                continue
            row = object_row(url, name[len(base) :].lstrip("/") or name.rsplit("/", 1)[-1], info)
            if (caption := captions.of(name)) is not None:
                row[SIDECAR] = (os.path.splitext(url)[0] + os.path.splitext(caption)[1]).encode()  # noqa: PTH122
                row[SIDECAR_TAG] = tags[caption]
            yield row
        report.stray_sidecars += captions.unused


def _spooled(pages: Iterable[list[tuple[str, Info]] | None], folder: Path) -> Partitions:
    """A list, objects of one stem in one part."""
    parts = Partitions(folder, _PARTS, _LISTED)
    for page in pages:
        if page is None:
            parts.clear()
            continue
        rows = [(name, os.path.splitext(name)[0], *_listed(info)) for name, info in page]  # noqa: PTH122
        parts.add(pl.DataFrame(rows, schema=_LISTED, orient="row"), by("stem"))
    return parts


def _listed(info: Info) -> tuple[str | None, int | None, int | None, str | None]:
    when, size = _mtime_ns(info), info.get("size")
    told = info.get("ETag") or info.get("etag") or info.get("e_tag")
    tag = str(told).strip('"') if told else None if when is None else f"{size} {when}"
    return info.get("type"), size, when, tag

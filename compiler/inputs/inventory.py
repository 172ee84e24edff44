"""S3 Inventories as they are delivered: a manifest.json that names lists of a bucket's objects, so that nobody asks for them.

CSV lists are gzipped, have no line of names (`fileSchema` has them) and spell keys as URLs do; Parquet lists name their columns
and spell keys as they are. Both are hostile input: they name objects of the one bucket, and files beside the manifest.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_plus

import polars as pl

from javisc.manifests.damage import POLARS_FAULTS, sized
from javisc.manifests.errors import UserError
from javisc.manifests.objects import Info
from javisc.manifests.rows import MAX_FIELD, Faults, open_bytes
from javisc.manifests.urls import is_url

MANIFEST = "manifest.json"
#: A manifest names some hundred bytes for each list of up to a million objects.
MAX_MANIFEST = 64 << 20
_BATCH = 20_000
#: Columns that are taken, as either form spells them without case and underscores.
_TAKEN = ("bucket", "key", "size", "lastmodifieddate", "etag", "islatest", "isdeletemarker")


@dataclass(frozen=True)
class Inventory:
    """What a manifest says. bucket: the listed one. files: its lists (where they are, their MD5)."""

    path: str
    bucket: str
    form: str
    columns: tuple[str, ...]
    files: tuple[tuple[str, str | None], ...]

    def pages(self) -> Iterator[list[tuple[str, Info] | None]]:
        """Objects as `bucket/key` and what the inventory says of them, some thousand at a time; None: no current object.

        Raises UserError where a list cannot be read, or, at the end, where rows cannot be taken.
        """
        faults = Faults(self.path)
        for file, digest in self.files:
            try:
                with open_bytes(file) as stream:
                    if digest is not None and _md5(stream) != digest.lower():
                        raise UserError(f"{file} has not the bytes that {self.path} says: fetch the inventory again")
                    stream.seek(0)
                    yield from self._of(_csv(stream) if self.form == "CSV" else _parquet(file, stream), faults)
            except (OSError, EOFError, ValueError, ImportError, zlib.error, csv.Error, *POLARS_FAULTS) as error:
                raise UserError(f"{file}, a list of {self.path}, cannot be read: {error}") from error
        faults.check()

    def _of(self, rows: Iterator[tuple[Any, ...]], faults: Faults) -> Iterator[list[tuple[str, Info] | None]]:
        first = next(rows, ()) if self.form == "Parquet" else self.columns
        at = {name: number for number, name in enumerate(map(_plain, first)) if name in _TAKEN}
        if first and not {"bucket", "key", "size"} <= set(at):
            raise UserError(f"{self.path}: its lists have no Size: add it to the inventory's optional fields")
        page: list[tuple[str, Info] | None] = []
        for number, row in enumerate(rows, 1):
            try:
                page.append(self._object({name: row[place] for name, place in at.items()}))
            except (IndexError, ValueError, TypeError, OverflowError, UnicodeDecodeError) as error:
                faults.add(number, str(error)[:80])
            if len(page) >= _BATCH:
                yield page
                page = []
        yield page

    def _object(self, row: dict[str, Any]) -> tuple[str, Info] | None:
        """One object. Raises ValueError, TypeError or OverflowError for what is none of this bucket."""
        if _true(row.get("isdeletemarker")) or (row.get("islatest") not in (None, "") and not _true(row["islatest"])):
            return None
        if row["bucket"] != self.bucket:
            raise ValueError(f"bucket {str(row['bucket'])[:40]!r} is not {self.bucket!r}, which the manifest names")
        key = unquote_plus(row["key"], errors="strict") if self.form == "CSV" else row["key"]
        if not isinstance(key, str) or not key:
            raise ValueError("there is no key")
        size, when = int(row["size"] or 0), row.get("lastmodifieddate")
        if not 0 <= size < 1 << 63:
            raise ValueError(f"{size} bytes")
        if isinstance(when, str) and when:
            when = datetime.fromisoformat(when)
        told: Info = {"type": "file", "size": size, "ETag": row.get("etag") or None, "mtime_ns": None}
        if isinstance(when, datetime):
            told["mtime_ns"] = int((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()) * 10**9
        return f"{self.bucket}/{key}", told


def is_inventory(path: str) -> bool:
    """True for a path or URL that an S3 Inventory is given by."""
    return path.rsplit("/", 1)[-1] == MANIFEST


def read_inventory(path: str) -> Inventory:
    """Read a manifest.json. Raises UserError where it is none, or has lists of a form that is not read."""
    try:
        with open_bytes(path) as stream:
            raw = stream.read(MAX_MANIFEST + 1)
        if len(raw) > MAX_MANIFEST:
            raise ValueError(f"it has more than {MAX_MANIFEST} bytes")
        told = json.loads(raw)
        form, bucket = str(told["fileFormat"]), str(told["sourceBucket"])
        schema, files = str(told["fileSchema"]), [(str(each["key"]), each.get("MD5checksum")) for each in told["files"]]
    except (OSError, ValueError, ImportError, RecursionError, KeyError, TypeError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path} is no manifest of an S3 Inventory ({what}): give the one that was delivered"
        ) from error
    if form not in ("CSV", "Parquet"):
        raise UserError(
            f"{path}: its lists are {form[:20]!r}; CSV and Parquet are read: set the inventory to one of them"
        )
    if not bucket or "/" in bucket:
        raise UserError(f"{path}: sourceBucket {bucket[:80]!r} is no bucket")
    columns = tuple(name.strip() for name in schema.split(",")) if form == "CSV" else ()
    where = tuple((_place(path, key), digest if isinstance(digest, str) else None) for key, digest in files)
    return Inventory(path, bucket, form, columns, where)


def _place(manifest: str, key: str) -> str:
    """Where a list lies: below the folder of the inventory, or, of one that was fetched, beside its manifest.

    Raises UserError for a key that leads elsewhere.
    """
    name = key.rsplit("/", 1)[-1]
    if is_url(manifest):
        # BUCKET/…/ID/2026-01-01T01-00Z/manifest.json and BUCKET/…/ID/data/NAME
        home = manifest.rsplit("/", 2)[0]
        inside = home.split("://", 1)[1].partition("/")[2] + "/data/"
        if not name or key != inside + name:
            raise UserError(f"{manifest}: the list {key[:200]!r} does not lie in {home}/data: give what was delivered")
        return f"{home}/data/{name}"
    folder = os.path.dirname(os.path.abspath(manifest))  # noqa: PTH100, PTH120
    if name in ("", ".", "..") or "\0" in name:
        raise UserError(f"{manifest}: {key[:200]!r} names no list")
    places = [Path(folder, name), Path(folder, "data", name), Path(folder).parent / "data" / name]
    found = next((str(place) for place in places if place.is_file()), None)
    if found is None:
        raise UserError(
            f"{manifest}: its list {name[:200]!r} lies neither beside it, in data, nor in ../data: fetch it, too"
        )
    return found


def _csv(stream: BinaryIO) -> Iterator[tuple[str, ...]]:
    with gzip.open(stream) as lines:

        def text() -> Iterator[str]:
            while raw := lines.readline(MAX_FIELD + 1):
                if len(raw) > MAX_FIELD:
                    raise ValueError(f"a line is longer than {MAX_FIELD} bytes")
                yield raw.decode()

        for row in csv.reader(text(), strict=True):
            if row:
                yield tuple(row)


def _parquet(file: str, stream: BinaryIO) -> Iterator[tuple[Any, ...]]:
    """The names of the columns, then the rows."""
    content = stream.read() if is_url(file) else None
    sized(file, content)
    frame = pl.scan_parquet(content if content is not None else file, glob=False)
    names = [name for name in frame.collect_schema().names() if _plain(name) in _TAKEN]
    yield tuple(names)
    for batch in frame.select(names).collect_batches(chunk_size=_BATCH, maintain_order=True):
        yield from batch.iter_rows()


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


def _true(value: Any) -> bool:
    return str(value).lower() == "true"


def _md5(stream: BinaryIO) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    while piece := stream.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()

"""Publishing files and folders: complete and flushed under their final name, or absent."""

from __future__ import annotations

import ctypes
import glob
import hashlib
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

#: Flushes that wait side by side: the file system does those that come together in one go.
_FLUSHES = 16


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it and rename it to `path`, on error remove it.

    The rename is atomic and the folder is flushed too, so that after a crash `path` is whole or absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        if error.filename == str(temporary):
            error.filename = str(path)  # whose name the user gave
        raise
    finally:
        temporary.unlink(missing_ok=True)


def publish_many(files: Mapping[Path, bytes | memoryview]) -> None:
    """Publish many small files of one folder or several, each whole or absent, flushed side by side. Raises OSError.

    They appear when all of them are on the disk; a crash in between leaves some of them, which says nothing: what counts as
    done must be published afterwards.
    """
    temporary = {path: _beside(path) for path in files}
    folders = {path.parent for path in files}
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            temporary[path].write_bytes(content)
        with ThreadPoolExecutor(_FLUSHES) as pool:
            list(pool.map(flush, temporary.values()))
        for path, made in temporary.items():
            made.replace(path)
        for folder in folders:
            flush(folder)
    finally:
        for made in temporary.values():
            made.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A temporary name: several machines may write here, and process numbers are not theirs alone."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{uuid.uuid4().hex[:12]}.tmp")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, hex. Raises OSError."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Ask the system to write a file's or folder's content to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def published_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success flush it and let it take the place of `path`, on error remove it.

    A folder that was there before is exchanged in one step where the file system can (Linux, on local file systems). Elsewhere it
    is moved to `kept_folder(path)` first: for that moment, and after a crash in it, the old one is whole under that name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                flush(Path(folder, name))
            flush(Path(folder))
        if not path.exists():
            temporary.rename(path)
        elif not _exchanged(temporary, path):
            shutil.rmtree(kept_folder(path), ignore_errors=True)
            path.rename(kept_folder(path))
            temporary.rename(path)
        flush(path.parent)
        shutil.rmtree(kept_folder(path), ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def kept_folder(path: Path) -> Path:
    """Where the old content of a published folder lies while it cannot be exchanged in one step."""
    return path.with_name(f".{path.name}.old")


def recover_folder(path: Path) -> None:
    """Mend what a kill left of `published_folder(path)`: the old folder takes its name again, what is half written goes."""
    if not path.exists() and kept_folder(path).exists():
        kept_folder(path).rename(path)
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        shutil.rmtree(temporary, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two folders' names in one step: renameat2(2) with RENAME_EXCHANGE. False where there is no such thing."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0

"""Publishing files: complete and flushed under their final name, or absent."""

from __future__ import annotations

import hashlib
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def published(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it and rename it to `path`, on error remove it.

    The rename is atomic and the folder is flushed too, so that after a crash `path` is whole or absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several machines may write here, and process numbers are not theirs alone.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}-{uuid.uuid4().hex[:12]}.tmp")
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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

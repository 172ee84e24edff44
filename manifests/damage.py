"""What polars raises at a damaged table, and what a user is told of it."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import polars as pl

from javisc.manifests.errors import UserError
from javisc.manifests.parquet_sizes import check_sizes

#: A panic of polars' Rust side is no Exception, and some damage in a parquet file brings it: who reads a table catches both.
POLARS_FAULTS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


#: What the system says of a disk or a quota that is full, as polars repeats it.
_FULL = ("No space left on device", "Disk quota exceeded", "File too large")


def damaged(error: BaseException) -> UserError | None:
    """What to say of an error that polars raised in the middle of a parquet file; None if the file is not at fault."""
    if any(words in str(error) for words in _FULL):
        return UserError(
            f"no room is left ({str(error).splitlines()[0]}): make some where the output and temporary files lie "
            f"({tempfile.gettempdir()}, or TMPDIR), and run the same command again"
        )
    if isinstance(error, pl.exceptions.PanicException):
        what = f"polars cannot read it: {error}"
    elif isinstance(error, pl.exceptions.ComputeError) and "parquet" in str(error).lower():
        what = str(error).splitlines()[0]
    else:
        return None
    return UserError(f"a table is damaged ({what}): get it again, or build the dataset again")


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Where polars writes a file: its faults become the OSError that the file system has for writing, if it has one.

    Of a full disk polars may say no more than that a thrift transport failed, as it does of damage in what it reads.
    """
    try:
        yield
    except POLARS_FAULTS as error:
        try:
            with path.open("ab") as stream:
                stream.write(bytes(1 << 16))
                os.fsync(stream.fileno())
        except OSError as why:
            raise why from error
        raise


def sized(path: str, content: bytes | Path | None = None) -> None:
    """Look at a parquet file's sizes before polars does. content: of what is no local file, its bytes or a copy of it.

    Raises UserError if they cannot be true, OSError if the file cannot be read.
    """
    try:
        if isinstance(content, bytes):
            check_sizes(io.BytesIO(content))
            return
        local = content or Path(path)
        found = local.stat()
        _looked_at(local, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
    except ValueError as error:
        raise UserError(f"{path} cannot be read as parquet: {error}") from None


@lru_cache(64)
def _looked_at(path: Path, *_: int) -> None:
    """Look at a file once as long as it is the same: millions of rows have thousands of pages."""
    with path.open("rb") as stream:
        check_sizes(stream)

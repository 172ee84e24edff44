"""What polars raises at a damaged table, and what a user is told of it."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path

import polars as pl

from javisc.manifests.errors import UserError
from javisc.manifests.parquet_sizes import check_sizes

#: A panic of polars' Rust side is no Exception, and some damage in a parquet file brings it: who reads a table catches both.
POLARS_FAULTS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def damaged(error: BaseException) -> UserError | None:
    """What to say of an error that polars raised in the middle of a parquet file; None if the file is not at fault."""
    if isinstance(error, pl.exceptions.PanicException):
        what = f"polars cannot read it: {error}"
    elif isinstance(error, pl.exceptions.ComputeError) and "parquet" in str(error).lower():
        what = str(error).splitlines()[0]
    else:
        return None
    return UserError(f"a table is damaged ({what}): get it again, or build the dataset again")


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

"""Paths that may be URLs: telling them apart, joining them, and the file system behind one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, cast

from javisc.manifests.extras import need_driver


def is_url(path: str) -> bool:
    """True for what fsspec opens (`s3://…`), false for a local path."""
    return "://" in path


def plain(path: str) -> str:
    """A path without `file://`: what lies on this machine is written through the system, not through a driver."""
    for scheme in ("file://localhost/", "file:///", "local:///"):
        if path.startswith(scheme):
            return "/" + path[len(scheme) :]
    return path


def join(base: str, *parts: str) -> str:
    """Join a folder or URL and relative parts."""
    return "/".join([base.rstrip("/") or "/", *parts]) if is_url(base) else str(Path(base, *parts))


def opened(path: str) -> BinaryIO:
    """A file, local or behind a URL, opened for reading.

    Raises OSError; ValueError or ImportError for a URL that nothing opens; UserError for a missing extra, which it names.
    """
    if not is_url(path) and ("::" not in path or path.startswith("/")):
        return Path(path).open("rb")
    need_driver(path)
    import fsspec  # asyncio comes with it: what reads local files alone starts without both

    return cast(BinaryIO, fsspec.open(path, "rb").open())


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it. No listings are cached: other processes write to it too.

    Raises ValueError or ImportError; UserError, which names the extra, if its driver is not installed.
    """
    need_driver(url)
    import fsspec

    fs, inside = fsspec.core.url_to_fs(url, use_listings_cache=False)
    return fs, str(inside)

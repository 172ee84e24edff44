"""Sources as workers meet them: fetched from a URL, and, when one is refused, asked whether it or its storage is at fault."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from javisc.compiler.reasons import Rejected
from javisc.compiler.run.pool import Call
from javisc.manifests.environment import gone as folder_gone
from javisc.manifests.environment import is_away, unavailable
from javisc.manifests.urls import filesystem, is_url

#: Refusals that do not come from the file's bytes.
_NOT_READ = frozenset({"filtered", "no_caption", "duplicate"})
_COPY = 1 << 20
#: Fetching is slower than this (bytes a second) only where storage hangs.
FETCH_RATE = 50_000.0
FETCH_START = 300.0


def fetching(path: str, source_bytes: int | None, scratch: str, key: str) -> Call | None:
    """The call that copies a URL to `scratch` before it is compiled; None for a local path. It says where: `target`."""
    if not is_url(path):
        return None
    target = os.path.join(scratch, f"{key}.source{os.path.splitext(path)[1][:8]}")  # noqa: PTH118, PTH122
    limit = FETCH_START + (source_bytes or 0) / FETCH_RATE
    return Call(None, f"{__name__}:fetch", {"path": path, "target": target}, limit)


def fetch(path: str, target: str) -> None:
    """In a worker: copy a URL to a local file, complete or not at all. One attempt.

    Raises Rejected where the object is not there, Unavailable where the store does not answer or cuts what it sends.
    """
    part = Path(f"{target}.part")
    try:
        fs, inside = filesystem(path)
    except (ValueError, ImportError) as error:
        raise Rejected("unreadable", str(error)) from error
    try:
        size = fs.info(inside).get("size")
        fs.get_file(inside, str(part))
    except Exception as error:
        # Drivers raise their libraries' own classes: what is no answer is a failure of the store.
        if isinstance(error, FileNotFoundError):
            if _prefix_gone(fs, inside):
                raise unavailable(path, error) from error
            raise Rejected("vanished", str(error)) from error
        if is_away(error, remote=True):
            raise unavailable(path, error) from error
        raise
    got = part.stat().st_size
    if size is not None and got != size:
        raise unavailable(path, OSError(f"{got} of {size} bytes came"))
    part.replace(target)


def _prefix_gone(fs: Any, inside: str) -> bool:
    """True if nothing is left beside an object that is not there: the bucket or prefix went away, not the object alone."""
    parent = inside.rstrip("/").rpartition("/")[0]
    if not parent or "http" in str(fs.protocol):  # a web server lists nothing: its 404 is all there is to know
        return False
    try:
        return not fs.ls(parent, detail=False)
    except FileNotFoundError:
        return True
    except Exception as error:
        if is_away(error, remote=True):
            raise unavailable(parent, error) from error
        raise


@contextmanager
def local_source(path: str, raw_path: str | None, folder: Path, fetched: str | None = None) -> Iterator[Path]:
    """The source as a local path: `fetched` for a URL, by a link of a plain name for one whose name is no text.

    Where the block refuses the source, or fails, the source is read to its end: if it cannot be read because its storage is away,
    Unavailable is raised instead, and nothing is held against the file.
    """
    if is_url(path):
        assert fetched is not None, path
        yield Path(fetched)
        return
    source = Path(path)
    if raw_path is not None:
        source = folder / "source"
        source.symlink_to(os.fsdecode(bytes.fromhex(raw_path)))
    before = _status(source)
    try:
        yield source
    except Exception as error:
        if not (isinstance(error, Rejected) and error.reason in _NOT_READ):
            judge(source, before, error)
        raise


def judge(source: Path, before: os.stat_result | None, error: Exception) -> None:
    """Return where a source's failure is its own. Raises Unavailable where its storage failed, Rejected for another reason.

    before: the source's status when its compilation began, None where it could not be had.
    """
    try:
        now = source.stat()
        if not stat.S_ISREG(now.st_mode):
            return
        with source.open("rb") as stream:
            while stream.read(_COPY):
                pass
    except FileNotFoundError as missing:
        if folder_gone(os.path.realpath(source)):
            raise unavailable(str(source), missing) from error
        if not source.is_symlink():
            raise Rejected("vanished", str(missing)) from error
    except PermissionError as refused:
        folder = os.path.dirname(os.path.realpath(source))  # noqa: PTH120
        if not os.access(folder, os.R_OK | os.X_OK):
            raise unavailable(str(source), refused) from error
        raise Rejected("unreadable", str(refused)) from error
    except OSError as failed:
        if is_away(failed, remote=False):
            raise unavailable(str(source), failed) from error
    else:
        flickered = before is None or _identity(before) == _identity(now)
        if isinstance(error, Rejected) and error.reason in ("vanished", "unreadable") and flickered:
            raise unavailable(str(source), OSError(f"could not be read and now can ({error.message})")) from error


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino

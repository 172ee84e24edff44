"""Sources as workers meet them: fetched from a URL, and, when one is refused, asked whether it or its storage is at fault."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from javisc.compiler.reasons import Rejected
from javisc.compiler.run.calls import Call
from javisc.compiler.run.copies import alone
from javisc.manifests.environment import gone as folder_gone
from javisc.manifests.environment import is_away, unavailable
from javisc.manifests.urls import filesystem, is_url

#: Refusals that do not come from the file's bytes.
_NOT_READ = frozenset({"filtered", "no_caption", "duplicate"})
_COPY = 1 << 20
#: Fetching is slower than this (bytes a second) only where storage hangs.
FETCH_RATE = 50_000.0
FETCH_START = 300.0


def fetching(*sources: tuple[str, str | None, int | None], scratch: str, key: str) -> Call | None:
    """The call that copies URLs to `scratch` before they are compiled; None where there is none.

    sources: (a name, a URL or local path or None, its size). `copies` says where they go.
    """
    wanted = [
        (name, path, os.path.join(scratch, f"{key}.{name}{os.path.splitext(path)[1][:8]}"), size)  # noqa: PTH118, PTH122
        for name, path, size in sources
        if path is not None and is_url(path)
    ]
    limit = FETCH_START + sum(size or 0 for _, _, size in sources) / FETCH_RATE
    return Call(None, f"{__name__}:fetch_all", {"wanted": wanted}, limit) if wanted else None


def copies(call: Call | None) -> dict[str, str]:
    """Name → local copy of what a call of `fetching` fetches."""
    return {} if call is None else {name: target for name, _, target, _ in call.arguments["wanted"]}


def fetch_all(wanted: list[tuple[str, str, str, int | None]]) -> None:
    """In a worker: `fetch` each (name, URL, local file, size) that is not there yet."""
    for _, path, target, size in wanted:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with alone(target):
            if not Path(target).exists():
                fetch(path, target, size)


def fetch(path: str, target: str, planned: int | None = None) -> None:
    """In a worker: copy a URL to a local file, complete or not at all. One attempt, and one request where it is as `planned`.

    Raises Rejected where the object is not there, Unavailable where the store does not answer or cuts what it sends.
    """
    part = Path(f"{target}.part")
    try:
        fs, inside = filesystem(path)
    except (ValueError, ImportError) as error:
        raise Rejected("unreadable", str(error)) from error
    try:
        fs.get_file(inside, str(part))
        got = part.stat().st_size
        # Another size than the scan saw is a cut answer, or another object by now: the store knows.
        size = planned if got == planned else fs.info(inside).get("size")
    except Exception as error:
        part.unlink(missing_ok=True)
        # Drivers raise their libraries' own classes: what is no answer is a failure of the store.
        if isinstance(error, FileNotFoundError):
            if _prefix_gone(fs, inside):
                raise unavailable(path, error) from error
            raise Rejected("vanished", str(error)) from error
        if is_away(error, remote=True):
            raise unavailable(path, error) from error
        raise
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
    """One source as a local path, see local_sources."""
    with local_sources((path, raw_path, fetched), folder=folder) as sources:
        yield sources[0]


@contextmanager
def local_sources(*given: tuple[str, str | None, str | None], folder: Path) -> Iterator[list[Path]]:
    """Sources (path, its bytes as hex where it is no text, a URL's local copy) as local paths: by a link where a name is no text.

    Where the block refuses them, or fails, they are read to their end: if one cannot be read because its storage is away,
    Unavailable is raised instead, and nothing is held against the file.
    """
    sources: list[Path] = []
    for number, (path, raw_path, fetched) in enumerate(given):
        if is_url(path):
            assert fetched is not None, path
            sources.append(Path(fetched))
        elif raw_path is not None:
            sources.append(folder / f"source{number}")
            sources[-1].symlink_to(os.fsdecode(bytes.fromhex(raw_path)))
        else:
            sources.append(Path(path))
    ours = [source for source, (path, _, _) in zip(sources, given, strict=True) if not is_url(path)]
    before = {source: _status(source) for source in ours}
    try:
        yield sources
    except Exception as error:
        if ours and not (isinstance(error, Rejected) and error.reason in _NOT_READ):
            judge(before, error)
        raise


def judge(before: dict[Path, os.stat_result | None], error: Exception) -> None:
    """Return where the failure is the sources' own. Raises Unavailable where their storage failed, Rejected for another reason.

    before: each source's status when its compilation began, None where it could not be had.
    """
    unchanged = [_readable(source, status, error) for source, status in before.items()]
    if isinstance(error, Rejected) and error.reason in ("vanished", "unreadable") and all(unchanged):
        raise unavailable(
            str(next(iter(before))), OSError(f"could not be read and now can ({error.message})")
        ) from error


def _readable(source: Path, before: os.stat_result | None, error: Exception) -> bool:
    """True if the source can be read to its end and is what it was; see judge."""
    try:
        now = source.stat()
        if not stat.S_ISREG(now.st_mode):
            return False
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
        return before is None or _identity(before) == _identity(now)
    return False


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino

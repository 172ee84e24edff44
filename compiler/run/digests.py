"""What a sample was made of: the digests of its sources, and that they stayed the same while they were read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from javisc.compiler.reasons import Rejected
from javisc.manifests.files import sha256_of

T = TypeVar("T")


def digested(sources: Mapping[str, Path], work: Callable[[], T]) -> tuple[T, dict[str, Any]]:
    """Do `work` on the sources (name → file); return what it gives, and each source's digest and the sizes.

    The names are the manifest's columns of digests. Raises Rejected (`vanished`) where a source changed or went meanwhile,
    whatever else came of it.
    """
    before = {name: _state(path) for name, path in sources.items()}
    try:
        made = work()
        digests = {name: _digest(path) for name, path in sources.items()}
    except Rejected as error:
        if changed := _changed(sources, before):
            raise Rejected("vanished", f"{changed} changed while it was read") from error
        raise
    if changed := _changed(sources, before):
        raise Rejected("vanished", f"{changed} changed while it was read")
    return made, digests


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of change; None where they cannot be had, which the work itself will say better."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _changed(sources: Mapping[str, Path], before: Mapping[str, tuple[int, int] | None]) -> str:
    names = (path.name for name, path in sources.items() if before[name] is not None and _state(path) != before[name])
    return ", ".join(names)


def _digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except FileNotFoundError as error:
        raise Rejected("vanished", str(error)) from error
    except OSError as error:
        raise Rejected("unreadable", str(error)) from error

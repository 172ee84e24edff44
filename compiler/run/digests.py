"""What a sample was made of: the digests of its sources, and that they stayed the same while they were read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from javisc.compiler.reasons import Rejected
from javisc.compiler.run.calls import Call
from javisc.compiler.run.pool import Pool
from javisc.manifests.environment import ask_local
from javisc.manifests.files import sha256_of

T = TypeVar("T")
#: A file that is read slower than this (bytes a second) hangs.
_RATE, _START = 1e6, 300.0
#: SHA-256 of a file whose size and time of change (nanoseconds) were these.
Known: TypeAlias = tuple[str, int, int]


def known_of(sources: list[tuple[str, str]], known: dict[str, Known]) -> dict[str, Known]:
    """In a worker: what is to be known of files (name, path; bytes that are no text as surrogates), by name.

    known: what need not be read again, where the file is what it was. One that cannot be read, or changes meanwhile, is left
    out: the work itself says better what is wrong.
    """
    found: dict[str, Known] = {}
    for name, path in sources:
        before = _state(Path(path))
        try:
            digest = _known(known, name, before) or sha256_of(Path(path))
        except (OSError, ValueError):
            continue
        if before is not None and before == _state(Path(path)):
            found[name] = (digest, *before)
    return found


def digested(
    sources: Mapping[str, Path], work: Callable[[], T], known: Mapping[str, Known] | None = None
) -> tuple[T, dict[str, Any]]:
    """Do `work` on the sources (name → file); return what it gives, and each source's digest and the sizes.

    The names are the manifest's columns of digests. known: those that need not be read again, as long as they are what they
    were. Raises Rejected (`vanished`) where a source changed or went meanwhile,
    whatever else came of it.
    """
    before = {name: _state(path) for name, path in sources.items()}
    try:
        made = work()
        found = {name: _known(known, name, before[name]) or _digest(path) for name, path in sources.items()}
    except Rejected as error:
        if changed := _changed(sources, before):
            raise Rejected("vanished", f"{changed} changed while it was read") from error
        raise
    if changed := _changed(sources, before):
        raise Rejected("vanished", f"{changed} changed while it was read")
    return made, found


def _known(known: Mapping[str, Known] | None, name: str, state: tuple[int, int] | None) -> str | None:
    said = (known or {}).get(name)
    return said[0] if said is not None and state is not None and tuple(said[1:]) == state else None


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


def digests(paths: Sequence[Path], workers: int, scratch: Path) -> list[str | None]:
    """The SHA-256 of each file, made by supervised workers; None for what cannot be read.

    scratch: a folder for their logs. Raises Unavailable where storage does not answer.
    """
    found: list[str | None] = [None] * len(paths)
    with Pool(max(1, min(workers, len(paths))), scratch, (__name__,)) as pool:
        for number, path in enumerate(paths):
            size = (_state(path) or (0, 0))[0]
            arguments = {"path": os.fsencode(path).hex()}
            pool.submit(Call(number, f"{__name__}:digest_of", arguments, _START + size / _RATE, short=True))
        while pool.busy:
            for outcome in pool.wait():
                outcome.stop_if_unavailable()
                found[outcome.call.tag] = outcome.value if outcome.error is None else None
    return found


def digest_of(path: str) -> str | None:
    """In a worker: the SHA-256 of a file, whose path comes as hex digits of its bytes; None if it cannot be read."""
    local = Path(os.fsdecode(bytes.fromhex(path)))
    try:
        return ask_local(lambda: sha256_of(local), str(local))
    except OSError:
        return None

"""Folders on a node for units that run there: their own, and one that those of a build share. They go with their processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

_PREFIX = "javisc-unit-"
_ALIVE = ".alive"
#: In the name of a folder that several processes share, where others have a process's number.
_SHARED = "shared"


def own_folder(scratch: str | None) -> Path:
    """A name below `scratch`, or the node's temporary folder, that is this process's own; what dead ones left goes."""
    place = Path(scratch or tempfile.gettempdir())
    _sweep(place)
    return place / f"{_PREFIX}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def shared_folder(scratch: str | None, run: str) -> Path:
    """The folder of a build on this node, which is there until the last process that asked for it has ended. Raises OSError."""
    folder = Path(scratch or tempfile.gettempdir(), f"{_PREFIX}{socket.gethostname()}-{_SHARED}-{run}")
    if folder in _SHARING and folder.exists():
        return folder
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the last one before us removed it meanwhile
            descriptor = os.open(folder / _ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            _lock(descriptor, fcntl.LOCK_SH)
            if _same(descriptor, folder):
                break
            os.close(descriptor)
    _SHARING[folder] = (descriptor, _remover(folder, shared=True))
    return folder


def remove_when_gone(folder: Path) -> None:
    """Have a process outside this one's family remove `folder` when this process ends, however it is killed."""
    _KEPT.append(_remover(folder, shared=False))
    del _KEPT[:-2]


#: Write ends of the pipes of the newest units' removers; what is dropped from here is closed, and its folder is gone by then.
_KEPT: list[Any] = []
#: Shared folders of this process: a descriptor whose lock says that it lives, and the write end of its remover's pipe.
_SHARING: dict[Path, tuple[int, Any]] = {}


def _sweep(place: Path) -> None:
    """Remove what units whose process is gone left on this node."""
    own = f"{_PREFIX}{socket.gethostname()}-"
    for stale in place.glob(f"{own}*") if place.is_dir() else ():
        owner = stale.name.removeprefix(own).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(stale, ignore_errors=True)
        elif owner == _SHARED:
            _remove_abandoned(stale)


def _remove_abandoned(folder: Path) -> None:
    """Remove a folder that no process shares any more: at once, by its name, so that nobody begins to use what is going."""
    try:
        descriptor = os.open(folder / _ALIVE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) and _same(descriptor, folder):
            going = folder.with_name(f"{_PREFIX}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
            folder.rename(going)
            shutil.rmtree(going, ignore_errors=True)
    except OSError:  # somebody else's, or gone
        return
    finally:
        os.close(descriptor)


def _same(descriptor: int, folder: Path) -> bool:
    """True if what is locked is what lies in the folder now."""
    try:
        return os.path.samestat(os.fstat(descriptor), (folder / _ALIVE).stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, kind: int) -> bool:
    """False if it is locked otherwise, or cannot be."""
    try:
        fcntl.flock(descriptor, kind)
    except OSError:
        return False
    return True


def _remover(folder: Path, *, shared: bool) -> Any:
    """Start the process that removes a folder, a shared one when its last process has ended; the write end of its pipe.

    It waits for the lock: of a process that is killed, the kernel may close the pipe before it lets the lock go.
    """
    code = (
        "import fcntl,os,shutil,sys\n"
        "os.setsid()\n"  # before the fork, whose end is waited for: a whole family is killed at once
        "if os.fork(): os._exit(0)\n"
        "sys.stdin.buffer.read()\n"
        "folder = sys.argv[1]\n"
        "if len(sys.argv) > 2:\n"
        "    try:\n"
        "        own = os.open(sys.argv[2], os.O_RDWR)\n"
        "        fcntl.flock(own, fcntl.LOCK_EX)\n"
        "        if not os.path.samestat(os.fstat(own), os.stat(sys.argv[2])): os._exit(0)\n"
        "        folder = f'{sys.argv[3]}{os.getpid()}-going'\n"  # at once: nobody begins to use what is going
        "        os.rename(sys.argv[1], folder)\n"
        "    except OSError: os._exit(0)\n"
        "shutil.rmtree(folder, ignore_errors=True)\n"
    )
    # The pipe stays open in this process alone: its end is the process's end.
    more = [str(folder / _ALIVE), str(folder.with_name(f"{_PREFIX}{socket.gethostname()}-"))] if shared else []
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code, str(folder), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
    )
    process.wait()
    return process.stdin

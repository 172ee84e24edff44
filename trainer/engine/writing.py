"""A run's folder: one process at a time writes there; a full disk, a quota, rights, a read-only mount are told in one line."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from javisc.compiler.store.lock import NO_LOCKS
from javisc.manifests.errors import UserError

#: What only writing brings, wherever it is.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
#: What a path that is named may bring, too.
_REFUSED = frozenset({errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG})


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """While open, an error that says that the run's folder cannot be written becomes a UserError; others pass."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        if (said := _unwritable(error, folder)) is None:
            raise
        raise UserError(
            f"{folder} cannot be written: {said}; what was published there is whole: mend that (space, rights, mount; "
            "run.keep_checkpoints keeps fewer) and go on with --resume, or give another --run",
            exit_code=1,
        ) from error


@contextmanager
def alone(folder: Path, path: Path) -> Iterator[None]:
    """While open, no other process opens it for the run's folder: two would remove each other's checkpoints half-written.

    path: the lock's file, in a folder that is there. The kernel's lock goes with its process; where the file system has none,
    nothing is held. Raises UserError if another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            raise UserError(
                f"{folder} is being trained in by {holder}: wait for it, stop it, or give another --run"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _unwritable(error: BaseException, folder: Path) -> str | None:
    """What the system says of the folder, None if it is not at fault."""
    if isinstance(error, CheckpointException):
        found = (_unwritable(failure[0], folder) for failure in error.failures.values())
        return next((said for said in found if said is not None), None)
    if isinstance(error, OSError):
        named = error.filename is not None and Path(os.fsdecode(error.filename)).absolute().is_relative_to(
            folder.absolute()
        )
        at_fault = error.errno in _FULL if error.filename is None else named and error.errno in _FULL | _REFUSED
        return (error.strerror or str(error)) if at_fault else None
    match = re.search(r"\(os error (\d+)\)", str(error))  # libraries in Rust tell of it in words
    return os.strerror(int(match[1])) if match and int(match[1]) in _FULL else None

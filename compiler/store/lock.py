"""One writer per dataset: a lock that a dead process cannot keep, shared by builds of disjoint shard ranges."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store, unwritable
from javisc.compiler.store.lease import leased
from javisc.manifests.errors import UserError

#: What a file system without locks says.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Held(Protocol):
    """A lock that is held. alone: nobody else has one, so what others left behind may be removed. note: what to tell the user."""

    alone: bool
    note: str | None

    def check(self) -> None:
        """Raise UserError if another build has taken the lock over."""


class _Local:
    def __init__(self, alone: bool, note: str | None = None) -> None:
        self.alone, self.note = alone, note

    def check(self) -> None:
        """A lock of the kernel's is ours until our end."""


@contextmanager
def locked(store: Store, *, shared: bool = False, name: str = "lock", wait: bool = False) -> Iterator[Held]:
    """Hold the dataset's lock. shared: several holders at once, but no exclusive one. wait: until it is free.

    A local lock is the kernel's (flock): it goes with its process. Where the file system has none, nothing is held and the note
    says so. In an object store it is a small object with a lease (see store.lease). Raises UserError if another build holds it.
    """
    if store.remote:
        with leased(store, name, shared=shared, wait=wait) as held:
            yield held
        return
    path = Path(store.root, BUILD, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield _flock(store, path, descriptor, shared, wait)
    finally:
        os.close(descriptor)


def _flock(store: Store, path: Path, descriptor: int, shared: bool, wait: bool) -> Held:
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
        raise UserError(
            f"{store.root} is being built by {holder}: wait for it or stop it; "
            "parts of one build can run side by side with --part"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise unwritable(path, error) from error
        return _Local(
            False,
            f"{store.root} lies on a file system without locks ({error.strerror}): see that no other build writes there; what "
            "killed builds left behind is not removed",
        )
    if not shared:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return _Local(not shared)

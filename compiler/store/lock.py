"""One writer per dataset: a lock that a dead process cannot keep, shared by builds of disjoint shard ranges."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store, unwritable
from javisc.manifests.errors import UserError

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def locked(store: Store, *, shared: bool = False, name: str = "lock", wait: bool = False) -> Iterator[None]:
    """Hold the dataset's lock. shared: several holders at once, but no exclusive one. wait: until it is free.

    A local lock is the kernel's (flock): it goes with its process. In an object store it is a small object that names its
    holder; one whose process on this machine is dead is taken over. Raises UserError if another build holds it.
    """
    if store.remote:
        with _remote(store, name, shared or wait):
            yield
        return
    path = Path(store.root, BUILD, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise unwritable(path, error) from error
    try:
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
            if error.errno not in _NO_LOCKS:  # some network file systems have no locks: nothing to hold then
                raise unwritable(path, error) from error
        if not shared:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _remote(store: Store, name: str, shared: bool) -> Iterator[None]:
    if shared:  # object stores have no locks; ranges are disjoint and publishing is atomic, so sharing needs none
        yield
        return
    where = (BUILD, f"{name}.json")
    holder = {"pid": os.getpid(), "host": socket.gethostname()}
    if store.exists(*where):
        other = json.loads(store.read(*where))
        if other["host"] != holder["host"] or alive(other["pid"]):
            raise UserError(
                f"{store.root} is being built by process {other['pid']} on {other['host']}: wait for it; "
                f"if it is dead, delete {store.path(*where)}"
            )
    store.write(json.dumps(holder).encode(), *where)
    try:
        yield
    finally:
        store.remove(*where)


def alive(pid: int) -> bool:
    """True if a process of this number runs on this machine."""
    if pid == os.getpid():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""Locks in object stores: numbered small objects, each written only where there is none, renewed while their holder lives.

The lock NAME is the object of the highest number, .build/NAME-000007.json. It is free if it says `released`; dead if its holder
is a dead process of this machine, or was not renewed for LEASE seconds. To take it is to create the next number, which only one
can (`mode="create"`: a conditional write). The highest is never removed, so no late-comer finds a number free that was used.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store
from javisc.manifests.environment import Unavailable
from javisc.manifests.errors import UserError

#: Seconds between renewals, and those after which a lock that was not renewed is dead.
BEAT, LEASE = 15.0, 60.0


class Lease:
    """A lock of an object store that is held; a thread renews it. See store.lock.Held."""

    note: str | None = None

    def __init__(self, store: Store, name: str, number: int, alone: bool) -> None:
        self.store, self.name, self.number, self.alone = store, name, number, alone
        self.holder = {**who(), "id": uuid.uuid4().hex}
        self.lost: str | None = None
        self.beats = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._renew, name="javisc-lease", daemon=True)

    def content(self, *, released: bool = False) -> bytes:
        told = {**self.holder, "beat": self.beats, "renewed": time.time(), "released": released}
        return json.dumps(told, sort_keys=True).encode()

    def check(self) -> None:
        """Raise UserError if another build has taken the lock over, as after a long silence of this machine."""
        if self.lost is not None:
            raise UserError(
                f"{self.store.root}: this build was silent for so long that {self.lost} took its lock over: it stops; "
                "what it published stays",
                exit_code=1,
            )

    def _renew(self) -> None:
        while not self.over.wait(BEAT):
            try:
                if above := [number for number in _numbers(self.store, self.name) if number > self.number]:
                    other = _read(self.store, self.name, max(above))
                    self.lost = _shown(other) if other else "another build"
                    return
                self.beats += 1
                self.store.write(self.content(), BUILD, _file(self.name, self.number))
            except Unavailable:  # a store that does not answer now may at the next beat
                continue

    def release(self) -> None:
        """Let the next one have it."""
        self.over.set()
        self.thread.join(timeout=BEAT)
        if self.lost is None:
            self.store.write(self.content(released=True), BUILD, _file(self.name, self.number))


@contextmanager
def leased(store: Store, name: str, *, shared: bool, wait: bool) -> Iterator[Lease]:
    """Hold a lock of an object store. shared: hold none, but see that nobody holds it alone: ranges are disjoint.

    wait: until it is free. Raises UserError if another build holds it.
    """
    if shared:
        numbers = _numbers(store, name)
        if numbers and (other := _holder(store, name, max(numbers))):
            raise _taken(store, other)
        yield Lease(store, name, 0, alone=False)
        return
    while True:
        lease, other = _take(store, name)
        if lease is not None:
            break
        if not wait:
            raise _taken(store, other)
        time.sleep(1.0)
    lease.thread.start()
    try:
        yield lease
    finally:
        lease.release()


def _take(store: Store, name: str) -> tuple[Lease | None, dict[str, Any] | None]:
    """Try once: the lease, or who has it."""
    numbers = _numbers(store, name)
    top = max(numbers, default=0)
    if top and (other := _holder(store, name, top)):
        return None, other
    lease = Lease(store, name, top + 1, alone=True)
    where = _file(name, lease.number)
    store.create(lease.content(), BUILD, where)
    found = _read(store, name, lease.number)
    # An attempt whose answer was lost may have been obeyed: what counts is whose name stands there.
    if not found or found.get("id") != lease.holder["id"]:
        return None, found
    if any(number > lease.number for number in _numbers(store, name)):  # a late-comer: the numbers went on meanwhile
        store.remove(BUILD, where)
        return None, None
    for number in numbers:
        store.remove(BUILD, _file(name, number))
    return lease, None


def _holder(store: Store, name: str, number: int) -> dict[str, Any] | None:
    """Who holds the lock of a number; None if it is free or dead."""
    other = _read(store, name, number)
    if other is None or other.get("released"):
        return None
    if other.get("space") is not None and other["space"] == space():
        return other if alive(int(other.get("pid") or 0)) else None
    if time.time() - float(other.get("renewed") or 0.0) < LEASE:
        return other
    # Two machines' clocks may differ by more than a lease: it is dead only if nothing renews it now.
    time.sleep(2 * BEAT)
    later = _read(store, name, number)
    return later if later and later.get("beat") != other.get("beat") and not later.get("released") else None


def _numbers(store: Store, name: str) -> list[int]:
    pattern = re.compile(re.escape(name) + r"-(\d{6,12})\.json")
    return sorted(int(match[1]) for found in store.names(BUILD) if (match := pattern.fullmatch(found)))


def _read(store: Store, name: str, number: int) -> dict[str, Any] | None:
    try:
        found = json.loads(store.read(BUILD, _file(name, number)))
    except FileNotFoundError:
        return None
    except ValueError:  # not one of ours: nobody can be asked whether it lives
        return {}
    return found if isinstance(found, dict) else {}


def _file(name: str, number: int) -> str:
    return f"{name}-{number:06d}.json"


def _taken(store: Store, other: dict[str, Any] | None) -> UserError:
    return UserError(
        f"{store.root} is being built by {_shown(other or {})}: wait for it or stop it (its lock ends {LEASE:.0f} s after it); "
        "parts of one build can run side by side with --part"
    )


def _shown(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']}" if "pid" in holder and "host" in holder else "another process"


def who() -> dict[str, Any]:
    """This process as others can know it: pid, host and space."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "space": space()}


def space() -> str | None:
    """Where a process number means something: this start of this machine, and the namespace in it. None if it cannot be told."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as stream:  # noqa: PTH123
            return f"{stream.read().strip()} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115
    except OSError:
        return None


def alive(pid: int) -> bool:
    """True if a process of this number runs on this machine."""
    if pid == os.getpid():
        return True
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

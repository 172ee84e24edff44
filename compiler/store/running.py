"""Who builds now: a small file for each build or part of one, renewed while its process lives; `javisc status` reads them."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store
from javisc.compiler.store.lease import BEAT, LEASE, alive, space, who
from javisc.manifests.environment import Unavailable
from javisc.manifests.errors import UserError

FOLDER = (BUILD, "running")


@dataclass(frozen=True)
class Builder:
    """A build that runs. what: which shards it makes, in words. part: (i, n) of `--part`. since, seen: seconds since 1970."""

    host: str
    pid: int
    what: str
    part: tuple[int, int] | None
    since: float
    seen: float


@contextmanager
def running(store: Store, what: str, part: tuple[int, int] | None) -> Iterator[None]:
    """Tell others, while the block lasts, that this process builds `what`. Raises UserError if nothing can be written."""
    name = f"{uuid.uuid4().hex}.json"
    told = {**who(), "what": what, "part": part, "since": time.time()}
    over = threading.Event()

    def write() -> None:
        store.write(json.dumps({**told, "renewed": time.time()}, sort_keys=True).encode(), *FOLDER, name)

    def renew() -> None:
        while not over.wait(BEAT):
            try:
                write()
            except UserError:  # storage that is away or full is the work's to notice: this is only for onlookers
                continue

    write()
    thread = threading.Thread(target=renew, name="javisc-running", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=BEAT)
        try:
            store.remove(*FOLDER, name)
            if not store.remote:
                Path(store.root, *FOLDER).rmdir()
        except (Unavailable, OSError):  # others run, or storage is away: this must not hide why the build ends
            return


def builders(store: Store) -> list[Builder]:
    """The builds that run now, the oldest first: those that were heard of within LEASE seconds or live on this machine."""
    found = []
    for name in store.names(*FOLDER):
        try:
            told = json.loads(store.read(*FOLDER, name))
            if _lives(told):
                part = tuple(told["part"]) if told.get("part") else None
                found.append(
                    Builder(told["host"], told["pid"], told["what"], part, float(told["since"]), float(told["renewed"]))
                )
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # it has just ended, or is none of ours
            continue
    return sorted(found, key=lambda one: (one.since, one.host, one.pid))


def forget(store: Store) -> None:
    """Remove what killed builds left. For who holds the dataset's lock alone."""
    for name in store.names(*FOLDER):
        store.remove(*FOLDER, name)


def _lives(told: dict[str, Any]) -> bool:
    if told.get("space") is not None and told["space"] == space():
        return alive(int(told["pid"]))
    return time.time() - float(told["renewed"]) < LEASE

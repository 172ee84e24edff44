"""Sources are made ready before their clips are compiled: fetched if they are remote, and digested once for all their windows.

Processes beside the workers do it while these compile, for a bounded number of sources and bytes at a time.
"""

from __future__ import annotations

import os
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from javisc.compiler.run.calls import Call, Outcome
from javisc.compiler.run.copies import Copies
from javisc.compiler.run.digests import Known, known_of
from javisc.compiler.run.pool import Pool
from javisc.compiler.run.sources import FETCH_RATE, FETCH_START, fetch_all
from javisc.manifests.urls import is_url

#: Processes that make ready, at most; so many sources, and two more for each worker, may be ready or on their way.
FETCHERS = 4
#: Digests that are remembered: a film of many windows is met again in other shards.
REMEMBERED = 20_000
#: Windows that are further apart, in seconds, have hardly any pictures in common that are decoded for them.
NEAR = 30.0
#: The names of a row's sources: column of the path and of its size, the argument of its copy, and the column of its digest.
_NAMES = (
    ("path", "source_bytes", "fetched", "source_sha256"),
    ("audio_path", "audio_bytes", "fetched_audio", "audio_sha256"),
)
_REMEMBERED: OrderedDict[str, Known] = OrderedDict()


@dataclass
class Group:
    """The rows of one shard that are made of the same sources."""

    shard: int
    rows: list[dict[str, Any]]

    @property
    def urls(self) -> list[tuple[str, str, int | None]]:
        """(argument, URL, size) of the remote ones."""
        row = self.rows[0]
        return [(copy, row[path], row[size]) for path, size, copy, _ in _NAMES if row[path] and is_url(row[path])]

    @property
    def waits(self) -> bool:
        """True if its sources are to be made ready first: to be fetched, or read once instead of for every window."""
        if self.urls:
            return True
        paths = [_local(self.rows[0], path) for path, *_ in _NAMES]
        return len(self.rows) > 1 and any(path is not None and path not in _REMEMBERED for path in paths)

    @property
    def runs(self) -> list[str | None]:
        """For each row the run that it belongs to: windows close to each other, which one worker makes best."""
        if len(self.rows) == 1:
            return [None]
        found: list[str | None] = []
        end, first = -2 * NEAR, ""
        for row in self.rows:
            if (row["window_start"] or 0.0) - end > NEAR:
                first = f"{self.shard}:{row['key']}"
            found.append(first)
            end = max(end, float("inf") if row["window_end"] is None else row["window_end"])
        return found


def groups(shard: int, rows: Sequence[dict[str, Any]]) -> list[Group]:
    """The rows by their sources: in the order of the first of each, windows in the order of their time."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["path"], row["raw_path"], row["audio_path"]), []).append(row)
    return [
        Group(shard, sorted(part, key=lambda row: (row["window_start"] or 0.0, row["key"]))) for part in found.values()
    ]


def known(row: dict[str, Any]) -> dict[str, Known]:
    """The digests of a row's sources that are remembered."""
    found = {digest: _REMEMBERED.get(_local(row, path) or "") for path, _, _, digest in _NAMES if row[path]}
    return {name: said for name, said in found.items() if said is not None}


def _local(row: dict[str, Any], path: str) -> str | None:
    """A source's path, with bytes that are no text as surrogates."""
    return os.fsdecode(row["raw_path"]) if path == "path" and row["raw_path"] is not None else row[path]


class Ahead:
    """Makes groups ready, at most so many at a time. copies: where the remote ones lie. logs: a folder of its own."""

    def __init__(self, workers: int, copies: Copies, logs: Path) -> None:
        self.copies, self.logs = copies, logs
        self.processes, self.enough = min(FETCHERS, 1 + workers), workers
        self.most = 2 * workers + self.processes
        self.queue: deque[Group] = deque()
        #: Groups with remote sources that are ready or on their way, by shard and key of their rows; and how many are not done.
        self.open: dict[tuple[int, str], Group] = {}
        self.left: Counter[int] = Counter()
        self.pool: Pool | None = None

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.close()
        self.copies.close()

    @property
    def full(self) -> bool:
        """True while enough groups wait."""
        return len(self.queue) >= self.enough

    @property
    def busy(self) -> bool:
        return bool(self.queue) or (self.pool is not None and self.pool.busy)

    @property
    def connections(self) -> list[Connection]:
        """What to wait for."""
        return [] if self.pool is None else self.pool.connections

    def push(self, group: Group) -> None:
        """Make a group ready when its turn comes."""
        self.queue.append(group)

    def copy_of(self, row: dict[str, Any]) -> dict[str, str]:
        """Arguments that name the copies of a row's remote sources."""
        return {name: self.copies.place(url) for name, url, _ in Group(0, [row]).urls}

    def done(self, shard: int, row: dict[str, Any]) -> None:
        """A row needs its sources no more. Those of a window may be met again in another shard."""
        if (group := self.open.pop((shard, row["key"]), None)) is not None:
            self.left[id(group)] -= 1
            if not self.left[id(group)]:
                del self.left[id(group)]
            windowed = row["window_start"] is not None or row["window_end"] is not None
            for _, url, _ in Group(shard, [row]).urls:
                self.copies.release(url, keep=windowed)

    def wait(self, timeout: float) -> Iterator[tuple[Group, Outcome]]:
        """Start what there is room for, and yield the groups that ended. An error is the sources', or their storage's."""
        while self.queue and self._room(self.queue[0]):
            self._start(self.queue.popleft())
        if self.pool is None:
            return
        for outcome in self.pool.wait(timeout):
            group: Group = outcome.call.tag
            # Of a fetch that dies or hangs the pool says that its storage is away: only what it raises looks like a digest's.
            fetching = outcome.error == "raised" and outcome.call.step is not outcome.call
            if outcome.error in ("raised", "crashed", "timeout") and not fetching:  # of the digest: compiling will tell
                outcome.error, outcome.value = None, {}
            for path, said in (outcome.value or {}).items():
                _REMEMBERED[path] = (said[0], said[1], said[2])
                _REMEMBERED.move_to_end(path)
            while len(_REMEMBERED) > REMEMBERED:
                _REMEMBERED.popitem(last=False)
            yield group, outcome

    def _room(self, group: Group) -> bool:
        if not group.urls:
            return True
        return len(self.left) < self.most and self.copies.room(sum(size or 0 for _, _, size in group.urls))

    def _start(self, group: Group) -> None:
        wanted = []
        for name, url, size in group.urls:
            for _ in group.rows:
                target = self.copies.hold(url, size)
            wanted.append((name, url, target, size))
        for one in group.rows if wanted else ():
            self.open[group.shard, one["key"]] = group
            self.left[id(group)] += 1
        self._submit(group, wanted)

    def _submit(self, group: Group, wanted: list[tuple[str, str, str, int | None]]) -> None:
        """Have a process make a group ready. wanted: see `fetch_all`."""
        row, places = group.rows[0], {url: target for _, url, target, _ in wanted}
        files = [(path, places.get(path, path)) for path in (_local(row, name) for name, *_ in _NAMES) if path]
        size = (row["source_bytes"] or 0) + (row["audio_bytes"] or 0)
        limit = FETCH_START + size / FETCH_RATE
        fetch = (
            Call(None, f"{fetch_all.__module__}:{fetch_all.__name__}", {"wanted": wanted}, limit) if wanted else None
        )
        if self.pool is None:
            self.pool = Pool(self.processes, self.logs, (fetch_all.__module__,))
        arguments = {"sources": files, "known": {path: _REMEMBERED[path] for path, _ in files if path in _REMEMBERED}}
        self.pool.submit(Call(group, f"{known_of.__module__}:{known_of.__name__}", arguments, limit, fetch))

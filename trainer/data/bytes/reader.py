"""Bytes of samples out of shards: local `pread`, ranged reads of an object store, or whole shards in a bounded local cache.

What arrives is checked: each member against its checksum in the manifest, each whole shard against its digest. A read that
fails is retried with growing pauses; what stays broken is reported to the caller as `CorruptSample`, never skipped here.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import fsspec

from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.trainer.data.index.catalog import Member

Mode = Literal["auto", "pread", "ranged", "whole"]
T = TypeVar("T")

#: No sample of a compiled dataset comes near this; a manifest that claims more is broken or hostile.
MAX_MEMBER_BYTES = 4 << 30


class CorruptSample(Exception):
    """A sample's bytes cannot be had or are not what the manifest says: the message names shard, member and why."""


@dataclass(frozen=True)
class ReaderOptions:
    """How shards are read.

    `mode`: pread (local files), ranged (byte ranges of any fsspec URL), whole (each shard is fetched once into `cache`, for slow
    disks and stores that dislike many small requests), auto (pread for local paths, ranged otherwise). `retries` counts tries
    after the first; the pause before try n is `backoff` * 2^n seconds, plus up to as much again at random.
    """

    mode: Mode = "auto"
    cache: Path | None = None
    cache_bytes: int = 32_000_000_000
    retries: int = 4
    backoff: float = 0.2
    threads: int = 8
    open_files: int = 64
    verify: bool = True
    storage_options: Mapping[str, object] = field(default_factory=dict)


class _Source(Protocol):
    def read(self, url: str, start: int, stop: int, shard_sha256: str | None) -> bytes: ...

    def close(self) -> None: ...


def retrying(
    action: Callable[[], T], *, retries: int, backoff: float, pause: Callable[[float], None] = time.sleep
) -> T:
    """Call `action` until it returns, at most `retries` times more after an OSError or timeout; re-raise the last one.

    A missing file is not retried: it does not come back by asking again.
    """
    for attempt in range(retries + 1):
        try:
            return action()
        except FileNotFoundError:
            raise
        except (OSError, TimeoutError):
            if attempt == retries:
                raise
            pause(backoff * 2**attempt * (1 + random.random()))
    raise AssertionError("the loop returns or raises")


class _LocalFiles:
    """`pread` on a bounded number of open files; safe for many threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.lock = threading.Lock()
        self.files: OrderedDict[str, _Descriptor] = OrderedDict()

    def read(self, url: str, start: int, stop: int, shard_sha256: str | None) -> bytes:
        with self._open(url) as number:
            parts: list[bytes] = []
            while start < stop:
                part = os.pread(number, min(stop - start, 1 << 30), start)
                if not part:
                    break
                parts.append(part)
                start += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

    @contextmanager
    def _open(self, url: str) -> Iterator[int]:
        path = url.removeprefix("file://")
        with self.lock:
            entry = self.files.get(path)
            if entry is None:
                entry = self.files[path] = _Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            self.files.move_to_end(path)
            entry.users += 1
            idle = [name for name, other in self.files.items() if other.users == 0]
            for name in idle[: max(0, len(self.files) - self.limit)]:
                os.close(self.files.pop(name).number)
        try:
            yield entry.number
        finally:
            with self.lock:
                entry.users -= 1

    def close(self) -> None:
        with self.lock:
            for entry in self.files.values():
                os.close(entry.number)
            self.files.clear()


@dataclass
class _Descriptor:
    number: int
    users: int = 0


class _Ranged:
    """Byte ranges of any fsspec URL."""

    def __init__(self, storage_options: Mapping[str, object]) -> None:
        self.options = dict(storage_options)

    def read(self, url: str, start: int, stop: int, shard_sha256: str | None) -> bytes:
        filesystem, path = fsspec.core.url_to_fs(url, **self.options)
        data: bytes = filesystem.cat_file(path, start=start, end=stop)
        return data

    def close(self) -> None:
        return


class ShardCache:
    """Whole shards on a local disk, at most `limit` bytes of them, shared by the processes of a machine.

    A shard appears under its final name only when complete and its digest fits. The least recently used are removed first; a
    removed shard stays readable for whoever has it open. Two processes that miss the same shard may both fetch it: the
    second rename replaces the first, with the same bytes.
    """

    def __init__(self, folder: Path, limit: int, storage_options: Mapping[str, object]) -> None:
        self.folder = folder
        self.limit = limit
        self.options = dict(storage_options)
        self.lock = threading.Lock()
        self.busy: dict[str, threading.Lock] = {}

    def path(self, url: str, sha256: str | None) -> Path:
        """The local copy of a shard, fetched if it is not there. Raises CorruptSample if its digest is another."""
        name = hashlib.sha256(f"{url} {sha256}".encode()).hexdigest()[:32] + ".tar"
        target = self.folder / name
        with self.lock:
            mine = self.busy.setdefault(name, threading.Lock())
        with mine:
            if not target.exists():
                self._fetch(url, sha256, target)
                self._trim(keep=target)
            os.utime(target)
        return target

    def _fetch(self, url: str, sha256: str | None, target: Path) -> None:
        digest = hashlib.sha256()
        with (
            fsspec.open(url, "rb", **self.options) as source,
            published(target) as temporary,
            temporary.open("wb") as out,
        ):
            while block := source.read(8 << 20):
                digest.update(block)
                out.write(block)
            if sha256 is not None and digest.hexdigest() != sha256:
                raise CorruptSample(f"{url}: its digest is {digest.hexdigest()[:16]}…, the dataset says {sha256[:16]}…")

    def _trim(self, keep: Path) -> None:
        entries = []
        for path in self.folder.glob("*.tar"):
            try:
                status = path.stat()
            except FileNotFoundError:  # another process trimmed it
                continue
            entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.limit:
                break
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size


class _Whole:
    """Reads through a `ShardCache`."""

    #: Times a shard may be removed before it is read: a cache that holds fewer shards than are read at once loses some.
    AGAIN = 20

    def __init__(self, cache: ShardCache, files: _LocalFiles) -> None:
        self.cache = cache
        self.files = files

    def read(self, url: str, start: int, stop: int, shard_sha256: str | None) -> bytes:
        for _ in range(self.AGAIN):
            try:
                return self.files.read(str(self.cache.path(url, shard_sha256)), start, stop, None)
            except FileNotFoundError:  # removed between look-up and opening, by whoever needed the room
                continue
        return self.files.read(str(self.cache.path(url, shard_sha256)), start, stop, None)

    def close(self) -> None:
        self.files.close()


class Reader:
    """Fetches the members of samples, checked, with retries, several at once.

    Use `read` for one sample now; in `pool`, which has `threads` threads, for one later.
    """

    def __init__(self, options: ReaderOptions | None = None) -> None:
        self.options = options or ReaderOptions()
        if self.options.mode == "whole" and self.options.cache is None:
            raise UserError("reader mode 'whole' keeps shards on a local disk: set cache=FOLDER")
        self.files = _LocalFiles(self.options.open_files)
        self.ranged = _Ranged(self.options.storage_options)
        self.whole: _Whole | None = None
        if self.options.cache is not None:
            cache = ShardCache(self.options.cache, self.options.cache_bytes, self.options.storage_options)
            self.whole = _Whole(cache, _LocalFiles(self.options.open_files))
        self.pool = ThreadPoolExecutor(self.options.threads, thread_name_prefix="javisc-reader")

    def _source(self, url: str) -> _Source:
        mode = self.options.mode
        if mode == "whole":
            assert self.whole is not None
            return self.whole
        local = "://" not in url or url.startswith("file://")
        if mode == "pread" and not local:
            raise UserError(f"{url}: reader mode 'pread' reads local files only; use mode=ranged or mode=whole")
        return self.files if local and mode != "ranged" else self.ranged

    def read(self, url: str, members: list[Member], shard_sha256: str | None = None) -> dict[str, bytes]:
        """Return {extension: content} of one sample's members.

        Members that lie close together are fetched in one read. Raises CorruptSample: the shard is missing or too short, a
        read keeps failing, or a checksum differs.
        """
        if not members:
            return {}
        first = min(member.offset for member in members)
        last = max(member.offset + member.size for member in members)
        if first < 0 or any(not 0 <= member.size <= MAX_MEMBER_BYTES for member in members):
            raise CorruptSample(f"{url}: the manifest tells of impossible offsets or sizes: {members}")
        wanted = sum(member.size for member in members)
        # Headers and padding between neighbours are at most a few KiB; anything farther apart is read separately.
        spans = (
            [(first, last)] if last - first <= wanted + (64 << 10) else [(m.offset, m.offset + m.size) for m in members]
        )
        source = self._source(url)

        def fetch() -> list[bytes]:
            return [source.read(url, start, stop, shard_sha256) for start, stop in spans]

        try:
            blocks = retrying(fetch, retries=self.options.retries, backoff=self.options.backoff)
        except (OSError, TimeoutError) as error:
            raise CorruptSample(f"{url}: {error}") from error
        out: dict[str, bytes] = {}
        for number, member in enumerate(members):
            start, block = (first, blocks[0]) if len(spans) == 1 else (member.offset, blocks[number])
            content = block[member.offset - start : member.offset - start + member.size]
            self._check(url, member, content)
            out[member.ext] = content
        return out

    def _check(self, url: str, member: Member, content: bytes) -> None:
        where = f"{url}: .{member.ext} at byte {member.offset}"
        if len(content) != member.size:
            raise CorruptSample(f"{where} should have {member.size} bytes; the shard ends after {len(content)}")
        if self.options.verify and member.crc32 is not None and zlib.crc32(content) != member.crc32:
            raise CorruptSample(f"{where} is damaged: its checksum differs from the manifest's; run `javisc verify`")

    def close(self) -> None:
        """Wait for reads under way and close every file."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.files.close()
        if self.whole is not None:
            self.whole.close()

"""Bytes as they are in the shard, from anywhere, or a reason why not."""

from __future__ import annotations

import hashlib
import os
import threading
import zlib
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.reader import CorruptSample, Reader, ReaderOptions, ShardCache, retrying
from javisc.trainer.data.index.catalog import Member


def member(content: bytes, offset: int, size: int, ext: str = "mp4") -> Member:
    return Member(ext, offset, size, zlib.crc32(content[offset : offset + size]))


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, bytes]:
    content = os.urandom(400_000)
    (tmp_path / "000000.tar").write_bytes(content)
    return tmp_path / "000000.tar", content


spans = st.lists(st.tuples(st.integers(0, 399_000), st.integers(0, 1000)), min_size=1, max_size=3)


@pytest.mark.parametrize("mode", ["pread", "ranged", "whole"])
def test_members_are_the_bytes_of_the_file(shard: tuple[Path, bytes], tmp_path: Path, mode: str) -> None:
    path, content = shard
    reader = Reader(ReaderOptions(mode=mode, cache=tmp_path / "cache"))  # type: ignore[arg-type]

    @settings(max_examples=50, deadline=None)
    @given(spans)
    def check(places: list[tuple[int, int]]) -> None:
        members = [member(content, offset, size, f"e{number}") for number, (offset, size) in enumerate(places)]
        got = reader.read(str(path), members)
        assert got == {m.ext: content[m.offset : m.offset + m.size] for m in members}

    check()
    reader.close()


def test_a_flipped_byte_is_found(shard: tuple[Path, bytes]) -> None:
    path, content = shard
    wanted = member(content, 1000, 50)
    path.write_bytes(content[:1010] + bytes([content[1010] ^ 1]) + content[1011:])
    with pytest.raises(CorruptSample, match=r"000000.tar: .mp4 at byte 1000 is damaged"):
        Reader().read(str(path), [wanted])


@pytest.mark.parametrize("bad", [Member("mp4", 399_990, 50), Member("mp4", -1, 5), Member("mp4", 0, 1 << 50)])
def test_impossible_places_are_refused_before_memory_is_taken(shard: tuple[Path, bytes], bad: Member) -> None:
    with pytest.raises(CorruptSample):
        Reader().read(str(shard[0]), [bad])


def test_a_missing_shard_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(CorruptSample, match="nothing.tar"):
        Reader(ReaderOptions(backoff=100)).read(str(tmp_path / "nothing.tar"), [Member("mp4", 0, 5)])


def test_whole_needs_a_cache_and_pread_a_local_file() -> None:
    with pytest.raises(UserError, match="cache="):
        Reader(ReaderOptions(mode="whole"))
    with pytest.raises(UserError, match="local files only"):
        Reader(ReaderOptions(mode="pread")).read("s3://bucket/000000.tar", [Member("mp4", 0, 5)])


def test_retries_stop_and_wait_longer_each_time() -> None:
    calls: list[int] = []
    pauses: list[float] = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) < 4:
            raise ConnectionResetError("try again")
        return "done"

    assert retrying(flaky, retries=4, backoff=1.0, pause=pauses.append) == "done"
    assert all(low <= pause < 2 * low for low, pause in zip([1, 2, 4], pauses, strict=True))
    with pytest.raises(ConnectionResetError):
        calls.clear()
        retrying(flaky, retries=2, backoff=0, pause=pauses.append)


def test_cache_is_bounded_and_checks_digests(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    contents = {f"memory://shards/{n}.tar": os.urandom(1000) for n in range(6)}
    for url, content in contents.items():
        memory.pipe_file(url, content)
    cache = ShardCache(tmp_path / "cache", 3500, {})
    for url, content in contents.items():
        assert cache.path(url, hashlib.sha256(content).hexdigest()).read_bytes() == content
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3
    with pytest.raises(CorruptSample, match="digest"):
        cache.path("memory://shards/0.tar", "0" * 64)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".tar"]


def test_many_threads_with_few_open_files(tmp_path: Path) -> None:
    contents = [os.urandom(5000) for _ in range(20)]
    for number, content in enumerate(contents):
        (tmp_path / f"{number}.tar").write_bytes(content)
    reader = Reader(ReaderOptions(open_files=3, threads=8))
    before = len(os.listdir("/proc/self/fd"))
    futures = [
        (n % 20, at, reader.pool.submit(reader.read, str(tmp_path / f"{n % 20}.tar"), [Member("mp4", at, 900)]))
        for n, at in ((n, 7 * n % 4000) for n in range(400))
    ]
    for number, offset, future in futures:
        assert future.result()["mp4"] == contents[number][offset : offset + 900]
    assert len(os.listdir("/proc/self/fd")) <= before + 3 + 8
    reader.close()
    assert threading.active_count() < 50

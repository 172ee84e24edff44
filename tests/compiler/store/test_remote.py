"""Inputs and outputs in an object store: the same bytes as on a disk, and nothing half there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.check.dataset import verify
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.compiler.store.files import Store
from javisc.manifests.errors import UserError
from javisc.manifests.urls import filesystem
from support.faulty_store import s3_server
from support.raw import raw_folder, write_clip

RECIPE = PRESETS["jav"].replace(short_side=32, encoder_preset="ultrafast")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A real S3 server on this machine's loopback. Yields a bucket's URL."""
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    with s3_server():
        s3fs.S3FileSystem().mkdir("bucket")
        yield "s3://bucket"


def test_a_build_from_and_to_an_object_store(s3: str, tmp_path: Path) -> None:
    raw = raw_folder(tmp_path / "raw", 5)
    (raw / "empty.mp4").write_bytes(b"")
    options = BuildOptions(workers=2, shard_samples=3, scratch=tmp_path)
    local = build(from_raw([str(raw)]), RECIPE, tmp_path / "ds", options)
    fs, _ = filesystem(s3)
    fs.put(f"{raw}/", "bucket/raw/", recursive=True)
    out = f"{s3}/deep/ds"
    remote = build(from_raw([f"{s3}/raw/"], out=out), RECIPE, out, options)
    assert (
        (remote.samples, remote.shards, remote.rejected)
        == (local.samples, local.shards, {"empty": 1})
        == (5, 2, {"empty": 1})
    )
    for shard in ("000000.tar", "000000.idx", "000001.tar", "000001.idx"):
        assert fs.cat_file(f"bucket/deep/ds/shards/{shard}") == (tmp_path / "ds" / "shards" / shard).read_bytes()
    found = Store(out, tmp_path / "fetched")
    manifest = pl.read_parquet(found.fetch("manifest.parquet"))
    ours = pl.read_parquet(tmp_path / "ds" / "manifest.parquet")
    assert manifest.drop("path", "audio_path").equals(ours.drop("path", "audio_path"))
    assert manifest["path"][0].startswith("s3://bucket/raw/part ")
    assert verify(out, workers=1).defects == []
    # Again: nothing to do. One more input: appended. The lock is gone.
    before = {name: fs.info(name)["ETag"] for name in fs.find("bucket/deep/ds/shards")}
    fs.put_file(str(write_clip(tmp_path / "more.mp4", seed=9)), "bucket/raw/more.mp4")
    more = build(from_raw([f"{s3}/raw"], out=out), RECIPE, out, options)
    after = {name: fs.info(name)["ETag"] for name in fs.find("bucket/deep/ds/shards")}
    assert more.samples == 6 and after.items() >= before.items() and len(after) == len(before) + 2
    assert {b'"released": true' in found.read(".build", name) for name in found.names(".build") if "lock" in name} == {
        True
    }
    assert not list(tmp_path.glob("javisc-*"))


def test_an_object_appears_whole_or_not_at_all(s3: str, tmp_path: Path) -> None:
    store = Store(f"{s3}/whole", tmp_path)

    def fail() -> None:
        with store.publish("shards", "000000.tar") as local:
            local.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not store.exists("shards", "000000.tar") and not list(tmp_path.iterdir())
    store.write(b"all", "shards", "000000.tar")
    assert store.read("shards", "000000.tar") == b"all" and store.names("shards") == {"000000.tar"}
    store.remove("shards", "000000.tar")
    assert not store.exists("shards", "000000.tar")


def test_a_missing_bucket_or_prefix_is_one_line(s3: str, tmp_path: Path) -> None:
    for url in (f"{s3}/nothing", "s3://no-such-bucket/x", "nonsense://x"):
        with pytest.raises(UserError) as caught:
            build(from_raw([url]), RECIPE, tmp_path / "ds")
        assert "\n" not in str(caught.value)


def test_a_large_shard_is_uploaded_in_pieces(s3: str, tmp_path: Path) -> None:
    """S3 gives what came in several pieces an ETag that says how many."""
    store = Store(f"{s3}/pieces", tmp_path / "scratch")
    with store.publish("shards", "000000.tar") as local, local.open("wb") as stream:
        stream.truncate(101 << 20)
    info = store.fs.info("bucket/pieces/shards/000000.tar")
    assert info["size"] == 101 << 20 and info["ETag"].strip('"').endswith("-3")

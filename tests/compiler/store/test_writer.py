"""Datasets written by hand: whole or absent, resumed, verified, and read by others; and a member kind added in ten lines."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import webdataset

from javisc.compiler.store.writer import DatasetWriter
from javisc.manifests import kinds
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.manifests.kinds import MemberKind
from javisc.manifests.members import MemberReader
from support.engines import digests
from support.media import Spec, write
from support.processes import before_others
from support.sane import sane
from support.written import fill, samples


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The members of a real clip, in memory."""
    from javisc.compiler.media.transcode import transcode
    from javisc.compiler.recipe import PRESETS

    folder = tmp_path_factory.mktemp("clip")
    (folder / "out").mkdir()
    made = transcode(write(Spec(fps="24", seconds=0.5), folder / "a.mp4"), PRESETS["jav"], folder / "out")
    return {end: path.read_bytes() for end, path in made.files.items()}


def test_clips_in_memory_become_a_dataset(clip: dict[str, bytes], tmp_path: Path) -> None:
    fill(tmp_path / "ds", samples(clip))
    sane(tmp_path / "ds", split=("train", "val"), media=7, deep=True)
    manifest = Dataset.open(tmp_path / "ds").located().collect()
    assert manifest["key"].to_list() == sorted(manifest["key"].to_list()[:3]) + sorted(
        manifest["key"].to_list()[3:6]
    ) + ["clip_2_6"]
    assert set(manifest["text"]) == {f"caption {number}" for number in range(7)}
    assert manifest.filter(pl.col("split") == "val")["text"].to_list() == ["caption 0"]
    # What nobody said is measured.
    measured = manifest.select("num_frames", "fps", "num_samples", "channels", "audio_fps", "duration").unique()
    assert measured.rows() == [(12, 24.0, 8000, 1, 16000, 0.5)]
    with MemberReader() as reader:
        assert all(reader.read(row, "mp4") == clip["mp4"] for row in manifest.iter_rows(named=True))
    names = [str(path) for path in sorted((tmp_path / "ds/shards").glob("*.tar"))]
    read = {sample["__key__"]: sample["flac"] for sample in webdataset.WebDataset(names, shardshuffle=False)}
    assert len(read) == 7 and set(read.values()) == {clip["flac"]}


def test_a_killed_writer_goes_on_and_the_bytes_are_the_same(clip: dict[str, bytes], tmp_path: Path) -> None:
    fill(tmp_path / "whole", samples(clip))
    (tmp_path / "clip").mkdir()
    for end, content in clip.items():
        (tmp_path / "clip" / end).write_bytes(content)
    program = (
        "import os, signal, sys; from pathlib import Path; from support.written import fill, samples\n"
        "clip = {path.name: path.read_bytes() for path in Path(sys.argv[1]).iterdir()}\n"
        "def until(number):\n"
        "    for index, sample in enumerate(samples(clip)):\n"
        "        if index == number: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        yield sample\n"
        "fill(Path(sys.argv[2]), until(int(sys.argv[3])))"
    )
    place = {**os.environ, "PYTHONPATH": before_others(Path(__file__).parents[2])}
    for number in (2, 5, 6):
        ended = subprocess.run(
            [sys.executable, "-P", "-c", program, str(tmp_path / "clip"), str(tmp_path / "ds"), str(number)],
            env=place,
            timeout=120,
        )
        assert ended.returncode == -signal.SIGKILL and not (tmp_path / "ds/dataset.json").exists()
    assert len(list((tmp_path / "ds/shards").glob("*.tar"))) == 2
    fill(tmp_path / "ds", samples(clip))
    assert digests(tmp_path / "ds") == digests(tmp_path / "whole")
    for name in ("manifest.parquet", "shards.parquet", "rejected.parquet", "dataset.json"):
        assert (tmp_path / "ds" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_cannot_be_is_refused(clip: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "ds"
    with DatasetWriter(out, shard_samples=3) as writer:
        writer.add("a", clip, {"text": "one"})
        with pytest.raises(ValueError, match="was added before"):
            writer.add("a", clip)
        with pytest.raises(ValueError, match="letters a-z, digits and _"):
            writer.add("A/../b", clip)
        with pytest.raises(ValueError, match="member 'npy': known are flac, mp4"):
            writer.add("b", {**clip, "npy": b""})
        with pytest.raises(ValueError, match="KEY.json is made of the columns"):
            writer.add("b", {**clip, "json": b"{}"})
        with pytest.raises(ValueError, match="column 'txt' is not known: did you mean 'text'"):
            writer.add("b", clip, {"txt": "two"})
        with pytest.raises(UserError, match="is being built by process"), DatasetWriter(out):
            pass
        writer.reject("b.mp4", "corrupt", "nothing in it")
    assert pl.read_parquet(out / "rejected.parquet")["relpath"].to_list() == ["b.mp4"]
    with (
        pytest.raises(UserError, match="was begun with shard_samples 3, now it is 4"),
        DatasetWriter(out, shard_samples=4),
    ):
        pass
    (tmp_path / "mine/shards").mkdir(parents=True)
    (tmp_path / "mine/shards/000000.tar").touch()
    with (
        pytest.raises(UserError, match=r"mine holds shards/000000\.tar, which would be"),
        DatasetWriter(tmp_path / "mine"),
    ):
        pass
    with pytest.raises(ValueError, match="holds other samples"), DatasetWriter(out, shard_samples=3) as writer:
        writer.add("other", clip)
    with pytest.raises(UserError, match="a member mp4 cannot be read"), DatasetWriter(tmp_path / "no") as writer:
        writer.add("a", {"mp4": b"no media"})
    assert not (tmp_path / "no" / "dataset.json").exists()


def npy_defects(content: bytes, row: dict[str, Any], recipe: object) -> Iterator[str]:
    if not np.isfinite(np.load(io.BytesIO(content), allow_pickle=False)).all():
        yield "holds numbers that are not finite"


def test_a_member_kind_is_added_in_ten_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from javisc.compiler.check.shard import packed, verify_shard

    added = MemberKind("npy", "an array", f"{__name__}:npy_defects", free=True, base=False)
    monkeypatch.setattr(kinds, "MEMBERS", (*kinds.MEMBERS, added))
    monkeypatch.setattr("javisc.compiler.store.writer.MEMBERS", kinds.MEMBERS)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    arrays = {f"key_{number}": np.full((2, 3), number, np.float32) for number in range(3)}
    arrays["key_3"] = np.full(4, np.nan, np.float32)
    with DatasetWriter(tmp_path / "ds") as writer:
        for key, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            writer.add(key, {"npy": buffer.getvalue()}, {"num_frames": 1, "duration": 1.0})
    sane(tmp_path / "ds", media=0)  # of members it knows only what every dataset may have
    row = pl.read_parquet(tmp_path / "ds/shards.parquet").row(0, named=True)
    rows = packed(pl.read_parquet(tmp_path / "ds/manifest.parquet"))
    defects = verify_shard(str(tmp_path / "ds"), row, rows, None, "frames", False, None)["defects"]
    assert defects == ["tar: key_3.npy: holds numbers that are not finite"]
    with MemberReader() as reader:
        for found in Dataset.open(tmp_path / "ds").located().collect().iter_rows(named=True):
            content = reader.read(found, "npy")
            assert content is not None
            np.testing.assert_array_equal(np.load(io.BytesIO(content)), arrays[found["key"]])

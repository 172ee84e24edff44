"""Renditions: the loader takes the smallest pictures that lose nothing; frame numbers, sound and grid are the base's."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.check.dataset import verify
from javisc.compiler.fields.render import render
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.media.renditions import size_of
from javisc.compiler.recipe import PRESETS
from javisc.compiler.repair.dataset import repair
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.trainer.data import Catalog, Loader, Sampler, single_bucket
from javisc.trainer.data.bytes.loader import LoaderOptions
from javisc.trainer.data.bytes.reader import Reader, ReaderOptions
from javisc.trainer.data.index.aspects import image_size
from javisc.trainer.data.index.catalog import Member
from javisc.trainer.data.index.sampler import SamplerOptions
from support.raw import write_clip
from support.sane import sane


@pytest.fixture(scope="module")
def ds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of 160x96 and one of 80x48, in two shards, with a rendition of 48."""
    root = tmp_path_factory.mktemp("renditions")
    for number in range(3):
        write_clip(root / f"RAW/{number}.mp4", seconds=2, size=(160, 96), seed=number)
    write_clip(root / "RAW/small.mp4", seconds=2, size=(80, 48), seed=9)
    recipe = PRESETS["jav"].replace(encoder_preset="ultrafast")
    build(
        from_raw([str(root / "RAW")], out=str(root / "DS")),
        recipe,
        root / "DS",
        BuildOptions(workers=2, shard_samples=2),
    )
    before = {path.name: path.read_bytes() for path in (root / "DS/shards").iterdir()}
    done = render(str(root / "DS"), 48, workers=2)
    assert (done.name, done.samples, done.of, done.smaller, done.broken) == ("r48", 3, 4, 1, 0)
    assert before == {path.name: path.read_bytes() for path in (root / "DS/shards").iterdir()}
    return root / "DS"


def pictures(content: bytes, side: tuple[int, int]) -> np.ndarray:
    with av.open(io.BytesIO(content)) as file:
        stream = file.streams.video[0]
        found = [
            frame.to_ndarray(format="gray", width=side[1], height=side[0], interpolation="AREA")
            for frame in file.decode(stream)
        ]
    return np.stack(found).astype(float)


def test_a_rendition_has_the_frames_of_its_base_on_the_same_grid(ds: Path) -> None:
    manifest = sane(ds)
    field = Dataset.open(ds).field("r48")
    for row in manifest.filter(pl.col("r48_height").is_not_null()).iter_rows(named=True):
        content = field.read(row["key"])
        with av.open(io.BytesIO(content)) as file:
            stream = file.streams.video[0]
            stamps = [packet.pts * packet.time_base for packet in file.demux(stream) if packet.size]
            file.seek(0)
            starts = [
                number for number, packet in enumerate(p for p in file.demux(stream) if p.size) if packet.is_keyframe
            ]
            assert (stream.height, stream.width) == (48, 80) == (row["r48_height"], row["r48_width"])
        assert stamps == [Fraction(n, 24) for n in range(row["num_frames"])] and starts == list(
            range(0, row["num_frames"], 12)
        )
        here, base = pictures(content, (48, 80)), pictures(Dataset.open(ds).read(row["key"])["mp4"], (48, 80))
        # Each frame is nearest to the same frame of its base.
        apart = np.abs(here[:, None] - base[None]).mean(axis=(2, 3))
        assert apart.argmin(axis=1).tolist() == list(range(row["num_frames"]))
    assert verify(ds, workers=1).defects == []


@pytest.mark.parametrize("source", [(1920, 1080), (1280, 720), (720, 1280), (1080, 1920)])
def test_a_rendition_named_after_a_bucket_is_not_too_small_for_it(source: tuple[int, int]) -> None:
    """480p of 16:9 was 852 pixels wide, two less than JavisDiT's bucket: it was made, paid for and never read."""
    ratio = "0.56" if source[0] > source[1] else "1.78"
    for resolution in ("144p", "240p", "360p", "480p", "720p"):
        height, width = image_size(resolution, ratio)
        if min(height, width) < min(source):
            made = size_of(*source, min(height, width))
            assert made[0] >= width and made[1] >= height, resolution


@settings(max_examples=50, deadline=None)
@given(st.integers(8, 2000), st.integers(8, 2000), st.integers(4, 500))
def test_a_renditions_longer_side_is_the_nearest_even_number(width: int, height: int, half: int) -> None:
    made = size_of(2 * width, 2 * height, 2 * half)
    assert min(made) == 2 * half and all(side % 2 == 0 for side in made)
    assert abs(max(made) - Fraction(max(width, height), min(width, height)) * 2 * half) <= 1


class _Heard(Reader):
    """A reader that notes what it is asked for."""

    def __init__(self, read: list[str]) -> None:
        super().__init__()
        self.heard = read

    def read(self, url: str, members: list[Member], shard_sha256: str | None = None) -> dict[str, bytes]:
        self.heard.append(url)
        return super().read(url, members, shard_sha256)


@pytest.mark.parametrize(
    ("size", "wanted"), [((48, 80), {"r48": 3, "base": 1}), ((50, 80), {"base": 3}), ((24, 40), {"r48": 3, "base": 1})]
)
def test_the_smallest_pictures_that_lose_nothing_are_read(
    ds: Path, size: tuple[int, int], wanted: dict[str, int]
) -> None:
    rows = [pl.col("height") > 48] if size[0] > 48 else []
    catalog = Catalog.open([ds], dict(enumerate(rows)))
    table = single_bucket(frames=12, height=size[0], width=size[1], batch_size=4)
    made = {}
    for taken in (True, False):
        sampler = Sampler(catalog, table, SamplerOptions(seed=3, renditions=taken))
        steps, _ = sampler.plan()
        assert [dict(of) for of in steps.pictures.values()] == ([wanted] if taken else [])
        read: list[str] = []
        with Loader(sampler) as loader:
            loader.reader = _Heard(read)
            (batch,) = list(loader)
            assert not batch.replaced
        made[taken] = batch
        assert sum("/fields/r48/" in url for url in read) == (wanted.get("r48", 0) if taken else 0)
    assert [clip.row for clip in made[True].batch.clips] == [clip.row for clip in made[False].batch.clips]
    here, own = made[True].video[:, :, :, None], made[False].video[:, :, None]
    nearest = (here - own).abs().mean(dim=(1, 4, 5)).argmin(dim=2)
    # A frame moves by a quarter of a pixel at 40 pixels: there noise that was averaged twice may look most like its neighbour.
    off = (nearest - torch.arange(12)).abs()
    assert int(off.max()) <= int(size[0] < 48) and float(off.float().mean()) < 0.25, (
        "each frame is nearest to the base's own"
    )
    assert (made[True].audio == made[False].audio).all()


def test_a_rendition_that_cannot_be_read_costs_no_sample(
    ds: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A shard of a rendition lost, a picture of another damaged: the clips' own pictures are there, and are read."""
    copy = Path(shutil.copytree(ds, tmp_path / "DS"))
    (copy / "fields/r48/000000.tar").unlink()
    catalog = Catalog.open([copy])
    damaged = next(row for row in range(len(catalog)) if catalog.numbers["shard"][row] == 1)
    url, (member,) = catalog.beside(damaged, catalog.renditions[0])
    content = bytearray(Path(url).read_bytes())
    content[member.offset + member.size // 2] ^= 1
    Path(url).write_bytes(content)
    table = single_bucket(frames=12, height=48, width=80, batch_size=4)
    made = []
    for taken in (True, False):
        with Loader(Sampler(catalog, table, SamplerOptions(seed=3, renditions=taken))) as loader:
            (batch,) = list(loader)
        assert not batch.replaced
        made.append(batch)
    own = [catalog.renditions[0].offset[clip.row] < 0 or catalog.numbers["shard"][clip.row] == 0 or clip.row == damaged
           for clip in made[0].batch.clips]  # fmt: skip
    same = [torch.equal(a, b) for a, b in zip(made[0].video, made[1].video, strict=True)]
    assert same == own
    assert caplog.text.count("the clip's own pictures are read: `javisc repair`") >= 2
    # What is stored of the clips must not depend on a mount that is gone for an hour.
    with Loader(
        Sampler(catalog, table, SamplerOptions(seed=3)), LoaderOptions(reader=ReaderOptions(retries=0))
    ) as loader:
        loader.away_ends = True
        with pytest.raises(UserError, match="r48/000000.tar.*once it is there, the same command goes on"):
            list(loader)


KILLED = """
import os, signal, sys
import javisc.compiler.fields.render as home
real = home.spread
def once(*args, **kwargs):
    for outcome in real(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)
        yield outcome
home.spread = once
home.render(sys.argv[1], 24, workers=1)
"""


def test_killed_and_lost_it_comes_to_the_same_bytes(ds: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, str(ds)], capture_output=True, env={**os.environ}, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    committed = sorted(path.name for path in (ds / "fields/r24/.build/parts").glob("00000?.json"))
    assert len(committed) == 1 and not (ds / "fields/r24/field.json").exists()
    first = (ds / f"fields/r24/{committed[0][:6]}.tar").read_bytes()
    assert render(str(ds), 24, workers=1).samples == 4
    assert (ds / f"fields/r24/{committed[0][:6]}.tar").read_bytes() == first
    (ds / f"fields/r24/{committed[0][:6]}.tar").unlink()
    assert "field r24: 1 shards rendered again" in "\n".join(repair(ds, workers=1).lines)
    assert (ds / f"fields/r24/{committed[0][:6]}.tar").read_bytes() == first
    assert Catalog.open([ds]).rendition(0, 24, 40).name == "r24"  # type: ignore[union-attr]
    sane(ds, media=0)

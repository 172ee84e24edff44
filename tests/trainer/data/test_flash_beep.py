"""Flash-and-beep clips through a real build and the loader: what comes out is shifted by what went in, to 5 ms.

Everything is measured on the frames and samples of the batches; the sampler's decisions are used for nothing but the offset that
was asked for. The flashes lie on the frame grid of the recipe, so that a picture's time is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.trainer.data.bytes.graph import GraphOptions
from javisc.trainer.data.bytes.loaded import Loaded
from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
from javisc.trainer.data.bytes.reader import ReaderOptions
from javisc.trainer.data.index.assign import single_bucket
from javisc.trainer.data.index.catalog import Catalog
from javisc.trainer.data.index.sampler import Sampler, SamplerOptions
from javisc.trainer.data.sources.sync import SyncWindow
from javisc.trainer.transforms.sync_chain import SyncTransforms
from support.media import BEATS, Spec, beep_times, write

RATE = 16000
LIMIT = 0.005
B_FRAMES = (("preset", "veryfast"), ("bf", "3"), ("g", "30"))
SUFFIX = {"mp4": "mp4", "mov": "mov", "matroska": "mkv"}
#: name → how the file is written; its sound is later than its picture by audio_late - video_late.
FILES = {
    "one": {
        "plain": Spec(video_options=B_FRAMES),
        "late_sound": Spec(audio_late=0.125, video_options=B_FRAMES),
        "late_picture": Spec("matroska", audio="flac", video_late=0.25, video_options=B_FRAMES),
    },
    "two": {
        "matroska": Spec("matroska", audio="libopus", rate=48000, video_options=B_FRAMES),
        "quicktime": Spec("mov", "mpeg4", "pcm_s16le", rate=22050),
    },
}


def javisc(*arguments: object) -> None:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def on_grid(spec: Spec, fps: int) -> Spec:
    """The clip at `fps`, its beeps moved to the frames that flash: the first at or after each beat."""
    beats = tuple(math.ceil(Fraction(str(beat)) * fps) / fps for beat in BEATS)
    return Spec(**{**vars(spec), "fps": str(fps), "beats": beats})


def make(root: Path, fps: int, *build: object) -> list[Path]:
    """A compiled dataset per entry of FILES, a clip per shard."""
    out = []
    for name, specs in FILES.items():
        (root / "raw" / name).mkdir(parents=True)
        for clip, spec in specs.items():
            write(on_grid(spec, fps), root / "raw" / name / f"{clip}.{SUFFIX[spec.container]}")
        out.append(root / name)
        javisc(
            "build", *build[:1], root / "raw" / name, *build[1:], "--out", out[-1], "--workers", 1, "--shard-samples", 1
        )
    return out


@pytest.fixture(scope="module")
def jav(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make(tmp_path_factory.mktemp("jav"), 24, "jav")


@pytest.fixture(scope="module")
def sync(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    more = ("--corpus", "folder", "--short-side", 120, "--min-seconds", 3)
    return make(tmp_path_factory.mktemp("sync"), 25, "sync", *more)


def late(stem: str) -> float:
    """How much later than its picture a file's sound was written, seconds."""
    spec = {name: spec for specs in FILES.values() for name, spec in specs.items()}[stem]
    return spec.audio_late - spec.video_late


def shifts(loaded: Loaded, index: int, fps: int, expected: float) -> list[float]:
    """Sound's time minus picture's for every flash of a batch's clip whose beep is due within its sound, seconds.

    `expected` only says where to look: beeps are searched 0.15 s around it.
    """
    assert loaded.audio is not None
    height = loaded.video.shape[-2]
    band = (loaded.video[index, :, :, -height // 4 :].mean(dim=(0, 2, 3)).numpy() * 127.5 + 127.5) > 128
    flashes = [frame / fps for frame in range(1, len(band)) if band[frame] and not band[frame - 1]]
    sound = loaded.audio[index, :, 0].numpy()
    inside = [time for time in flashes if 0.15 <= time + expected <= len(sound) / RATE - 0.16]
    found = beep_times(sound, RATE, [time + expected for time in inside], reach=0.15)
    return [beep - flash for beep, flash in zip(found, inside, strict=True)]


def epochs(loader: Loader, count: int) -> Iterator[tuple[Loaded, int, str]]:
    """Every clip of some epochs: the batch, the clip's place in it, and its file's name."""
    for _ in range(count):
        for loaded in loader:
            for index, label in enumerate(loaded.labels):
                yield loaded, index, str(label["id"])


def columns(paths: list[Path]) -> Catalog:
    return Catalog.open(paths, strings=("key", "id"))


def check_windows(paths: list[Path], sampler: SamplerOptions, reader: ReaderOptions, names: set[str]) -> None:
    options = LoaderOptions(graph=GraphOptions(), reader=reader)
    seen: dict[str, list[float]] = {name: [] for name in names}
    with Loader(Sampler(columns(paths), single_bucket(34, 60, 80, 2), sampler), options) as loader:
        for loaded, index, name in epochs(loader, 8):
            seen[name] += [shift - late(name) for shift in shifts(loaded, index, 24, late(name))]
    for name, errors in seen.items():
        assert len(errors) >= 4, f"{name}: only {len(errors)} flashes with their beeps were in the windows"
        assert np.abs(errors).max() < LIMIT, (name, errors)


def test_random_windows_keep_the_shift(jav: list[Path]) -> None:
    check_windows(jav[:1], SamplerOptions(), ReaderOptions(), set(FILES["one"]))


def test_a_view_of_two_datasets_keeps_the_shift(jav: list[Path], tmp_path: Path) -> None:
    javisc("merge", *jav, "--out", tmp_path / "view")
    check_windows([tmp_path / "view"], SamplerOptions(mirror=0.5), ReaderOptions(), {*FILES["one"], *FILES["two"]})


def test_sequential_reading_keeps_the_shift(jav: list[Path], tmp_path: Path) -> None:
    """Few shards at a time, each fetched whole into a cache that holds about two of five."""
    size = max(shard.stat().st_size for folder in jav for shard in folder.glob("shards/*.tar"))
    reader = ReaderOptions(mode="whole", cache=tmp_path / "cache", cache_bytes=2 * size)
    check_windows(jav, SamplerOptions(shards_together=2), reader, {*FILES["one"], *FILES["two"]})
    assert len(list((tmp_path / "cache").glob("*.tar"))) < 5


@pytest.mark.parametrize("classes", [9, 17])
def test_offsets_asked_for_are_the_shift(sync: list[Path], tmp_path: Path, classes: int) -> None:
    """Offsets on the frame grid (every 0.2 s) and beside it (every 0.1 s, two frames and a half)."""
    javisc("merge", *sync, "--out", tmp_path / "view")
    windows = SyncWindow(SyncTransforms(crop_len_sec=1.2, max_off_sec=0.8, classes=classes, audio_jitter_sec=0.0))
    sampler = Sampler(columns([tmp_path / "view"]), single_bucket(30, 60, 80, 3), SamplerOptions(windows=windows))
    seen: dict[float, list[float]] = {}
    names: set[str] = set()
    with Loader(sampler, LoaderOptions(fps=Fraction(25))) as loader:
        for loaded, index, name in epochs(loader, 40):
            offset = loaded.batch.clips[index].window.offset
            assert offset is not None
            # Sound taken later by the offset is heard earlier by it.
            errors = [shift - late(name) + offset for shift in shifts(loaded, index, 25, late(name) - offset)]
            seen.setdefault(offset, []).extend(errors)
            names |= {name} if errors else set()
    assert names == {*FILES["one"], *FILES["two"]}
    assert len([offset for offset, errors in seen.items() if errors]) >= classes - 4
    for offset, errors in seen.items():
        assert np.abs(errors).max(initial=0) < LIMIT, (offset, errors)

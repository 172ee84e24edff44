"""`javisc build --renditions`: made in the pass that makes the clips, with the bytes that `javisc render` makes afterwards."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import polars as pl
import pytest
import soundfile

from javisc.compiler.build import BuildOptions, build, plan_only
from javisc.compiler.check.dataset import verify
from javisc.compiler.fields.render import render
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.media.transcode import transcode
from javisc.compiler.recipe import PRESETS
from javisc.compiler.repair.dataset import repair
from javisc.compiler.store.renditions import recipe_of
from javisc.manifests.errors import UserError
from support.media import BEATS, Spec, beep_times, write
from support.raw import write_clip
from support.sane import sane

RECIPE = PRESETS["jav"].replace(encoder_preset="ultrafast")


def compiled(root: Path, out: str, **options: object) -> Path:
    """The dataset of a list: two films, a window of one of them, one that is small and one that is turned."""
    told = BuildOptions(**{"workers": 1, "shard_samples": 2, **options})  # type: ignore[arg-type]
    build(from_raw([str(root / "list.csv")], out=str(root / out)), RECIPE, root / out, told)
    return root / out


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of inputs, DS built of it with renditions of 48 and 32, and PLAIN, which has none."""
    root = tmp_path_factory.mktemp("built")
    write_clip(root / "a.mp4", seconds=2, size=(160, 96), seed=1)
    write_clip(root / "b.mkv", seconds=1, size=(130, 98), seed=2)
    write_clip(root / "small.mp4", seconds=1, size=(64, 48), seed=3)
    rows = [("a.mp4", None, None), ("a.mp4", 0.5, 1.5), ("b.mkv", None, None), ("small.mp4", None, None)]
    pl.DataFrame(rows, schema=["path", "window_start", "window_end"], orient="row").write_csv(root / "list.csv")
    compiled(root, "PLAIN")
    compiled(root, "DS", renditions=(48, 32))
    return root


def digests(folder: Path, *parts: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in parts
        for path in sorted(folder.joinpath(part).rglob("*"))
        if path.is_file()
    }


def test_a_plan_counts_them_beside_the_shards(root: Path) -> None:
    found = plan_only(
        from_raw([str(root / "list.csv")]), RECIPE, str(root / "NEW"), BuildOptions(workers=1, renditions=(48, 32))
    )
    rows = pl.read_parquet(root / "DS" / "manifest.parquet")
    smaller = rows["r48_mp4_size"].sum() + rows["r32_mp4_size"].sum()
    assert (found.rendition_bytes, found.bytes) == pytest.approx(
        (smaller, rows["mp4_size"].sum() + rows["flac_size"].sum()), rel=0.2
    )


def test_they_are_those_that_render_makes_afterwards(root: Path, tmp_path: Path) -> None:
    ds, later = root / "DS", Path(shutil.copytree(root / "PLAIN", tmp_path / "LATER"))
    assert digests(ds, "shards") == digests(root / "PLAIN", "shards"), "the base has its bytes with and without"
    done = render(str(later), 48, workers=1)
    assert (done.samples, done.smaller, done.broken, done.made_from) == (3, 1, 0, "sources")
    render(str(later), 32, workers=1)
    assert digests(ds, "fields") == digests(later, "fields")
    manifest = sane(ds)
    assert manifest.equals(pl.read_parquet(later / "manifest.parquet"))
    assert manifest["r48_height"].drop_nulls().to_list() == [48, 48, 48] and manifest["r32_height"].null_count() == 0
    assert json.loads((ds / "fields/r48/field.json").read_text())["settings"]["from"] == "sources"
    assert verify(ds, workers=1).defects == []


KILLED = """
import os, signal, sys
from pathlib import Path
import javisc.compiler.run.local as home
import support_of_this as here
real = home.LocalEngine._commit
def deadly(self, opened, made):
    if opened.unit.shard == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, opened, made)
home.LocalEngine._commit = deadly
here.compiled(Path(sys.argv[1]), "KILLED", renditions=(48, 32))
"""


def test_killed_between_a_field_and_its_base_the_same_command_comes_to_the_same_bytes(root: Path) -> None:
    code = KILLED.replace("support_of_this", Path(__file__).stem)
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (root / "KILLED/fields/r48/000001.tar").is_file() and not (root / "KILLED/fields/r48/field.json").exists()
    compiled(root, "KILLED", renditions=(48, 32))
    assert digests(root / "KILLED", "shards", "fields") == digests(root / "DS", "shards", "fields")


def test_parts_make_theirs_and_the_last_merge_publishes_them(root: Path) -> None:
    for part in (0, 1):
        compiled(root, "PARTS", renditions=(48,), part=(part, 2))
    assert not (root / "PARTS/fields/r48/field.json").exists()
    compiled(root, "PARTS", renditions=(48,), finish=True)
    assert digests(root / "PARTS", "fields/r48") == digests(root / "DS", "fields/r48")


def test_lost_shards_come_back_and_a_build_that_prunes_takes_them_along(root: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(root, work, ignore=shutil.ignore_patterns("PLAIN", "KILLED", "PARTS", "DS"))
    ds = compiled(work, "DS", renditions=(48,))
    good = digests(ds, "fields")
    (ds / "fields/r48/000000.tar").unlink()
    assert "shards rendered again (000000)" in "\n".join(repair(ds, workers=1).lines)
    assert digests(ds, "fields") == good
    write_clip(work / "b.mkv", seconds=1, size=(130, 98), seed=8)
    compiled(work, "DS", renditions=(48,), prune=True)
    sane(ds, deep=True)
    assert pl.read_parquet(ds / "manifest.parquet")["r48_height"].drop_nulls().to_list() == [48, 48, 48]
    (work / "b.mkv").write_bytes((work / "small.mp4").read_bytes())
    with pytest.raises(UserError, match=r"is not what .* was made of .* render --from clips"):
        render(str(ds), 32, made_from="sources", workers=1)


def test_without_the_films_the_clips_are_scaled_and_a_field_is_not_mixed(root: Path, tmp_path: Path) -> None:
    ds = Path(shutil.copytree(root / "PLAIN", tmp_path / "PLAIN"))
    shown = pl.read_parquet(ds / "manifest.parquet")
    shown.with_columns(path=pl.lit("/gone") + pl.col("path")).write_parquet(ds / "manifest.parquet")
    said: list[str] = []
    assert render(str(ds), 48, workers=1, say=said.append).made_from == "clips"
    assert "encoded twice, since not all of its sources are there" in said[0]
    told = json.loads((ds / "fields/r48/field.json").read_text())
    assert (told["settings"]["from"], told["settings"]["scaler"]) == ("clips", "area")
    assert render(str(ds), 48, workers=1).samples == 3, "the same command again keeps to what was begun"
    with pytest.raises(UserError, match="--renditions 48: field r48 .* was made otherwise before"):
        build(from_raw([str(root / "list.csv")], out=str(ds)), RECIPE, ds, BuildOptions(workers=1, renditions=(48,)))
    with pytest.raises(UserError, match="only `javisc build jav` makes them"):
        audio = PRESETS["audio"]
        build(from_raw([str(root)], out=str(tmp_path / "A")), audio, tmp_path / "A", BuildOptions(renditions=(48,)))


LATE = {
    "plain": Spec(),
    "late_sound": Spec(audio_late=0.125),
    "late_picture": Spec("matroska", audio="flac", video_late=0.25),
}


@pytest.mark.parametrize("name", LATE)
def test_flash_and_beep_lie_in_a_rendition_where_they_lie_in_the_clip(tmp_path: Path, name: str) -> None:
    beats = tuple(math.ceil(Fraction(str(beat)) * 24) / 24 for beat in BEATS)
    spec = replace(LATE[name], fps="24", beats=beats, video_options=(("bf", "3"), ("g", "30")))
    write(spec, tmp_path / "clip.mkv")
    recipe = recipe_of(RECIPE, 48)
    clip = transcode(tmp_path / "clip.mkv", RECIPE, tmp_path, renditions=[recipe])
    sound = soundfile.read(clip.files["flac"], dtype="float32")[0]
    flashes = {}
    for end in ("mp4", "r48.mp4"):
        with av.open(str(clip.files[end])) as file:
            bands = [
                (frame.pts * frame.time_base, frame.to_ndarray(format="gray")[-frame.height // 8 :].mean() > 128)
                for frame in file.decode(video=0)
            ]
        flashes[end] = [
            float(at) for (at, lit), (_, before) in zip(bands[1:], bands[:-1], strict=True) if lit and not before
        ]
    assert len(flashes["mp4"]) >= 3 and flashes["r48.mp4"] == flashes["mp4"]
    late = spec.audio_late - spec.video_late
    heard = beep_times(sound, 16000, [flash + late for flash in flashes["r48.mp4"]])
    assert [abs(beep - flash - late) < 0.002 for beep, flash in zip(heard, flashes["r48.mp4"], strict=True)] == [
        True
    ] * len(heard)

"""verify must find what is wrong: every kind of damage is done on purpose and has to be named."""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl
import pytest
import soundfile

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.check.clip import flac_defects, mp4_defects
from javisc.compiler.check.dataset import verify
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError
from support.raw import raw_folder, write_clip

RECIPE = PRESETS["jav"].replace(short_side=32, encoder_preset="ultrafast")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify")
    raw_folder(folder / "raw", 3)
    (folder / "raw" / "bad.mp4").write_text("bad")
    build(from_raw([str(folder / "raw")]), RECIPE, folder / "ds", BuildOptions(workers=2, shard_samples=2))
    return folder / "ds"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x5A
    path.write_bytes(content)


def edit(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    frame = change(pl.read_parquet(path))
    frame.write_parquet(path)


def first_key(ds: Path) -> str:
    return str(pl.read_parquet(ds / "manifest.parquet")["key"][0])


def spoil_member(ds: Path, extension: str) -> None:
    row = pl.read_parquet(ds / "manifest.parquet").row(0, named=True)
    flip(ds / "shards" / f"{row['shard']:06d}.tar", row[f"{extension}_offset"] + row[f"{extension}_size"] // 2)


def rewrite_header(ds: Path) -> None:
    header = json.loads((ds / "dataset.json").read_text())
    header["counts"]["samples"] = 99
    header["digest"] = "0" * 64
    (ds / "dataset.json").write_text(json.dumps(header))


DAMAGE: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "a flipped bit in a video": (lambda ds: spoil_member(ds, "mp4"), ["SHA-256 differs", "CRC-32 differ"]),
    "a flipped bit in a sound": (lambda ds: spoil_member(ds, "flac"), ["SHA-256 differs", "CRC-32 differ"]),
    "a flipped bit in the JSON": (lambda ds: spoil_member(ds, "json"), ["SHA-256 differs", "CRC-32 differ"]),
    "a flipped bit in a tar header": (
        lambda ds: flip(ds / "shards" / "000000.tar", 3),
        ["SHA-256 differs", "no tar header"],
    ),
    "a cut shard": (
        lambda ds: (ds / "shards" / "000000.tar").write_bytes((ds / "shards" / "000000.tar").read_bytes()[:-1500]),
        ["bytes, shards.parquet says", "byte "],
    ),
    "an index of something else": (
        lambda ds: shutil.copyfile(ds / "shards" / "000001.idx", ds / "shards" / "000000.idx"),
        ["000000.idx: SHA-256", "000000.idx: does not say what the tar holds"],
    ),
    "a missing index": (lambda ds: (ds / "shards" / "000001.idx").unlink(), ["shards/000001.idx: missing"]),
    "a stray file": (lambda ds: (ds / "shards" / "000009.tar").write_bytes(b""), ["shards/000009.tar: in no table"]),
    "a header with other counts": (rewrite_header, ["counts.samples is 99", "digest is 000"]),
    "a lost row": (
        lambda ds: edit(ds / "manifest.parquet", lambda frame: frame[1:]),
        ["samples, the manifest has", "in no row of the manifest"],
    ),
    "a doubled row": (
        lambda ds: edit(ds / "manifest.parquet", lambda frame: pl.concat([frame, frame[:1]])),
        ["stands more than once"],
    ),
    "another caption in the manifest": (
        lambda ds: edit(ds / "manifest.parquet", lambda frame: frame.with_columns(text=pl.lit("not said"))),
        ["text is", "the manifest has 'not said'"],
    ),
    "another length in the manifest": (
        lambda ds: edit(ds / "manifest.parquet", lambda frame: frame.with_columns(num_frames=pl.col("num_frames") + 1)),
        ["num_frames is", "decoded frames, the manifest has", "frames last"],
    ),
    "a key of forbidden letters": (
        lambda ds: edit(
            ds / "manifest.parquet", lambda frame: frame.with_columns(key=pl.lit("../Up/") + pl.col("key"))
        ),
        ["is not made of a-z"],
    ),
    "a reject that is a sample": (
        lambda ds: edit(
            ds / "rejected.parquet",
            lambda frame: frame.with_columns(
                key=pl.lit(pl.read_parquet(ds / "manifest.parquet")["key"][0]), reason=pl.lit("odd")
            ),
        ),
        ["is also in the manifest", "'odd' is no documented reason"],
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(sound: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without DALI and torch, whose imports take seconds; the other tests have them.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "support" / "light"), prepend=":")
    shutil.copytree(sound, tmp_path / "ds")
    spoil, expected = DAMAGE[damage]
    spoil(tmp_path / "ds")
    heard: list[str] = []
    found = verify(tmp_path / "ds", workers=1, report=heard.append)
    assert heard == found.defects
    for words in expected:
        assert any(words in defect for defect in heard), (words, heard)
    assert all("\n" not in defect for defect in heard)


def test_a_sound_dataset_has_no_defects(sound: Path) -> None:
    found = verify(sound, workers=2)
    assert found.defects == [] and (found.samples, found.shards) == (3, 2)


def test_what_is_no_dataset_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.json is not there"):
        verify(tmp_path)


def encoded(**changes: Any) -> bytes:
    """A clip in the recipe's form, but for what `changes` say."""
    params = "keyint=12:min-keyint=12:scenecut=0:bframes=0:open-gop=0"
    settings = {"rate": 24, "frames": 24, "params": params, "start": 0, "tags": True, "pix_fmt": "yuv420p"}
    settings |= {"movflags": "+faststart", "profile": "high", "edits": "0", **changes}
    options = {"movflags": settings["movflags"], "use_editlist": settings["edits"]}
    with tempfile.NamedTemporaryFile(suffix=".mp4") as out, av.open(out.name, "w", options=options) as container:
        stream = container.add_stream("libx264", rate=Fraction(settings["rate"]))
        stream.width, stream.height, stream.pix_fmt = 32, 32, settings["pix_fmt"]
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {
            "preset": "superfast",
            "profile": settings["profile"],
            "x264-params": settings["params"],
        }
        if settings["tags"]:
            stream.codec_context.color_range, stream.codec_context.color_primaries = 1, 6
            stream.codec_context.color_trc, stream.codec_context.colorspace = 6, 6
        dice = np.random.default_rng(0)
        for number in range(settings["frames"]):
            frame = av.VideoFrame.from_ndarray(dice.integers(16, 235, (48, 32), dtype=np.uint8), format="yuv420p")
            frame.pts, frame.time_base = number + settings["start"], 1 / Fraction(settings["rate"])
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        container.close()
        return Path(out.name).read_bytes()


ROW = {
    "width": 32,
    "height": 32,
    "num_frames": 24,
    "mp4_offset": 0,
    "num_samples": 16000,
    "audio_fps": 16000,
    "channels": 1,
}


def test_a_clip_in_the_recipes_form_has_no_defects() -> None:
    assert list(mp4_defects(encoded(), ROW, RECIPE)) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rate": 25}, "frame rate is 25"),
        ({"frames": 23}, "23 packets and 23 decoded frames, the manifest has 24"),
        ({"params": "keyint=24:min-keyint=12:scenecut=0:bframes=0"}, "1 frames with a wrong kind of start: 12"),
        ({"params": "keyint=12:min-keyint=1:scenecut=0:bframes=2"}, "reordering is True"),
        ({"tags": False}, "colorspace is 2, 6 is expected"),
        ({"movflags": "-faststart"}, "not laid out for streaming"),
        ({"profile": "baseline"}, "profile is"),
        ({"start": 2, "edits": "1"}, "edit list"),
    ],
)
def test_a_clip_in_another_form_is_named(changes: dict[str, Any], said: str) -> None:
    defects = list(mp4_defects(encoded(**changes), ROW, RECIPE))
    assert any(said in defect for defect in defects), defects


@pytest.mark.parametrize("cut", [0, 7, 100, 500])
def test_rubbish_is_a_defect_and_not_a_crash(cut: int) -> None:
    content = encoded()
    assert list(mp4_defects(content[:cut], ROW, RECIPE))
    assert list(mp4_defects(bytes(cut) + content[cut:], ROW, RECIPE)) or cut == 0
    assert list(flac_defects(content[:cut], ROW, RECIPE))


def test_sounds_of_another_length_or_form() -> None:
    def flac(count: int, rate: int = 16000, channels: int = 1) -> bytes:
        out = io.BytesIO()
        soundfile.write(out, np.zeros((count, channels)), rate, format="FLAC")
        return out.getvalue()

    assert list(flac_defects(flac(16000), ROW, RECIPE)) == []
    assert list(flac_defects(flac(15999), ROW, RECIPE)) == [
        "15999 samples, the manifest has 16000",
        "15999 samples, 24 frames last 16000",
    ]
    assert "48000" in next(flac_defects(flac(16000, 48000), ROW, RECIPE))
    assert "2)" in next(flac_defects(flac(16000, channels=2), ROW, RECIPE))
    assert list(flac_defects(flac(16000), {**ROW, "mp4_offset": None, "num_frames": 7}, RECIPE)) == []


def test_a_still_clip_of_one_frame_verifies(tmp_path: Path) -> None:
    write_clip(tmp_path / "raw" / "short.mp4", seconds=0.5)
    recipe = RECIPE.replace(min_frames=1, max_seconds=0.05)
    build(from_raw([str(tmp_path / "raw")]), recipe, tmp_path / "ds", BuildOptions(workers=1))
    assert pl.read_parquet(tmp_path / "ds" / "manifest.parquet")["num_frames"].to_list() == [1]
    assert verify(tmp_path / "ds", workers=1).defects == []

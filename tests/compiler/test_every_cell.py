"""One clip of which everything is known: each cell of its row, against what was put into the file. No two columns are alike."""

from __future__ import annotations

import hashlib
import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import polars as pl
import pytest

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS

WIDTH, HEIGHT, FRAMES = 80, 48, 60  # two seconds at 30 frames a second
RATE = 22050


def write(path: Path) -> None:
    """Half a second black, half a second of one picture, a second of moving noise; a stereo sound from 0.25 to 1.5 s: half a
    second of a tone, a quarter of silence, half a second of a square wave at full scale."""
    path.parent.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    times = np.arange(RATE // 2) / RATE
    tone = 0.25 * np.sin(2 * np.pi * 440 * times)
    square = np.where(times * 100 % 1 < 0.5, 1.0, -1.0)
    wave = np.concatenate([tone, np.zeros(RATE // 4), square])
    samples = np.round(np.stack([wave, wave]) * 32767).astype(np.int16)
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=Fraction(30), options={"preset": "ultrafast", "bf": "0", "crf": "10"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = out.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        for index in range(FRAMES):
            picture = np.zeros_like(noise) if index < 15 else noise if index < 30 else np.roll(noise, 2 * index, axis=1)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 30)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        sound = av.AudioFrame.from_ndarray(samples.T.reshape(1, -1).copy(), format="s16", layout="stereo")
        sound.sample_rate, sound.pts, sound.time_base = RATE, RATE // 4, Fraction(1, RATE)
        out.mux(audio.encode(sound))
        out.mux(audio.encode(None))


def test_every_cell_of_a_row_is_what_the_file_is(tmp_path: Path) -> None:
    path = tmp_path / "raw/sub/a clip.mov"
    write(path)
    path.with_suffix(".txt").write_text("a beep\nand in other words\n")
    recipe = PRESETS["jav"].replace(encoder_preset="ultrafast")
    build(from_raw([str(tmp_path / "raw")]), recipe, tmp_path / "ds", BuildOptions(workers=1))
    row = pl.read_parquet(tmp_path / "ds/manifest.parquet").row(0, named=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    exact = {
        "path": str(path), "relpath": "sub/a clip.mov", "audio_path": str(path), "text": "a beep",
        "texts": ["a beep", "and in other words"], "audio_text": None, "unpaired_audio_path": None, "label": None,
        "corpus": None, "lang": None, "split": None, "shard": 0, "group": digest, "source_sha256": digest,
        "audio_sha256": None, "clip_start": None, "clip_end": None, "source_bytes": path.stat().st_size,
        "num_frames": 48, "height": HEIGHT, "width": WIDTH, "aspect_ratio": 0.6, "resolution": 3840, "fps": 24.0,
        "audio_fps": 16000, "num_samples": 32000, "channels": 1, "duration": 2.0,
        "source_container": "mov,mp4,m4a,3gp,3g2,mj2", "source_video_codec": "h264", "source_audio_codec": "pcm_s16le",
        "source_pixel_format": "yuv420p", "source_height": HEIGHT, "source_width": WIDTH, "source_rotation": 0,
        "source_fps": 30.0, "source_vfr": False, "source_interlaced": False, "source_hdr": False,
        "source_declared_frames": FRAMES, "source_decoded_frames": FRAMES, "source_video_start": 0.0,
        "source_audio_tracks": 1, "source_sample_rate": RATE, "source_channels": 2, "source_size_changes": None,
        "copied": False, "damaged_pictures": 0.0, "damaged_sound": 0.0, "silent": False, "still": False,
    }  # fmt: skip
    assert {name: row[name] for name in exact} == exact
    near = {
        "source_audio_start": (0.25, 0.002), "source_declared_seconds": (2.0, 0.01), "pad_head": (4000, 32),
        "pad_tail": (8000, 32), "still_ratio": (28 / 59, 0.03), "black_ratio": (12 / 48, 0.03),
        "silence_ratio": (0.5, 0.06), "clipping_ratio": (0.4, 0.02), "loudness": (-4.5, 4.0), "bandwidth": (4500, 3000),
        "motion": (0.1, 0.09), "missing_tail": (0.0, 0.0),
    }  # fmt: skip
    for name, (value, slack) in near.items():
        assert row[name] == pytest.approx(value, abs=slack), name
    assert row["scene_cuts"] >= 1
    shards = pl.read_parquet(tmp_path / "ds/shards.parquet")
    told = "".join(f"{number:06d} {tar} {idx}\n" for number, tar, idx in shards["shard", "sha256", "idx_sha256"].rows())
    header = json.loads((tmp_path / "ds/dataset.json").read_text())
    assert header["digest"] == hashlib.sha256(told.encode()).hexdigest()

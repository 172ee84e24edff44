"""A small compiled dataset whose frames and samples say where they belong: for tests of whatever reads datasets.

Frame i of clip c is a flat grey whose level is a known function of (c, i); audio sample j has a known value too. So a window read
through any path can be checked exactly against the manifest's clock.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import polars as pl
import soundfile
from numpy.typing import NDArray

from javisc.manifests.schema import FORMAT_VERSION, MANIFEST_SCHEMA, REJECTED_SCHEMA, SHARDS_SCHEMA

RATE = 16000


def level(clip: int, frame: int) -> int:
    """The luma of a frame, 40..199: far enough from its neighbours to be told apart after encoding."""
    return 40 + (frame * 13 + clip * 29) % 160


def sound(frames: int, fps: int) -> NDArray[np.float32]:
    """A ramp: sample j has the value j / 2^20, exact in 24 bits, so a window shows where it was cut."""
    return (np.arange(round(frames * RATE / fps)) / 2**20).astype(np.float32)


def video(clip: int, frames: int, height: int, width: int, fps: int) -> bytes:
    """An MP4 in the recipe's form: IDR every 12 frames, no B-frames."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {
            "preset": "ultrafast",
            "crf": "10",
            "x264-params": "keyint=12:min-keyint=12:scenecut=0:bframes=0:open-gop=0",
        }
        chroma = np.full((height // 2, width), 128, np.uint8)
        for number in range(frames):
            luma = np.full((height, width), level(clip, number), np.uint8)
            luma[: height // 2, : width // 2] = 235  # a bright corner at the top left: shows mirroring and cropping
            frame = av.VideoFrame.from_ndarray(np.vstack([luma, chroma]), format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def write(
    folder: Path,
    lengths: Sequence[int],
    *,
    size: tuple[int, int] = (48, 64),
    fps: int = 24,
    per_shard: int = 4,
    hiss: bool = False,
) -> Path:
    """A dataset of one clip per entry of `lengths` (frames). With `hiss` clips sound different: noise, each another."""
    (folder / "shards").mkdir(parents=True)
    rows, shards = [], []
    for shard in range(0, len(lengths), per_shard):
        number = shard // per_shard
        path = folder / "shards" / f"{number:06d}.tar"
        numbers = range(shard, min(shard + per_shard, len(lengths)))
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            members = {}
            for clip in numbers:
                flac = io.BytesIO()
                wave = sound(lengths[clip], fps)
                if hiss:
                    wave = np.random.default_rng(clip).normal(0, 0.1, len(wave)).astype(np.float32)
                soundfile.write(flac, wave, RATE, format="FLAC", subtype="PCM_24")
                contents = {
                    "json": json.dumps({"clip": clip}).encode(),
                    "flac": flac.getvalue(),
                    "mp4": video(clip, lengths[clip], *size, fps),
                }
                for ext, content in contents.items():
                    info = tarfile.TarInfo(f"{clip:08d}.{ext}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                    members[info.name] = content
        with tarfile.open(path) as tar:
            places = {info.name: info.offset_data for info in tar}
        for clip in numbers:
            row = {
                "path": f"/raw/{clip}.mp4", "id": str(clip), "relpath": f"{clip}.mp4", "num_frames": lengths[clip],
                "height": size[0], "width": size[1], "aspect_ratio": size[0] / size[1], "fps": float(fps),
                "resolution": size[0] * size[1], "audio_path": f"/raw/{clip}.mp4", "audio_fps": RATE, "text": f"clip {clip}",
                "texts": [f"clip {clip}"], "key": f"{clip:08d}", "shard": number, "channels": 1,
                "num_samples": round(lengths[clip] * RATE / fps), "duration": lengths[clip] / fps,
                "source_sha256": hashlib.sha256(f"{clip}".encode()).hexdigest(),
            }  # fmt: skip
            for ext in ("json", "flac", "mp4"):
                content = members[f"{clip:08d}.{ext}"]
                row |= {
                    f"{ext}_offset": places[f"{clip:08d}.{ext}"],
                    f"{ext}_size": len(content),
                    f"{ext}_crc32": zlib.crc32(content),
                }
            rows.append(row)
        content = path.read_bytes()
        shards.append(
            {
                "shard": number,
                "samples": len(numbers),
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
    pl.DataFrame(rows, schema=MANIFEST_SCHEMA).write_parquet(folder / "manifest.parquet")
    pl.DataFrame(shards, schema=SHARDS_SCHEMA).write_parquet(folder / "shards.parquet")
    pl.DataFrame(schema=REJECTED_SCHEMA).write_parquet(folder / "rejected.parquet")
    header = {"format_version": FORMAT_VERSION, "recipe": {}, "counts": {"samples": len(rows)}}
    (folder / "dataset.json").write_text(json.dumps(header))
    return folder

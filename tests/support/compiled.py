"""A small compiled dataset whose frames and samples say where they belong: for tests of whatever reads datasets.

Frame i of clip c is a flat grey whose level is a known function of (c, i); audio sample j has a known value too. So a window read
through any path can be checked exactly against the manifest's clock. The clips are made here; what publishes every build
publishes them.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from javisc.manifests.schema import MANIFEST_SCHEMA
from support.tables import publish

RATE = 16000


def level(clip: int, frame: int) -> int:
    """The luma of a frame, 40..199: far enough from its neighbours to be told apart after encoding."""
    return 40 + (frame * 13 + clip * 29) % 160


def sound(frames: int, fps: int) -> NDArray[np.float32]:
    """A ramp: sample j has the value j / 2^20, exact in 24 bits, so a window shows where it was cut."""
    return (np.arange(round(frames * RATE / fps)) / 2**20).astype(np.float32)


@lru_cache(256)
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
    samples = []
    for clip, length in enumerate(lengths):
        wave = sound(length, fps)
        if hiss:
            wave = np.random.default_rng(clip).normal(0, 0.1, len(wave)).astype(np.float32)
        flac = io.BytesIO()
        soundfile.write(flac, wave, RATE, format="FLAC", subtype="PCM_24")
        mp4 = video(clip, length, *size, fps)
        digest = hashlib.sha256(mp4).hexdigest()  # it is its own source
        row = {
            "path": f"/raw/{clip}.mp4", "id": str(clip), "relpath": f"{clip}.mp4", "num_frames": length, "height": size[0],
            "width": size[1], "aspect_ratio": size[0] / size[1], "fps": float(fps), "resolution": size[0] * size[1],
            "audio_path": f"/raw/{clip}.mp4", "audio_fps": RATE, "text": f"clip {clip}", "texts": [f"clip {clip}"],
            "key": f"{clip:08d}", "shard": clip // per_shard, "channels": 1, "num_samples": len(wave),
            "duration": length / fps, "source_sha256": digest, "source_bytes": len(mp4), "group": digest,
        }  # fmt: skip
        samples.append((dict.fromkeys(MANIFEST_SCHEMA) | row, {"flac": flac.getvalue(), "mp4": mp4}))
    return publish(folder, samples)

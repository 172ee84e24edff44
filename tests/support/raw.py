"""Tiny raw clips with sound, and folders of everything that can be wrong with them."""

from __future__ import annotations

import os
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

#: Names that break tools which pass them through a shell, a CSV or a URL. The last one has no suffix, so it is no video.
AWKWARD = (
    "with space.mp4",
    "quo'te\".mp4",
    "new\nline.mp4",
    "видео 動画 🎬.mp4",
    "-rf.mp4",
    "a%20b;c&d$(e).MP4",
    ".hidden.mp4",
    ".mp4",
)


def write_clip(
    path: Path, *, seconds: float = 0.5, fps: int = 24, size: tuple[int, int] = (64, 48), seed: int = 0
) -> Path:
    """Write a clip of moving noise and a tone, H.264 or MPEG-4 with AAC or MP3 as the container has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed)
    width, height = size
    old = path.suffix.lower() == ".avi"
    with av.open(str(path), "w", format={".m2ts": "mpegts", ".ts": "mpegts"}.get(path.suffix.lower())) as out:
        video = out.add_stream("mpeg4" if old else "libx264", rate=Fraction(fps))
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.thread_count = 1
        if not old:
            video.options = {"preset": "ultrafast"}
        audio = out.add_stream("mp3" if old else "aac", rate=22050, layout="mono")
        picture = noise.integers(0, 255, (height, width, 3), dtype=np.uint8)
        for index in range(round(seconds * fps)):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, index, axis=1), format="rgb24")
            frame.pts = index
            frame.time_base = Fraction(1, fps)
            out.mux(video.encode(frame))
        out.mux(video.encode(None))
        times = np.arange(round(seconds * 22050)) / 22050
        wave = (0.3 * np.sin(2 * np.pi * (200 + 10 * (seed % 50)) * times)).astype(np.float32)
        sound = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts = 22050, 0
        out.mux(audio.encode(sound))
        out.mux(audio.encode(None))
    return path


def raw_folder(root: Path, count: int, *, seconds: float = 0.5) -> Path:
    """`count` different clips in nested folders, some with captions beside them."""
    for index in range(count):
        suffix = (".mp4", ".MKV", ".avi", ".mov")[index % 4]
        clip = write_clip(root / f"part {index % 3}" / f"clip {index:03d}{suffix}", seconds=seconds, seed=index)
        if index % 3 == 0:
            clip.with_suffix(".txt").write_text(f"clip number {index}\nand in other words\n")
        elif index % 3 == 1:
            clip.with_suffix(".json").write_text(f'{{"caption": ["clip {index} in JSON"]}}')
    return root


def broken_folder(root: Path, good: Path) -> int:
    """Everything that is named like a video and is not one, made of a good clip. Returns how many inputs that are."""
    root.mkdir(parents=True, exist_ok=True)
    content = good.read_bytes()
    dice = random.Random(0)
    for part in range(1, 8):
        (root / f"truncated {part}.mp4").write_bytes(content[: len(content) * part // 8])
    for flips in (1, 10, 100):
        spoiled = bytearray(content)
        for _ in range(flips):
            spoiled[dice.randrange(len(spoiled))] ^= 1 << dice.randrange(8)
        (root / f"flipped {flips}.mp4").write_bytes(spoiled)
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("this is no video\n" * 50)
    (root / "zeros.webm").write_bytes(bytes(5000))
    (root / "folder.mp4").mkdir()
    (root / "folder.mp4" / "inside.mp4").write_bytes(content)
    (root / "dangling.mp4").symlink_to(root / "nowhere.mp4")
    (root / "self.mp4").symlink_to(root / "self.mp4")
    (root / "loop").symlink_to(root, target_is_directory=True)
    os.mkfifo(root / "pipe.mp4")
    for name in AWKWARD:
        (root / name).write_bytes(content)
    with open(os.fsencode(root) + b"/undecodable \xff\xfe.mp4", "wb") as stream:  # noqa: PTH123 (the name is no text)
        stream.write(content)
    return 7 + 3 + 3 + 2 + 2 + 1 + (len(AWKWARD) - 1) + 1

"""A video whose face is known in every frame, and LRS3's text for it."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, SIDE = 320, 240, 60
YOUTUBE = "C8zY0oAdQrs"


def level(frame: int) -> int:
    """The face's luma in a frame."""
    return 60 + 2 * (frame % 60)


def corner(frame: int) -> tuple[int, int]:
    """Left and top of the face in a frame."""
    return 20 + 3 * frame % 180, 10 + 2 * frame % 120


def write_video(path: Path, frames: int = 60, codec: str = "ffv1", **options: str) -> Path:
    """A grey square that moves over black and grows lighter, each again every sixty frames, with a tone."""
    with av.open(str(path), "w") as out:
        picture = out.add_stream(codec, rate=25, options=options)
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = out.add_stream("pcm_s16le", rate=16000, layout="mono")
        for number in range(frames):
            luma = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
            luma[:HEIGHT] = 16
            left, top = corner(number)
            luma[top : top + SIDE, left : left + SIDE] = level(number)
            frame = av.VideoFrame.from_ndarray(luma, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(picture.encode(frame))
            times = np.arange(640 * number, 640 * (number + 1))
            audio = av.AudioFrame.from_ndarray((8000 * np.sin(times * 0.2)).astype(np.int16)[None], "s16", "mono")
            audio.sample_rate, audio.pts, audio.time_base = 16000, 640 * number, Fraction(1, 16000)
            out.mux(sound.encode(audio))
        out.mux(picture.encode(None))
        out.mux(sound.encode(None))
    return path


def write_meta(folder: Path, first: int, last: int, side: int = SIDE, youtube: str = YOUTUBE) -> Path:
    """LRS3's text, in its own form, for the frames from `first` to `last`."""
    rows = "".join(
        f"{n:06d} \t{corner(n)[0] / WIDTH:.6f} \t{corner(n)[1] / HEIGHT:.6f} \t{side / WIDTH:.6f} \t{side / HEIGHT:.6f}\n"
        for n in range(first, last + 1)
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{first:05d}.txt"
    path.write_text(f"Text:  A\nConf:  3\nRef:   {youtube}\n\nFRAME \tX \tY \tW \tH\n{rows}\n")
    return path

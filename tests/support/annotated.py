"""Drawn videos whose objects' masks are known in every frame, annotated as SA-V's: run lengths, six times a second."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from javisc.trainer.use.prior.objects import rle

Masks = NDArray[np.bool_]


def moving(seed: int, frames: int, height: int = 120, width: int = 160, side: float = 18.0) -> Masks:
    """[T, H, W]: an ellipse with a bite out of it that goes a curved way, turns, and grows and shrinks."""
    draw = np.random.default_rng(seed)
    time = np.arange(frames) / 24
    phase, speed = draw.uniform(0, 6.28, 4), draw.uniform(0.6, 1.3, 4)
    x = width * (0.5 + 0.28 * np.sin(2 * np.pi * speed[0] * time / 2 + phase[0]))
    y = height * (0.5 + 0.25 * np.sin(2 * np.pi * speed[1] * time / 2 + phase[1]))
    turn = phase[2] + speed[2] * time
    wide = side * (1 + 0.25 * np.sin(2 * np.pi * speed[3] * time / 2 + phase[3]))
    rows, columns = np.mgrid[:height, :width]
    made = np.zeros((frames, height, width), bool)
    for number in range(frames):
        u, v = columns - x[number], rows - y[number]
        a = np.cos(turn[number]) * u + np.sin(turn[number]) * v
        b = -np.sin(turn[number]) * u + np.cos(turn[number]) * v
        whole = (a / wide[number]) ** 2 + (b / (0.6 * wide[number])) ** 2 <= 1
        made[number] = whole & ~((a - 0.7 * wide[number]) ** 2 + b**2 <= (0.3 * wide[number]) ** 2)
    return made


def write(
    path: Path,
    objects: list[Masks],
    *,
    fps: int = 24,
    every: int = 4,
    kind: str = "manual",
    colours: tuple[int, ...] = (220, 140, 90, 180),
) -> Path:
    """A video of the objects (each of one grey on a gradient) and its annotation, every `every` frames."""
    frames, height, width = objects[0].shape
    path.parent.mkdir(parents=True, exist_ok=True)
    back = np.linspace(20, 60, width).astype(np.uint8)[None].repeat(height, 0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "12"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(frames):
            picture = back.copy()
            for masks, colour in zip(objects, colours, strict=False):
                picture[masks[number]] = colour
            frame = av.VideoFrame.from_ndarray(np.repeat(picture[..., None], 3, -1), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    annotate(path, objects, fps=fps, every=every, kind=kind)
    return path


def annotate(path: Path, objects: list[Masks], *, fps: int = 24, every: int = 4, kind: str = "manual") -> None:
    """V_manual.json beside a video."""
    frames, height, width = objects[0].shape
    areas = [float(masks.any((1, 2)) @ masks.sum((1, 2)) / max(1, masks.any((1, 2)).sum())) for masks in objects]
    told = {
        "video_id": path.stem, "video_duration": frames / fps, "video_frame_count": float(frames),
        "video_height": float(height), "video_width": float(width), "video_resolution": float(height * width),
        "masklet": [[rle.encode(masks[number]) for masks in objects] for number in range(0, frames, every)],
        "masklet_id": list(range(len(objects))), "masklet_size_abs": areas,
        "masklet_size_rel": [area / (height * width) for area in areas], "masklet_num": len(objects),
    }  # fmt: skip
    path.with_name(f"{path.stem}_{kind}.json").write_text(json.dumps(told))

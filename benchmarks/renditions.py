"""Renditions and recipes side by side: bytes, CPU of the encoder, PSNR and SSIM, and how fast a loader's pictures are decoded.

    python benchmarks/renditions.py CLIP…      # videos of 720p or so; everything on one thread, one after the other, in turns

Quality is that of the pictures a 240p bucket holds: luma, against the source's frames resized by area. A rendition is scaled
from the source's frames, as `javisc build --renditions` does (its cost is what it adds to the build), or from the compiled clip,
as `javisc render --from clips` does (its cost has the clip's decoding).
"""

from __future__ import annotations

import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from javisc.compiler.fields.render import scaled
from javisc.compiler.media.encode import Converter, Encoder
from javisc.compiler.media.orientation import Orientation
from javisc.compiler.media.renditions import Rendition
from javisc.compiler.recipe import PRESETS, Recipe
from javisc.compiler.store.renditions import recipe_of

BUCKET = (240, 426)
FRAMES = 96
TURNS = 3
BASE = PRESETS["jav"]
RECIPES: dict[str, Recipe] = {
    "jav": BASE,
    "jav --tune none": BASE.replace(tune=None),
    "jav --gop 24": BASE.replace(gop=24),
    "archive": PRESETS["archive"],
    "frame": PRESETS["frame"],
    "hevc": PRESETS["hevc"],
    "av1": PRESETS["av1"],
}
#: (shorter side, CRF, scaler, of the source's frames and not of the clip's)
RENDITIONS = {
    f"r{side}, CRF {crf:g}, {scaler}, of {'the source' if of else 'the clip'}": (side, crf, scaler, of)
    for side, crf, scaler, of in (
        (240, 18.0, "bicubic", False),
        (240, 18.0, "area", False),
        (240, 10.0, "area", False),
        (240, 18.0, "bicubic", True),
        (240, 18.0, "area", True),
        (240, 16.0, "area", True),
        (240, 14.0, "area", True),
        (240, 12.0, "area", True),
        (240, 10.0, "area", True),
        (256, 14.0, "area", True),
    )
}


def source(path: str) -> list[av.VideoFrame]:
    """The first frames of a file."""
    with av.open(path) as file:
        return [frame for _, frame in zip(range(FRAMES), file.decode(video=0), strict=False)]


def write(frames: list[av.VideoFrame], recipe: Recipe, out: Path) -> float:
    """Encode frames by a recipe; CPU seconds of it."""
    converter = Converter(recipe, Orientation(), Fraction(1))
    made = [converter.convert(frame) for frame in frames]
    began = time.process_time()
    assert converter.size is not None
    encoder = Encoder(out, recipe, *converter.size)
    for frame in made:
        encoder.add(frame)
    encoder.close()
    return time.process_time() - began


def smaller(frames: list[av.VideoFrame], recipe: Recipe, scaler: str, out: Path) -> float:
    """Write a rendition of the source's frames, as a build does; CPU seconds that it adds to the build."""
    converter = Converter(BASE, Orientation(), Fraction(1))
    made = [converter.convert(frame) for frame in frames]
    began = time.process_time()
    rendition = Rendition(out, recipe, scaler)
    for number, frame in enumerate(made):
        frame.pts, frame.time_base = number, 1 / recipe.rate
        rendition.add(frame)
    rendition.close()
    return time.process_time() - began


def decoded(clip: Path) -> float:
    """CPU seconds of decoding a clip and scaling it to the bucket's RGB by swscale."""
    began = time.process_time()
    with av.open(str(clip)) as file:
        file.streams.video[0].codec_context.thread_count = 1
        for frame in file.decode(video=0):
            frame.to_ndarray(format="rgb24", width=BUCKET[1], height=BUCKET[0], interpolation="BILINEAR")
    return time.process_time() - began


def luma(frames: list[av.VideoFrame]) -> NDArray[np.float64]:
    """[frames, H, W] at the bucket's size, resized by area."""
    return np.stack(
        [f.to_ndarray(format="gray", width=BUCKET[1], height=BUCKET[0], interpolation="AREA") for f in frames]
    ).astype(float)


def quality(wanted: NDArray[np.float64], clip: Path) -> tuple[float, float]:
    """PSNR in dB and SSIM (8 x 8 blocks, Wang et al. 2004) of a clip's pictures."""
    with av.open(str(clip)) as file:
        found = luma(list(file.decode(video=0)))
    psnr = 10 * np.log10(255**2 / np.mean((wanted - found) ** 2))
    n, h, w = wanted.shape
    cut = [x[:, : h // 8 * 8, : w // 8 * 8].reshape(n, h // 8, 8, w // 8, 8).swapaxes(2, 3) for x in (wanted, found)]
    a, b = (x.mean(axis=(3, 4)) for x in cut)
    va, vb = (x.var(axis=(3, 4)) for x in cut)
    both = (cut[0] * cut[1]).mean(axis=(3, 4)) - a * b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(psnr), float((((2 * a * b + c1) * (2 * both + c2)) / ((a**2 + b**2 + c1) * (va + vb + c2))).mean())


def main(paths: list[str]) -> None:
    """Measure and print the table."""
    rows: dict[str, list[list[float]]] = {name: [] for name in (*RECIPES, *RENDITIONS)}
    for path in paths:
        frames = source(path)
        wanted = luma(frames)
        with tempfile.TemporaryDirectory() as folder:
            clips = {name: Path(folder, f"{number}.mp4") for number, name in enumerate(rows)}
            costs: dict[str, list[float]] = {name: [] for name in rows}
            reads: dict[str, list[float]] = {name: [] for name in rows}
            for _ in range(TURNS):
                for name, recipe in RECIPES.items():
                    costs[name].append(write(frames, recipe, clips[name]))
                for name, (side, crf, scaler, of_source) in RENDITIONS.items():
                    recipe = recipe_of(BASE, side, crf)
                    if of_source:
                        costs[name].append(smaller(frames, recipe, scaler, clips[name]))
                        continue
                    began = time.process_time()
                    scaled(clips["jav"], clips[name], recipe, len(frames), scaler)
                    costs[name].append(time.process_time() - began)
                for name, clip in clips.items():
                    reads[name].append(decoded(clip))
            for name, clip in clips.items():
                rows[name].append(
                    [clip.stat().st_size, min(costs[name]), min(reads[name]), *quality(wanted, clip), len(frames)]
                )
    print(
        "| | bytes | encode CPU | decode and scale to 240p | frames/s of one core | PSNR | SSIM |\n|---|---|---|---|---|---|---|"
    )
    base = np.array(rows["jav"])
    for name, found in rows.items():
        here = np.array(found)
        size, cost = here[:, 0].sum() / base[:, 0].sum(), here[:, 1].sum() / base[:, 1].sum()
        plus = "+" if name in RENDITIONS else ""
        speed = base[:, 2].sum() / here[:, 2].sum()
        rate = here[:, 5].sum() / here[:, 2].sum()
        told = [f"{plus}{size:.2f}", f"{plus}{cost:.2f}", f"{speed:.1f}×", f"{rate:.0f}"]
        print("|", " | ".join([name, *told, f"{here[:, 3].mean():.2f}", f"{here[:, 4].mean():.4f}"]), "|")


if __name__ == "__main__":
    main(sys.argv[1:])

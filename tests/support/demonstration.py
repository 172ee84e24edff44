"""A few of the demonstration's clips, compiled, with objects annotated as SA-V's: what `javisc build prior` is tried on."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.demo.jav import write_scene
from javisc.compiler.demo.scenes import KINDS, scene
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from support.annotated import annotate, moving

CLIPS, SECONDS = 4, 1.5
#: Frames a second of the raw clips, and from one annotation to the next: six annotations a second.
RATES = ((30, 5), (24, 4), (24, 4), (30, 5))


def write(root: Path) -> Path:
    """`root`/raw, films with their captions beside them and an annotated object in each, and `root`/dataset; returns `root`."""
    for number in range(CLIPS):
        fps, every = RATES[number]
        made = scene(number, kind=KINDS[number % 3 == 2], seconds=SECONDS, fps=fps)
        path = root / f"raw/{made.kind}_{number:03d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_scene(made, path)
        annotate(path, [moving(number, made.frames, *made.size, side=44)], fps=fps, every=every)
    recipe = PRESETS["jav"].replace(encoder_preset="ultrafast", short_side=48)
    build(from_raw([str(root / "raw")], captions=None), recipe, root / "dataset", BuildOptions(workers=1))
    manifest = root / "dataset/manifest.parquet"
    pl.read_parquet(manifest).with_columns(split=pl.lit("train")).write_parquet(manifest)
    return root

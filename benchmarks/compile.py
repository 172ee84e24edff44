"""Compiling clips: javisc beside the recipe it replaces and the best hand-written script, on the same clips in one go.

    python -P benchmarks/compile.py CLIPS... [--copies 4] [--workers 2]          the three contestants
    python -P benchmarks/compile.py CLIPS... --rounds 5                          time and CPU alone, in turn, beside the script's
    python -P benchmarks/compile.py CLIPS... --grid                              encoder presets and CRFs
    python -P benchmarks/compile.py CLIPS... --soak 500                          memory of the workers over many clips
    python -P benchmarks/compile.py --audio                                      sounds without pictures: see audio.py

  build     `javisc build jav`, the whole command: scan, plan, compile, shards, index, digests, manifest
  javisc    `transcode` over a pool of spawned workers: 24/1 grid, H.264 in closed GOPs of 12, FLAC, digests and quality columns
  script    `xargs -P` over one ffmpeg call with javisc's encoder settings (tune, profile, CAVLC, one thread), the same colour
            conversion, and FLAC of 16 bit, 16 kHz, mono
  old       per clip: ffprobe, `ffmpeg -r 24` with default x264, frames counted by decoding, `ffmpeg -ar 16000` to WAV

PSNR and SSIM are taken in R'G'B' (SSIM in grey) against the source frame that fits best among those around the tick, so that they
measure compression and not the choice of frames. A/V shift comes from flash-and-beep clips whose truth is known by construction.
CPU seconds are user + system of all processes. Needs the system's ffmpeg for `script` and `old`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import click
import numpy as np
import soundfile
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from cost import in_turn, spent, table

from javisc.compiler.media.clock import nearest_tick
from javisc.compiler.media.encode import matrix_of
from javisc.compiler.media.transcode import transcode
from javisc.compiler.recipe import PRESETS, Recipe
from javisc.manifests.io import Dataset, shard_path
from support.media import BEATS, Spec, beep_times, decode_pictures, write

Image = NDArray[np.float32]


@dataclass
class Result:
    """What one contestant did."""

    wall: float
    cpu: float
    size: int
    outputs: list[tuple[Path, Path]]  # (video, sound) of each clip


def measured(work: Callable[[], list[tuple[Path, Path]]]) -> Result:
    """Run `work` and take the time of this process and of its children."""

    wall, cpu, outputs = spent(work)
    return Result(wall, cpu, sum(p.stat().st_size for pair in outputs for p in pair), outputs)


def _one(job: tuple[str, str, dict[str, object]]) -> tuple[Path, Path]:
    source, out, settings = job
    scratch = Path(out)
    scratch.mkdir(parents=True)
    clip = transcode(Path(source), Recipe.from_json(settings), scratch)
    assert clip.mp4 is not None and clip.flac is not None
    return clip.mp4, clip.flac


def run_javisc(clips: list[Path], out: Path, recipe: Recipe, workers: int) -> list[tuple[Path, Path]]:
    """Spawned workers, one clip each at a time."""
    jobs = [(str(clip), str(out / str(number)), recipe.to_json()) for number, clip in enumerate(clips)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_one, jobs))


def _folder_of(clips: list[Path], raw: Path) -> None:
    raw.mkdir(parents=True)
    for number, clip in enumerate(clips):
        suffix = {".matroska": ".mkv", ".mpegts": ".ts"}.get(clip.suffix, clip.suffix)
        shutil.copyfile(clip, raw / f"{number:06d}{suffix}")


def _build_command(raw: Path, dataset: Path, recipe: Recipe, workers: int) -> list[str]:
    options = {"--workers": workers, "--crf": recipe.crf, "--encoder-preset": recipe.encoder_preset}
    arguments = [str(part) for pair in options.items() for part in pair]
    return [sys.executable, "-P", "-m", "javisc", "build", "jav", str(raw), "--out", str(dataset), *arguments]


def run_build(clips: list[Path], out: Path, recipe: Recipe, workers: int) -> list[tuple[Path, Path]]:
    """The command itself; its samples are taken out of the shards again to be looked at."""
    _folder_of(clips, out / "raw")
    subprocess.run(_build_command(out / "raw", out / "ds", recipe, workers), check=True, capture_output=True)
    outputs = {}
    for row in Dataset.open(out / "ds").located().collect().iter_rows(named=True):
        with Path(shard_path(row["dataset"], row["shard"])).open("rb") as shard:
            for ext in ("mp4", "flac"):
                shard.seek(row[f"{ext}_offset"])
                (out / f"{row['id']}.{ext}").write_bytes(shard.read(row[f"{ext}_size"]))
        outputs[int(row["id"])] = (out / f"{row['id']}.mp4", out / f"{row['id']}.flac")
    return [outputs[number] for number in range(len(clips))]


def soak(clips: list[Path], count: int, workers: int, recipe: Recipe, scratch: Path) -> str:
    """Build `count` clips and sample the memory of every worker once a second."""
    _folder_of([clips[number % len(clips)] for number in range(count)], scratch / "raw")
    sizes: list[list[float]] = []
    begin = time.monotonic()
    with subprocess.Popen(
        _build_command(scratch / "raw", scratch / "ds", recipe, workers),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as build:
        while build.poll() is None:
            sizes.append([_resident(pid) for pid in _children(build.pid)])
            time.sleep(1)
    wall = time.monotonic() - begin
    samples = Dataset.open(scratch / "ds").manifest().collect().height
    rows = [["share of the run", *(f"worker {n}, MB" for n in range(workers))]]
    steady = [row for row in sizes if len(row) == workers]
    for tenth in range(1, 10):
        rows.append([f"{tenth}0 %", *(f"{size:.0f}" for size in steady[len(steady) * tenth // 10])])
    return f"{samples} samples of {count} clips in {wall:.0f} s\n\n{table(rows)}"


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _resident(pid: int) -> float:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0.0


def _xargs(lines: list[str], workers: int) -> None:
    subprocess.run(
        ["xargs", "-P", str(workers), "-d", "\n", "-n", "1", "bash", "-ec"],
        input="\n".join(lines),
        text=True,
        check=True,
    )


@cache
def _matrix(clip: Path) -> str:
    with av.open(str(clip)) as container:
        return matrix_of(next(container.decode(video=0)))


def run_script(clips: list[Path], out: Path, recipe: Recipe, workers: int) -> list[tuple[Path, Path]]:
    """One ffmpeg call a clip."""
    out.mkdir(parents=True)
    lines, outputs = [], []
    for number, clip in enumerate(clips):
        filters = "fps=24"
        if _matrix(clip) == "bt709":
            filters += (
                ",colorspace=iall=bt709:ispace=bt709:space=smpte170m:primaries=bt709:trc=bt709:range=tv:format=yuv420p"
            )
        video, sound = out / f"{number}.mp4", out / f"{number}.flac"
        gop, cabac = recipe.gop, int(recipe.tune != "fastdecode")
        tune = "" if recipe.tune is None else f" -tune {recipe.tune}"
        x264 = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:open-gop=0:cabac={cabac}:8x8dct=1:threads=1"
        call = (
            f"ffmpeg -v error -nostdin -y -threads 1 -i {shlex.quote(str(clip))} -filter_threads 1"
            f" -map 0:v:0 -vf {filters} -pix_fmt yuv420p"
            f" -c:v libx264 -preset {recipe.encoder_preset}{tune} -profile:v high -crf {recipe.crf:g} -x264-params {x264}"
            f" -threads 1 -colorspace smpte170m -movflags +faststart {video}"
            f" -map 0:a:0 -ac 1 -ar 16000 -c:a flac -sample_fmt s16 {sound}"
        )
        lines.append(call)
        outputs.append((video, sound))
    _xargs(lines, workers)
    return outputs


def run_old(clips: list[Path], out: Path, recipe: Recipe, workers: int) -> list[tuple[Path, Path]]:
    """The separate passes of the data preparation that javisc replaces."""
    out.mkdir(parents=True)
    lines, outputs = [], []
    for number, clip in enumerate(clips):
        video, sound, source = out / f"{number}.mp4", out / f"{number}.wav", shlex.quote(str(clip))
        count = "ffprobe -v error -count_frames -select_streams v:0 -show_entries stream=nb_read_frames -of csv"
        lines.append(
            f"ffprobe -v error -show_streams -of json {source} >/dev/null; "
            f"ffmpeg -v error -nostdin -y -i {source} -r 24 {video}; "
            f"{count} {video} >/dev/null; ffmpeg -v error -nostdin -y -i {source} -vn -ar 16000 {sound}"
        )
        outputs.append((video, sound))
    _xargs(lines, workers)
    return outputs


CONTESTANTS = {"build": run_build, "javisc": run_javisc, "script": run_script, "old": run_old}


def rgb_of(frame: av.VideoFrame) -> Image:
    """R'G'B' by the frame's own matrix, (H, W, 3)."""
    space = "ITU709" if matrix_of(frame) == "bt709" else "ITU601"
    return frame.to_ndarray(format="rgb24", src_colorspace=space, dst_colorspace=space, interpolation="BICUBIC").astype(
        np.float64
    )


def ssim(a: Image, b: Image) -> float:
    """Structural similarity of two grey images, mean over 8 x 8 windows (Wang et al. 2004, K1 0.01, K2 0.03)."""

    def windows(x: Image) -> Image:
        high, wide = x.shape[0] // 8 * 8, x.shape[1] // 8 * 8
        return x[:high, :wide].reshape(high // 8, 8, wide // 8, 8).transpose(0, 2, 1, 3).reshape(-1, 64)

    p, q = windows(a), windows(b)
    mp, mq = p.mean(axis=1), q.mean(axis=1)
    vp, vq, cov = p.var(axis=1), q.var(axis=1), ((p - mp[:, None]) * (q - mq[:, None])).mean(axis=1)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))).mean())


def fidelity(source: Path, video: Path, every: int = 20, reach: int = 4) -> tuple[float, float]:
    """Mean PSNR (dB) and SSIM of every n-th tick against the best of the source frames within `reach` ticks."""
    with av.open(str(video)) as container:
        ticks = {n: rgb_of(frame) for n, frame in enumerate(container.decode(video=0)) if n % every == every // 2}
    best: dict[int, tuple[float, float]] = {}
    with av.open(str(source)) as container:
        stream, first = container.streams.video[0], None
        for frame in container.decode(stream):
            if frame.pts is None or frame.time_base is None:
                continue
            time_ = frame.pts * frame.time_base
            first = time_ if first is None else first
            tick = nearest_tick(time_ - first, Fraction(24))
            close = [n for n in range(tick - reach, tick + reach + 1) if n in ticks]
            original = rgb_of(frame) if close else None
            for n in close:
                assert original is not None
                image = ticks[n]
                original = original[: image.shape[0], : image.shape[1]]
                error = max(float(((image - original) ** 2).mean()), 1e-3)
                if n not in best or error < best[n][0]:
                    best[n] = (error, ssim(original.mean(axis=2), image.mean(axis=2)))
    scores = [(10 * np.log10(255**2 / error), likeness) for error, likeness in best.values()]
    psnr, likeness = np.mean(scores, axis=0)
    return float(psnr), float(likeness)


SHIFT_SPECS = {
    "mp4 30 fps": Spec(fps="30", video_options=(("bf", "3"),)),
    "mp4 60 fps": Spec(fps="60", video_options=(("bf", "3"),)),
    "mp4 25 fps": Spec(fps="25", video_options=(("bf", "2"),)),
    "mov 29.97 fps": Spec("mov", fps="30000/1001", video_options=(("bf", "3"),)),
    "mkv 23.976 fps": Spec("matroska", fps="24000/1001", video_options=(("bf", "3"),)),
    "ts 25 fps": Spec("mpegts", fps="25", video_options=(("bf", "2"),)),
    "webm 30 fps": Spec(
        "webm", "libvpx-vp9", "libopus", "30", 48000, video_options=(("deadline", "realtime"), ("cpu-used", "8"))
    ),
    "mp4 sound 0.4 s late": Spec(fps="30", audio_late=0.4, video_options=(("bf", "3"),)),
    "mp4 picture 0.5 s late": Spec(fps="30", video_late=0.5, video_options=(("bf", "3"),)),
    "ts sound 0.4 s late": Spec("mpegts", audio_late=0.4, video_options=(("bf", "2"),)),
}


def shift(spec: Spec, video: Path, sound: Path) -> float:
    """Seconds by which the sound is late against the picture, for a reader of frame k at k / 24 and sample j at j / rate."""
    numbers = np.maximum.accumulate(decode_pictures(video).numbers)
    times = [float(time_) for time_ in spec.frame_times]
    seen = range(numbers[0] + 1, min(numbers[-1] + 1, len(times)))
    late = np.mean([np.searchsorted(numbers, number) / 24 - times[number] for number in seen])
    samples, rate = soundfile.read(sound, dtype="float32", always_2d=True)
    offset = spec.audio_late - spec.video_late
    expected = [beat + offset for beat in BEATS if beat + offset > 0.3]
    found = np.array(beep_times(np.ascontiguousarray(samples.mean(axis=1)), rate, expected, 0.22))
    return float(np.nanmean(found - expected) - late)


def compare(clips: list[Path], copies: int, workers: int, recipe: Recipe, scratch: Path) -> str:
    """The three contestants on `copies` copies of every clip, and their A/V shifts."""
    many = clips * copies
    rows = [["", "wall s", "CPU s", "cores busy", "MB", "PSNR dB", "SSIM", "mean abs A/V shift ms"]]
    shifts = [["A/V shift, ms", *SHIFT_SPECS]]
    known = {
        name: write(spec, scratch / f"{number}.{spec.container}")
        for number, (name, spec) in enumerate(SHIFT_SPECS.items())
    }
    assert all(map(_matrix, many))  # which the script's author knows: not to be measured
    for name, run in CONTESTANTS.items():
        result = measured(lambda run=run, name=name: run(many, scratch / name, recipe, workers))
        scores = np.array([fidelity(clip, video) for clip, (video, _) in zip(clips, result.outputs)])
        pairs = run(list(known.values()), scratch / f"{name}-shift", recipe, workers)
        offsets = [shift(spec, *pair) * 1000 for spec, pair in zip(SHIFT_SPECS.values(), pairs)]
        shifts.append([name, *(f"{offset:+.1f}" for offset in offsets)])
        busy, size = result.cpu / result.wall, result.size / 1e6
        used = [f"{value:.{digits}f}" for value, digits in zip((result.wall, result.cpu, busy, size), (1, 1, 2, 1))]
        psnr, likeness = scores.mean(axis=0)
        rows.append([name, *used, f"{psnr:.2f}", f"{likeness:.4f}", f"{np.abs(offsets).mean():.1f}"])
        shutil.rmtree(scratch / name)
        shutil.rmtree(scratch / f"{name}-shift")
    return f"{table(rows)}\n\n{table([list(column) for column in zip(*shifts)])}"


def costs(clips: list[Path], workers: int, recipe: Recipe, scratch: Path, rounds: int) -> str:
    """Wall and CPU seconds of the command, of the command with a rendition and of the script; nothing else is counted."""
    raw = scratch / "raw"
    _folder_of(clips, raw)
    files = sorted(raw.iterdir())
    assert all(map(_matrix, files))

    def built(out: Path, *more: str) -> None:
        subprocess.run([*_build_command(raw, out, recipe, workers), *more], check=True, capture_output=True)

    contestants = {
        "build": built,
        "build --renditions 240": lambda out: built(out, "--renditions", "240"),
        "script": lambda out: run_script(files, out, recipe, workers),
    }
    return f"{len(files)} clips\n\n{table(in_turn(contestants, scratch, rounds, 'script'))}"


def grid(clips: list[Path], recipe: Recipe, scratch: Path) -> str:
    """Encoder presets and CRFs, one process; and the old recipe's fidelity as the mark to reach."""
    rows = [["preset", "CRF", "CPU s", "MB", "PSNR dB", "SSIM"]]

    def add(label: str, crf: str, result: Result) -> None:
        scores = np.array([fidelity(clip, video) for clip, (video, _) in zip(clips, result.outputs)]).mean(axis=0)
        video = sum(pair[0].stat().st_size for pair in result.outputs)
        rows.append([label, crf, f"{result.cpu:.1f}", f"{video / 1e6:.2f}", f"{scores[0]:.2f}", f"{scores[1]:.4f}"])
        click.echo(" ".join(rows[-1]), err=True)

    if shutil.which("ffmpeg"):
        add("old recipe", "23", measured(lambda: run_old(clips, scratch / "old", recipe, 1)))
    for preset in ("ultrafast", "superfast", "veryfast", "faster"):
        for crf in (18, 20, 22, 24):
            chosen, out = recipe.replace(encoder_preset=preset, crf=crf), scratch / f"{preset}{crf}"

            def work(chosen: Recipe = chosen, out: Path = out) -> list[tuple[Path, Path]]:
                return [
                    _one((str(clip), str(out / str(number)), chosen.to_json())) for number, clip in enumerate(clips)
                ]

            add(preset, str(crf), measured(work))
    return table(rows)


@click.command()
@click.argument("clips", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--copies", default=4, show_default=True, help="Copies of every clip, so that all workers stay busy.")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
@click.option("--recipe", default="jav", show_default=True, type=click.Choice(["jav", "sync"]))
@click.option("--crf", type=float)
@click.option("--encoder-preset")
@click.option("--rounds", type=int, metavar="N", help="Measure time and CPU alone, N times in turn, instead.")
@click.option("--soak", "soaked", type=int, metavar="N", help="Build N clips and watch the workers' memory instead.")
@click.option("--grid", "only_grid", is_flag=True, help="Measure presets and CRFs instead.")
def main(
    clips: tuple[Path, ...],
    copies: int,
    workers: int,
    recipe: str,
    crf: float | None,
    encoder_preset: str | None,
    rounds: int | None,
    soaked: int | None,
    only_grid: bool,
) -> None:
    """Print the tables as markdown."""
    changes = {key: value for key, value in (("crf", crf), ("encoder_preset", encoder_preset)) if value is not None}
    chosen = PRESETS[recipe].replace(**changes)
    with tempfile.TemporaryDirectory() as folder:
        if soaked:
            text = soak(list(clips), soaked, workers, chosen, Path(folder))
        elif only_grid:
            text = grid(list(clips), chosen, Path(folder))
        elif rounds:
            text = costs(list(clips) * copies, workers, chosen, Path(folder), rounds)
        else:
            text = compare(list(clips), copies, workers, chosen, Path(folder))
    click.echo(f"recipe: {json.dumps(chosen.to_json())}; {os.cpu_count()} cores\n\n{text}")


if __name__ == "__main__":
    if "--audio" in sys.argv:
        from audio import main
    main()

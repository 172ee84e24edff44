"""Compiling short sounds: `javisc build audio` beside ten lines of Python, one ffmpeg call a file and torchaudio, all in one run.

    javisc bench compile --audio                        (python -P benchmarks/compile.py --audio)
    javisc bench compile --audio -- --seconds 5 --files 1530 --rounds 3

  build       `javisc build audio`, the whole command: scan, plan, clock, quality columns, digests, shards, index, manifest
  script      soundfile, soxr VHQ, FLAC, a spawn pool, one tar: what a careful author writes in ten lines (ten_lines.py)
  ffmpeg      one ffmpeg call a file under `xargs -P`, FLAC files in a folder; left out where there is no ffmpeg
  torchaudio  the script with torchaudio's resampler (sinc, Hann window), an import of torch for each process included

Sounds: WAV, 44.1 kHz, mono, 16 bit, as ESC-50 has them; noise of the spectra of rooms and tones, every fourth ends in silence.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import soundfile
from cost import spent

RATE, TARGET = 44100, 16000
#: Clips of which the costs are told.
MANY = 2_000_000


def make(folder: Path, count: int, seconds: float) -> None:
    """Write `count` sounds."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    samples = round(RATE * seconds)
    clock = np.arange(samples) / RATE
    for number in range(count):
        brown = np.cumsum(rng.standard_normal(samples))
        brown -= np.linspace(brown[0], brown[-1], samples)
        sound = 0.6 * brown / np.abs(brown).max() + 0.1 * rng.standard_normal(samples)
        sound += 0.3 * np.sin(2 * np.pi * rng.uniform(100, 4000) * clock)
        sound *= np.interp(clock, np.linspace(0, seconds, 12), rng.random(12) ** 2) * rng.uniform(0.1, 0.9)
        if number % 4 == 0:
            sound[round(samples * 0.6) :] = 0
        soundfile.write(
            folder / f"{number % 5 + 1}-{number:06d}-A-{number % 50}.wav", sound.clip(-1, 1), RATE, "PCM_16"
        )


def by_torchaudio(path: Path) -> tuple[str, bytes]:
    """A file's key and FLAC, by torchaudio's resampler."""
    import torch
    import torchaudio

    torch.set_num_threads(1)
    sound, rate = soundfile.read(
        path, dtype="float32", always_2d=True
    )  # torchaudio 2.10 reads by torchcodec, if that is there
    mono = torch.from_numpy(sound).mean(dim=1)
    return path.stem, flac(torchaudio.functional.resample(mono, rate, TARGET).numpy())


def flac(samples: object) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, TARGET, "PCM_16", format="FLAC")
    return content.getvalue()


def by_script(raw: Path, out: Path, workers: int) -> None:
    """The script as a program of its own: what it imports counts, as with the command, and nothing that this benchmark does."""
    script = Path(__file__).with_name("ten_lines.py")
    subprocess.run([sys.executable, "-P", str(script), str(raw), str(out / "0.tar"), str(workers)], check=True)


def by_torchaudio_pool(raw: Path, out: Path, workers: int) -> None:
    """A spawn pool and one tar."""
    with multiprocessing.get_context("spawn").Pool(workers) as pool, tarfile.open(out / "0.tar", "w") as tar:
        for key, content in pool.imap(by_torchaudio, sorted(raw.iterdir()), 8):
            info = tarfile.TarInfo(f"{key}.flac")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        pool.close()
        pool.join()  # so that what its processes used is counted


def by_build(raw: Path, out: Path, workers: int) -> None:
    call = [sys.executable, "-P", "-m", "javisc", "build", "audio", str(raw), "--out", str(out / "ds")]
    subprocess.run([*call, "--workers", str(workers)], check=True, capture_output=True)


def by_ffmpeg(raw: Path, out: Path, workers: int) -> None:
    lines = [
        f"ffmpeg -v error -nostdin -y -threads 1 -i {shlex.quote(str(path))} -ac 1 -ar {TARGET} -c:a flac "
        f"{shlex.quote(str(out / path.stem))}.flac"
        for path in sorted(raw.iterdir())
    ]
    call = ["xargs", "-P", str(workers), "-d", "\n", "-n", "1", "bash", "-ec"]
    subprocess.run(call, input="\n".join(lines), text=True, check=True)


CONTESTANTS: dict[str, Callable[[Path, Path, int], None]] = {
    "build": by_build,
    "script": by_script,
    "ffmpeg": by_ffmpeg,
    "torchaudio": by_torchaudio_pool,
}


def measured(run: Callable[[Path, Path, int], None], raw: Path, workers: int) -> tuple[float, float]:
    """Seconds of wall and of CPU, children included."""
    with tempfile.TemporaryDirectory() as folder:
        return spent(lambda: run(raw, Path(folder), workers))[:2]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--audio", is_flag=True, expose_value=False, help="This benchmark.")
@click.option(
    "--seconds", multiple=True, type=float, default=(1, 5, 30), show_default=True, help="Lengths of the sounds."
)
@click.option("--files", type=int, help="Sounds of each length [default: 1530 of up to 5 s, 300 of longer ones].")
@click.option("--workers", default=os.cpu_count() or 1, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Each contestant in turn; medians are printed.")
@click.option("--without", multiple=True, type=click.Choice(list(CONTESTANTS)), help="Leave a contestant out.")
def main(seconds: tuple[float, ...], files: int | None, workers: int, rounds: int, without: tuple[str, ...]) -> None:
    """Print the table as markdown."""
    chosen = {name: run for name, run in CONTESTANTS.items() if name not in without}
    if not shutil.which("ffmpeg") and chosen.pop("ffmpeg", None):
        print("ffmpeg is left out: it is not installed\n")
    print(
        f"`python -P benchmarks/compile.py {' '.join(sys.argv[1:])}`: medians of {rounds} rounds, contestants in turn"
    )
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start\n")
    print(
        "| seconds | files | contestant | wall s | CPU s | CPU ms a file | wall / script's | two million of them, core hours |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for length in seconds:
        count = files or (1530 if length <= 5 else 300)
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder, "raw")
            make(raw, count, length)
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
            for number in range(rounds):
                for name, run in chosen.items():
                    found[name].append(measured(run, raw, workers))
                    print(f"{length:g} s, round {number + 1} {name}: {found[name][-1][0]:.2f} s", file=sys.stderr)
        for name, times in found.items():
            wall, cpu = (statistics.median(time[n] for time in times) for n in (0, 1))
            ratios = [one[0] / other[0] for one, other in zip(times, found.get("script", times), strict=True)]
            hours = cpu / count * MANY / 3600
            print(
                f"| {length:g} | {count} | {name} | {wall:.2f} | {cpu:.2f} | {1e3 * cpu / count:.2f} | "
                f"{statistics.median(ratios):.2f} | {hours:.1f} |"
            )


if __name__ == "__main__":
    main()

"""Loading speed: javisc's loader beside what people use today, on the same dataset, windows of the same size and equal output.

    python -P benchmarks/load.py DS --frames 51 --size 240x426 --size 480x854 --batch 4

Contestants, each in a process of its own, all with the same number of worker threads or processes:

  javisc        sampler, byte ranges, PyAV from the window's own key frame in threads, one pass from planes to the bucket; from
                the smallest rendition of DS that loses nothing
  javisc-base   the same from the clips' own pictures; left out where DS has no renditions
  decoding      no contestant but the codec bound: PyAV decodes the windows' pictures in as many processes, and nothing else
  swscale       webdataset + PyAV + torch DataLoader worker processes; swscale scales to the bucket in the workers, on one thread
                each, as a careful author would
  webdataset    webdataset + PyAV + torch DataLoader worker processes; seeks to the window, as a careful author would
  from-start    the same, but decoding from the clip's beginning to the window's end, as most code does
  whole-clip    the same, but decoding the whole clip and cutting afterwards, as the JavisDiT reference does
  torchcodec    webdataset + torchcodec + torch DataLoader; left out, and said so, where torchcodec is not installed
  dali          DALI's own webdataset reader, NVDEC and its operators; left out, and said so, without a GPU, where it has no H.264

Output of all: float32 (B, 3, F, H, W) in [-1, 1], scaled to cover and cropped at the centre, and exactly the matching samples.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

CONTESTANTS = (
    "javisc",
    "javisc-base",
    "decoding",
    "swscale",
    "webdataset",
    "from-start",
    "whole-clip",
    "torchcodec",
    "dali",
)


def javisc_batches(options: dict[str, Any], *, renditions: bool = True) -> Iterator[tuple[Any, Any]]:
    from javisc.trainer.data.bytes.graph import GraphOptions
    from javisc.trainer.data.bytes.loader import Loader, LoaderOptions
    from javisc.trainer.data.index.assign import single_bucket
    from javisc.trainer.data.index.catalog import Catalog
    from javisc.trainer.data.index.sampler import Sampler, SamplerOptions

    height, width = options["size"]
    table = single_bucket(options["frames"], height, width, options["batch"])
    sampler = Sampler(
        Catalog.open([options["dataset"]]), table, SamplerOptions(remainder="drop", renditions=renditions)
    )
    graph = GraphOptions(device=options["device"], threads=options["workers"], max_batch_size=options["batch"])
    with Loader(sampler, LoaderOptions(threads=options["workers"], graph=graph)) as loader:
        while True:
            for loaded in loader:
                yield loaded.video, loaded.audio


def dali_batches(options: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """What a DALI user writes: its reader of WebDataset shards, windows at random, decoded on the GPU."""
    import polars as pl
    import torch.utils.dlpack
    from nvidia.dali import fn, pipeline_def, types

    folder, (height, width), frames = Path(options["dataset"]), options["size"], options["frames"]
    room = int(pl.read_parquet(folder / "manifest.parquet", columns=["num_frames"])["num_frames"].min()) - frames  # type: ignore[arg-type]
    if room < 0:
        raise click.ClickException(f"dali cannot leave out clips: all need {frames} frames")
    shards = sorted(str(path) for path in (folder / "shards").glob("*.tar"))
    indices = [str(Path(path).with_suffix(".idx")) for path in shards]

    @pipeline_def(batch_size=options["batch"], num_threads=options["workers"], device_id=0, exec_dynamic=True)
    def definition() -> tuple[Any, Any]:
        mp4, flac = fn.readers.webdataset(
            paths=shards, index_paths=indices, ext=["mp4", "flac"], random_shuffle=True, initial_fill=50, name="reader"
        )
        start = fn.cast(fn.random.uniform(range=[0.0, room + 0.999]), dtype=types.INT32)
        video = fn.decoders.video(mp4, device="mixed", start_frame=start, sequence_length=frames, pad_mode="none")
        video = fn.resize(video, size=[height, width], mode="not_smaller", antialias=False, dtype=types.FLOAT)
        video = fn.crop_mirror_normalize(
            video, crop=[height, width], mean=[127.5] * 3, std=[127.5] * 3, output_layout="CFHW", dtype=types.FLOAT
        )
        sound, _ = fn.decoders.audio(flac, dtype=types.FLOAT, downmix=False)
        first = fn.cast(start * (16000 / 24), dtype=types.INT32)
        sound = fn.slice(sound, start=first, shape=[round(frames * 16000 / 24)], axes=[0], out_of_bounds_policy="pad")
        return video, sound

    pipeline = definition()
    pipeline.build()
    while True:
        video, sound = (torch.utils.dlpack.from_dlpack(output.as_tensor()) for output in pipeline.run())
        torch.cuda.synchronize()
        yield video, sound


def missing(name: str, dataset: str) -> str | None:
    """Why a contestant cannot run here, or None."""
    if name == "javisc-base" and not any((Path(dataset) / "fields").glob("*/field.json")):
        return "the dataset has no renditions, so it would be javisc once more"
    if name == "dali":
        import torch

        if not torch.cuda.is_available():
            return "DALI decodes H.264 on GPUs alone, and there is none"
    if name == "torchcodec":
        try:
            importlib.import_module("torchcodec.decoders")
        except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: FFmpeg's libraries are absent
            return f"torchcodec does not run here ({str(error).strip().splitlines()[0]})"
    return None


def pictures(mp4: bytes, start: int, frames: int, how: str, inner: tuple[int, int]) -> Any:
    """The window's frames, (F, 3, H, W) uint8, as a webdataset user decodes them; scaled to `inner` by the swscale peer."""
    import av
    import torch

    if how == "torchcodec":
        from torchcodec.decoders import VideoDecoder

        return VideoDecoder(mp4, num_ffmpeg_threads=1).get_frames_in_range(start, start + frames).data
    kept = []
    scaler = av.video.reformatter.VideoReformatter()
    with av.open(io.BytesIO(mp4)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.time_base is not None
        if how in ("webdataset", "swscale", "decoding"):
            container.seek(int(start / 24 / stream.time_base), stream=stream, backward=True)
        for frame in container.decode(stream):
            assert frame.pts is not None
            index = round(frame.pts * stream.time_base * 24)
            if how == "whole-clip" or start <= index < start + frames:
                if how == "swscale":
                    wanted = {"format": "rgb24", "width": inner[1], "height": inner[0], "interpolation": "BILINEAR"}
                    kept.append(scaler.reformat(frame, **wanted, threads=1).to_ndarray())  # PyAV: a thread a core
                elif how != "decoding" or not kept:
                    kept.append(frame.to_ndarray(format="rgb24"))
            if how != "whole-clip" and index >= start + frames - 1:
                break
    if how == "whole-clip":
        kept = kept[start : start + frames]
    return torch.from_numpy(np.stack(kept)).permute(0, 3, 1, 2)


def decode_sample(sample: dict[str, Any], frames: int, size: tuple[int, int], how: str) -> tuple[Any, Any] | None:
    """What a webdataset user writes: random window, PyAV or torchcodec, soundfile, torch's interpolation or swscale's."""
    import soundfile
    import torch

    meta = json.loads(sample["json"])
    total = int(meta["num_frames"])
    if total < frames:
        return None
    start = int(np.random.randint(0, total - frames + 1))
    height, width = int(meta["height"]), int(meta["width"])
    scale = max(size[0] / height, size[1] / width)
    inner = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    video = pictures(sample["mp4"], start, frames, how, inner)
    if how == "decoding":
        return torch.zeros(1), torch.zeros(1)
    video = video.float() / 255
    if inner != tuple(video.shape[2:]):
        video = torch.nn.functional.interpolate(video, size=inner, mode="bilinear", align_corners=False)
    top, left = (inner[0] - size[0]) // 2, (inner[1] - size[1]) // 2
    video = (video[:, :, top : top + size[0], left : left + size[1]] - 0.5) / 0.5
    first, count = round(start * 16000 / 24), round(frames * 16000 / 24)
    audio, _ = soundfile.read(io.BytesIO(sample["flac"]), start=first, frames=count, dtype="float32", always_2d=True)
    return video.permute(1, 0, 2, 3).contiguous(), torch.from_numpy(audio)


def webdataset_batches(options: dict[str, Any], how: str) -> Iterator[tuple[Any, Any]]:
    import torch
    import webdataset

    shards = sorted(str(path) for path in (Path(options["dataset"]) / "shards").glob("*.tar"))
    decode = functools.partial(decode_sample, frames=options["frames"], size=options["size"], how=how)
    data = webdataset.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(50)
    data = data.map(decode).select(lambda item: item is not None).batched(options["batch"], partial=False)
    torch.set_num_threads(1)
    yield from torch.utils.data.DataLoader(data, batch_size=None, num_workers=options["workers"])


def contestant(options: dict[str, Any]) -> dict[str, float]:
    """Run one contestant in this process; figures over `steps` batches after `warmup` ones."""
    name = options["contestant"]
    sources: dict[str, Callable[[dict[str, Any]], Iterator[tuple[Any, Any]]]] = {
        "javisc": javisc_batches,
        "javisc-base": functools.partial(javisc_batches, renditions=False),
        "dali": dali_batches,
    }
    batches = iter(sources[name](options) if name in sources else webdataset_batches(options, name))
    for _ in range(options["warmup"]):
        video, audio = next(batches)
    height, width = options["size"]
    assert name == "decoding" or tuple(video.shape) == (options["batch"], 3, options["frames"], height, width), (
        video.shape
    )
    assert name == "decoding" or audio.shape[1] == round(options["frames"] * 16000 / 24)
    waits = []
    usage = _cpu_seconds()
    begin = time.perf_counter()
    for _ in range(options["steps"]):
        asked = time.perf_counter()
        next(batches)
        waits.append(time.perf_counter() - asked)
    wall = time.perf_counter() - begin
    samples = options["steps"] * options["batch"]
    return {
        "samples/s": samples / wall,
        "frames/s": samples * options["frames"] / wall,
        "MB/s": samples * options["frames"] * height * width * 3 * 4 / wall / 1e6,
        "p50 wait ms": 1e3 * float(np.percentile(waits, 50)),
        "p99 wait ms": 1e3 * float(np.percentile(waits, 99)),
        "CPU %": 100 * (used := _cpu_seconds() - usage) / wall,
        "CPU ms/frame": 1e3 * used / (samples * options["frames"]),
    }


def soak(options: dict[str, Any], batches: int) -> None:
    """Load many batches and print the process's memory on the way: it must not grow."""
    rows = []
    source = javisc_batches(options)
    begin = time.perf_counter()
    for number in range(1, batches + 1):
        next(source)
        if number % max(1, batches // 10) == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            rows.append((number, pages * resource.getpagesize() / 2**20))
    print(f"`python -P benchmarks/load.py {' '.join(sys.argv[1:])}`: {time.perf_counter() - begin:.0f} s\n")
    print("| batches | resident MB |\n|---|---|")
    for number, size in rows:
        print(f"| {number} | {size:.0f} |")
    print(f"\nFrom the first tenth to the last: {rows[-1][1] - rows[0][1]:+.0f} MB.")


def _cpu_seconds() -> float:
    """CPU time of this process and its living children, from /proc: DataLoader workers are children that have not ended."""
    import os

    ticks = os.sysconf("SC_CLK_TCK")
    total = 0
    me = os.getpid()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(entry.name) == me or int(fields[1]) == me:
            total += int(fields[11]) + int(fields[12])
    return total / ticks


def _compare(options: dict[str, Any], rounds: int, names: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Every contestant's figures by round, each in a process of its own, one after the other."""
    arguments = [str(part) for name, value in options.items() if name != "dataset" for part in (f"--{name}", value)]
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            command = [sys.executable, "-P", __file__, options["dataset"], *arguments, "--contestant", name]
            out = subprocess.run(command, capture_output=True, text=True, check=False)
            if out.returncode != 0:
                raise click.ClickException(f"{name} failed: {out.stderr.strip().splitlines()[-1:]}")
            figures[name].append(json.loads(out.stdout.strip().splitlines()[-1]))
            print(f"round {number + 1} {name}: {figures[name][-1]['samples/s']:.2f} samples/s", file=sys.stderr)
    return figures


def _table(figures: dict[str, list[dict[str, float]]]) -> None:
    """Medians, and by how much each javisc is faster: the median of rounds' own ratios, in batches and in CPU time."""
    head = list(figures["javisc"][0])
    mine = [name for name in figures if name.startswith("javisc")]
    ratios = [f"{name} is faster by (in CPU)" for name in mine]
    print(f"| contestant | {' | '.join([*head, *ratios])} |\n|---|{'---|' * (len(head) + len(ratios))}")
    for name, runs in figures.items():
        medians = [f"{np.median([run[column] for run in runs]):.1f}" for column in head]
        for ours in mine:
            pairs = list(zip(figures[ours], runs, strict=True))
            wall = np.median([own["samples/s"] / run["samples/s"] for own, run in pairs])
            used = np.median([run["CPU ms/frame"] / own["CPU ms/frame"] for own, run in pairs])
            medians.append(f"{wall:.2f}× ({used:.2f}×)")
        print(f"| {name} | {' | '.join(medians)} |")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("dataset", type=click.Path(exists=True, file_okay=False))
@click.option("--frames", default=51, show_default=True, help="Frames per window.")
@click.option(
    "--size",
    "sizes",
    multiple=True,
    default=["240x426"],
    show_default=True,
    help="HEIGHTxWIDTH of the output; may be given several times.",
)
@click.option("--batch", default=4, show_default=True, help="Clips per batch.")
@click.option("--workers", default=2, show_default=True, help="Decoding threads or worker processes.")
@click.option("--steps", default=30, show_default=True, help="Batches timed per round.")
@click.option("--warmup", default=4, show_default=True, help="Batches before the clock starts.")
@click.option(
    "--rounds", default=3, show_default=True, help="Times each contestant runs, in turn; medians are printed."
)
@click.option("--device", default="cpu", show_default=True, help="cpu or gpu, for javisc.")
@click.option(
    "--soak", "soaked", type=int, help="Instead, load so many batches with javisc and print its memory on the way."
)
@click.option("--contestant", "only", type=click.Choice(CONTESTANTS), help="Run one in this process and print JSON.")
@click.option("--without", multiple=True, type=click.Choice(CONTESTANTS[1:]), help="Leave one out.")
def main(
    only: str | None, soaked: int | None, rounds: int, sizes: Sequence[str], without: Sequence[str], **options: Any
) -> None:
    """Compare loading speed on DATASET."""
    options["size"] = sizes[0]
    if soaked is not None:
        height, width = (int(part) for part in options["size"].split("x"))
        soak(options | {"size": (height, width)}, soaked)
        return
    if only is not None:
        height, width = (int(part) for part in options["size"].split("x"))
        print(json.dumps(contestant(options | {"contestant": only, "size": (height, width)})))
        return
    absent = {name: why for name in CONTESTANTS if (why := missing(name, options["dataset"])) is not None}
    absent |= dict.fromkeys(without, "it was asked for")
    print(f"`python -P benchmarks/load.py {' '.join(sys.argv[1:])}`: medians of {rounds} rounds, contestants in turn")
    for size in sizes:
        figures = _compare(options | {"size": size}, rounds, [name for name in CONTESTANTS if name not in absent])
        print(f"\nBucket of {options['frames']} frames of {size}:\n")
        _table(figures)
    for name, why in absent.items():
        print(f"\n`{name}` was left out: {why}.")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\nLargest process of any contestant: {peak:.0f} MB.")


if __name__ == "__main__":
    main()

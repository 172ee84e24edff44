"""Small healthy files of every kind that javisc reads, for `fuzz.py` to damage, and what reads each of them."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl

from javisc.compiler.build import BuildOptions, build
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.recipe import PRESETS
from javisc.manifests.errors import UserError

Readers = dict[Path, Callable[[Path], object]]
#: name.suffix, container, picture's codec, sound's codec, rate, options of the muxer, options of the encoder.
CLIPS: tuple[tuple[str, str, str | None, str | None, int, dict[str, str], dict[str, str]], ...] = (
    ("plain.mp4", "mp4", "libx264", "aac", 44100, {}, {"bf": "2"}),
    ("fragmented.mp4", "mp4", "libx264", "aac", 48000, {"movflags": "frag_keyframe+empty_moov"}, {"g": "4"}),
    ("front.mov", "mov", "libx264", "pcm_s16le", 22050, {"movflags": "faststart"}, {}),
    ("hevc.mp4", "mp4", "libx265", "aac", 44100, {}, {"x265-params": "log-level=none"}),
    ("opus.mp4", "mp4", "mpeg4", "libopus", 48000, {}, {}),
    ("avc.mkv", "matroska", "libx264", "libopus", 48000, {}, {"bf": "2"}),
    ("vp8.webm", "webm", "libvpx", "libopus", 48000, {}, {"deadline": "realtime"}),
    ("vp9.webm", "webm", "libvpx-vp9", "libopus", 48000, {}, {"deadline": "realtime", "cpu-used": "8"}),
    ("av1.mkv", "matroska", "libsvtav1", "flac", 44100, {}, {"preset": "12"}),
    ("lossless.mkv", "matroska", "ffv1", "flac", 44100, {}, {}),
    ("old.avi", "avi", "mpeg4", "libmp3lame", 44100, {}, {}),
    ("motion.avi", "avi", "mjpeg", "pcm_s16le", 22050, {}, {}),
    ("stream.ts", "mpegts", "libx264", "mp2", 48000, {}, {}),
    ("disc.m2ts", "mpegts", "mpeg2video", "ac3", 48000, {}, {}),
    ("program.mpg", "mpeg", "mpeg1video", "mp2", 48000, {}, {}),
    ("flash.flv", "flv", "flv", "libmp3lame", 44100, {}, {}),
    ("phone.3gp", "3gp", "h263", "aac", 44100, {}, {}),
    ("media.wmv", "asf", "wmv2", "libmp3lame", 44100, {}, {}),
    ("ogg.ogv", "ogg", "libvpx", "libopus", 48000, {}, {}),
    ("raw.264", "h264", "libx264", None, 0, {}, {"bf": "2"}),
    ("raw.h265", "hevc", "libx265", None, 0, {}, {"x265-params": "log-level=none"}),
    ("sound.wav", "wav", None, "pcm_s24le", 44100, {}, {}),
    ("sound.flac", "flac", None, "flac", 44100, {}, {}),
    ("sound.mp3", "mp3", None, "libmp3lame", 44100, {}, {}),
    ("sound.m4a", "ipod", None, "aac", 44100, {}, {}),
)


def clips(folder: Path, names: tuple[str, ...] = ()) -> list[Path]:
    """Write every clip of CLIPS (or those named) whose encoders this build of FFmpeg has; half a second of 64 x 48."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, container, picture, sound, rate, muxer, encoder in CLIPS:
        if names and name not in names:
            continue
        if any(codec is not None and codec not in av.codec.codecs_available for codec in (picture, sound)):
            continue
        _clip(folder / name, container, picture, sound, rate, muxer, encoder)
        made.append(folder / name)
    return made


def _clip(
    path: Path,
    container: str,
    picture: str | None,
    sound: str | None,
    rate: int,
    muxer: dict[str, str],
    encoder: dict[str, str],
) -> None:
    size = (128, 96) if picture == "h263" else (64, 64) if picture == "libsvtav1" else (64, 48)
    with av.open(str(path), "w", format=container, options=muxer) as out:
        video = audio = None
        if picture is not None:
            video = out.add_stream(picture, rate=25, options=encoder)
            video.width, video.height = size
            video.pix_fmt = "yuvj420p" if picture == "mjpeg" else "yuv420p"
            video.codec_context.thread_count = 1
        if sound is not None:
            audio = out.add_stream(sound, rate=rate, layout="mono")
        if video is not None:
            noise = np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3), np.uint8)
            for number in range(13):
                frame = av.VideoFrame.from_ndarray(np.roll(noise, 2 * number, 1), "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                out.mux(video.encode(frame))
            out.mux(video.encode(None))
        if audio is not None:
            wave = (0.4 * np.sin(np.arange(rate // 2) * 2 * np.pi * 440 / rate) * 32767).astype(np.int16)
            block = av.AudioFrame.from_ndarray(wave[None], "s16", "mono")
            block.sample_rate, block.pts, block.time_base = rate, 0, Fraction(1, rate)
            out.mux(audio.encode(block))
            out.mux(audio.encode(None))


def dataset(folder: Path) -> Path:
    """A dataset of three clips in two shards."""
    raw = folder / "raw"
    shutil.rmtree(folder, ignore_errors=True)
    clips(raw, ("plain.mp4", "vp8.webm", "old.avi"))
    recipe = PRESETS["jav"].replace(encoder_preset="ultrafast", min_frames=1)
    build(from_raw([str(raw)]), recipe, folder / "DS", BuildOptions(workers=1, shard_samples=2))
    return folder / "DS"


def lists(folder: Path) -> tuple[list[Path], Readers]:
    """Lists of inputs in every form."""
    raw = folder / "raw"
    names = [path.name for path in clips(raw, ("plain.mp4", "sound.wav"))] * 3
    frame = pl.DataFrame({"path": names, "text": [f'a caption {n}, "quoted"' for n in range(6)], "label": ["dog"] * 6})
    frame.write_csv(raw / "list.csv")
    frame.write_csv(raw / "list.tsv", separator="\t")
    frame.write_ndjson(raw / "list.jsonl")
    frame.write_parquet(raw / "list.parquet")
    (raw / "list.txt").write_text("\n".join(names) + "\n")
    seeds = [raw / f"list.{end}" for end in ("csv", "tsv", "jsonl", "parquet", "txt")]
    return seeds, {seed: lambda path: _inputs([path], folder) for seed in seeds}


def captions(folder: Path) -> tuple[list[Path], Readers]:
    """Tables of captions, and captions beside a clip."""
    raw, more = folder / "raw", folder / "more"
    clips(raw, ("plain.mp4", "vp8.webm"))
    more.mkdir(exist_ok=True)
    frame = pl.DataFrame({"id": ["plain", "vp8"], "text": ["a dog barks, then runs", "rain"], "lang": ["en", None]})
    frame.write_csv(more / "captions.csv")
    frame.write_ndjson(more / "captions.jsonl")
    frame.write_parquet(more / "captions.parquet")
    (raw / "plain.json").write_text(json.dumps({"caption": ["a dog", "un chien"]}))
    (raw / "vp8.txt").write_text("rain on a roof\n")
    tables = [more / f"captions.{end}" for end in ("csv", "jsonl", "parquet")]
    readers: Readers = {table: lambda path: _inputs([raw], folder, captions=str(path)) for table in tables}
    beside = [raw / "plain.json", raw / "vp8.txt"]
    return tables + beside, {**readers, **{path: lambda _: _inputs([raw], folder) for path in beside}}


def _inputs(raw: list[Path], folder: Path, **more: Any) -> int:
    plan = folder / "plan"
    shutil.rmtree(plan, ignore_errors=True)
    plan.mkdir()
    return from_raw([str(path) for path in raw], **more)(plan).collect().height


def tables(folder: Path) -> tuple[list[Path], Readers]:
    """A dataset's manifest and header, read by `stats` and `filter`."""
    root = dataset(folder)
    seeds = [root / name for name in ("manifest.parquet", "dataset.json")]
    view = ["filter", str(root), "duration > 0.1", "--out", str(folder / "view"), "--force"]
    return seeds, {path: lambda _: (_command("stats", str(root)), _command(*view))[0] for path in seeds}


def verified(folder: Path) -> tuple[list[Path], Readers]:
    """Every file of a dataset, read by `verify`."""
    root = dataset(folder)
    names = (
        "manifest.parquet",
        "dataset.json",
        "rejected.parquet",
        "shards.parquet",
        "shards/000000.tar",
        "shards/000000.idx",
    )

    return [root / name for name in names], {root / name: lambda _: _command("verify", str(root)) for name in names}


def _command(*words: str) -> str:
    """Run a command in this process, as the shell would: "read" or, where a check failed, "defect".

    Raises UserError where it ends with a line, and what it did not catch.
    """
    from javisc.cli import main

    sys.argv = ["javisc", *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as ended:
            if ended.code == 1:
                return "defect"
            if ended.code:
                raise UserError(said.getvalue()) from ended
    return "read"


def shards(folder: Path) -> tuple[list[Path], Readers]:
    """Shards and their indexes, judged by what `verify` runs in its workers: there must be a defect, and nothing else."""
    from javisc.compiler.check.shard import packed, verify_shard

    root = dataset(folder)
    rows = pl.read_parquet(root / "shards.parquet").rows(named=True)
    recipe = json.loads((root / "dataset.json").read_text())["recipe"]
    manifest = pl.read_parquet(root / "manifest.parquet")
    readers: Readers = {}
    for row in rows:

        def judge(_: Path, row: dict[str, Any] = row) -> str:
            told = packed(manifest.filter(pl.col("shard") == row["shard"]))
            return "defect" if verify_shard(str(root), row, told, recipe, "frames", False, None)["defects"] else "whole"

        readers |= {root / "shards" / f"{row['shard']:06d}.{end}": judge for end in ("tar", "idx")}
    return list(readers), readers


def checkpoints(folder: Path) -> tuple[list[Path], Readers]:
    """Weights as files of torch and of safetensors, and an index of sharded ones."""
    import torch

    from javisc.trainer.engine.weights import read_weights, write_weights

    shutil.rmtree(folder, ignore_errors=True)
    tensors = {f"layer.{n}.weight": torch.randn(8, 8) for n in range(4)}
    write_weights(folder / "one", tensors)
    write_weights(folder / "many", tensors, max_shard_bytes=600)
    torch.save({"state_dict": tensors, "epoch": 3}, folder / "model.pt")
    alone = [folder / "one" / "model.safetensors", folder / "model.pt"]
    index = next((folder / "many").glob("*.index.json"))
    part = next((folder / "many").glob("*.safetensors"))
    readers: Readers = dict.fromkeys(alone, read_weights)
    return [*alone, index, part], {
        **readers,
        index: lambda p: read_weights(p.parent),
        part: lambda p: read_weights(p.parent),
    }


SMALL: dict[str, Callable[[Path], tuple[list[Path], Readers]]] = {
    "lists": lists,
    "captions": captions,
    "tables": tables,
    "shards": shards,
    "verified": verified,
    "checkpoints": checkpoints,
}

if __name__ == "__main__":
    clips(Path(sys.argv[1]))

"""Synthetic manifests and datasets for the tests of tables: plausible rows in every column, no media."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl
import soundfile

from javisc.manifests.schema import FORMAT_VERSION, MANIFEST_SCHEMA, REJECTED_SCHEMA, SHARDS_SCHEMA


def rows(count: int, *, seed: int = 0, prefix: str = "clip", **fixed: Any) -> pl.DataFrame:
    """`count` plausible manifest rows; keyword arguments replace whole columns by a value."""
    rng = np.random.default_rng(seed)
    names = [f"{prefix}_{seed}_{i:07d}" for i in range(count)]
    frames = rng.integers(10, 500, count)
    height, width = rng.choice([144, 240, 360, 720], count), rng.choice([256, 426, 640, 1280], count)
    columns: dict[str, Any] = {
        "path": [f"/raw/{name}.mp4" for name in names],
        "id": names,
        "relpath": [f"{name}.mp4" for name in names],
        "num_frames": frames,
        "height": height,
        "width": width,
        "aspect_ratio": height / width,
        "fps": np.full(count, 24.0),
        "resolution": height * width,
        "audio_path": [f"/raw/{name}.mp4" for name in names],
        "audio_fps": np.full(count, 16000),
        "text": [f"a dog barks, number {i}" for i in range(count)],
        "key": names,
        "shard": np.arange(count) // 100,
        "num_samples": np.round(frames * 16000 / 24),
        "channels": np.ones(count),
        "duration": frames / 24,
        "corpus": rng.choice(["tavgbench", "vggsound"], count),
        "split": rng.choice(["train", "val", "test"], count),
        "lang": rng.choice(["en", "de"], count),
        "source_sha256": [hashlib.sha256(name.encode()).hexdigest() for name in names],
        "source_bytes": rng.integers(1000, 10_000_000, count),
        "loudness": rng.normal(-20, 8, count),
        "silence_ratio": rng.random(count),
        "still_ratio": rng.random(count),
        "motion": rng.random(count),
        "silent": rng.random(count) < 0.1,
        "still": rng.random(count) < 0.1,
        "mp4_size": rng.integers(1000, 1_000_000, count),
        "mp4_offset": np.zeros(count),
        "flac_size": rng.integers(1000, 100_000, count),
    }
    table = pl.DataFrame(
        {name: pl.Series(name, values).cast(MANIFEST_SCHEMA[name]) for name, values in columns.items()}
    )
    table = table.with_columns(pl.concat_list(pl.col("text"), pl.col("text") + " again").alias("texts"))
    table = table.with_columns(pl.lit(value, MANIFEST_SCHEMA[name]).alias(name) for name, value in fixed.items())
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in MANIFEST_SCHEMA.items() if name not in table.columns]
    return table.with_columns(missing).select(list(MANIFEST_SCHEMA))


def dataset(folder: Path, table: pl.DataFrame, rejected: pl.DataFrame | None = None) -> Path:
    """Write a dataset's four tables around `table`; its shards are empty files."""
    (folder / "shards").mkdir(parents=True)
    table.write_parquet(folder / "manifest.parquet")
    (pl.DataFrame(schema=REJECTED_SCHEMA) if rejected is None else rejected).write_parquet(folder / "rejected.parquet")
    shards = table.group_by("shard").agg(pl.len().cast(pl.Int64).alias("samples")).sort("shard")
    shards.select(
        pl.col(n) if n in shards.columns else pl.lit(None, d).alias(n) for n, d in SHARDS_SCHEMA.items()
    ).write_parquet(folder / "shards.parquet")
    for shard in shards["shard"]:
        (folder / "shards" / f"{shard:06d}.tar").touch()
    header = {"format_version": FORMAT_VERSION, "recipe": {"name": "javisdit"}, "counts": {"samples": table.height}}
    (folder / "dataset.json").write_text(json.dumps(header))
    return folder


def clip(
    seconds: float = 2.0, *, tone: float = 440.0, seed: int = 0, size: tuple[int, int] = (64, 48)
) -> tuple[bytes, bytes]:
    """A tiny mp4 (H.264, 24 fps, no sound) of a moving texture, and a FLAC of a beeping tone, 16 kHz."""
    frames = round(seconds * 24)
    rng = np.random.default_rng(seed)
    width, height = size
    texture = rng.integers(0, 255, (height // 8, width // 8 + frames, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=24, options={"threads": "1", "preset": "ultrafast", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 12
        for index in range(frames):
            image = np.ascontiguousarray(texture[:, index : index + width])
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    time = np.arange(round(frames * 16000 / 24)) / 16000
    sound = (
        0.4
        * np.sin(2 * np.pi * tone * time * (1 + 0.3 * np.sin(2 * np.pi * (1 + seed % 5) * time)))
        * (time % 0.5 < 0.3)
    )
    flac = io.BytesIO()
    soundfile.write(flac, sound, 16000, format="FLAC", subtype="PCM_16")
    return out.getvalue(), flac.getvalue()


def real_dataset(folder: Path, clips: Sequence[tuple[bytes, bytes]], *, per_shard: int = 2, **fixed: Any) -> Path:
    """A dataset whose shards hold the given clips: tar members KEY.json, KEY.flac, KEY.mp4, offsets in the manifest."""
    table = rows(len(clips), **fixed)
    (folder / "shards").mkdir(parents=True)
    places: list[dict[str, int]] = []
    for shard in range(-(-len(clips) // per_shard)):
        path = folder / "shards" / f"{shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for index in range(shard * per_shard, min(len(clips), (shard + 1) * per_shard)):
                key = table["key"][index]
                for kind, content in (("json", b"{}"), ("flac", clips[index][1]), ("mp4", clips[index][0])):
                    entry = tarfile.TarInfo(f"{key}.{kind}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        for index in range(0, len(members), 3):
            place = {"shard": shard}
            for kind, member in zip(("json", "flac", "mp4"), members[index : index + 3], strict=True):
                place |= {f"{kind}_offset": member.offset_data, f"{kind}_size": member.size}
            places.append(place)
    measured = []
    for mp4, flac in clips:
        with av.open(io.BytesIO(mp4)) as container:
            stream = container.streams.video[0]
            frames, height, width = stream.frames, stream.height, stream.width
        size = {"height": height, "width": width, "resolution": height * width, "aspect_ratio": height / width}
        samples = soundfile.info(io.BytesIO(flac)).frames
        measured.append(size | {"num_frames": frames, "duration": frames / 24, "num_samples": samples})
    new = pl.DataFrame([place | one for place, one in zip(places, measured, strict=True)])
    table = table.with_columns(pl.Series(name, new[name]).cast(MANIFEST_SCHEMA[name]) for name in new.columns)
    whole = folder.with_name(folder.name + ".tables")
    dataset(whole, table)
    for path in whole.glob("*.*"):
        path.rename(folder / path.name)
    shutil.rmtree(whole)
    return folder

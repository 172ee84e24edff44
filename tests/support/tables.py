"""Synthetic rows in every column, published as datasets by what publishes builds: for the tests of tables."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import polars as pl
import soundfile

from javisc.compiler.recipe import Recipe
from javisc.compiler.store.files import Store
from javisc.compiler.store.tables import publish_tables
from javisc.compiler.store.writer import commit_shard
from javisc.manifests.schema import MANIFEST_SCHEMA


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
        "mp4_size": rng.integers(100, 4000, count),
        "flac_size": rng.integers(100, 1000, count),
    }
    table = pl.DataFrame(
        {name: pl.Series(name, values).cast(MANIFEST_SCHEMA[name]) for name, values in columns.items()}
    )
    table = table.with_columns(pl.concat_list(pl.col("text"), pl.col("text") + " again").alias("texts"))
    table = table.with_columns(pl.lit(value, MANIFEST_SCHEMA[name]).alias(name) for name, value in fixed.items())
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in MANIFEST_SCHEMA.items() if name not in table.columns]
    return table.with_columns(missing).select(list(MANIFEST_SCHEMA))


def dataset(folder: Path, table: pl.DataFrame, rejected: pl.DataFrame | None = None) -> Path:
    """Publish a dataset of these rows as a build does. Members have the sizes that the rows say, and no media in them."""
    samples = [
        (row, {end: _filler(row, end) for end in ("flac", "mp4") if row[f"{end}_size"]}) for row in table.to_dicts()
    ]
    return publish(folder, samples, rejected, table.schema)


def _filler(row: dict[str, Any], end: str) -> bytes:
    """So many bytes that are like no other sample's."""
    return hashlib.shake_128(f"{row['key']}.{end}".encode()).digest(int(row[f"{end}_size"]))


def publish(
    folder: Path,
    samples: Sequence[tuple[dict[str, Any], dict[str, bytes]]],
    rejected: pl.DataFrame | None = None,
    schema: pl.Schema = MANIFEST_SCHEMA,
) -> Path:
    """Write (row, members beside KEY.json) through what writes every build's shards, parts, tables and header."""
    shards: dict[int, list[tuple[dict[str, Any], dict[str, bytes]]]] = {}
    for row, members in samples:
        shards.setdefault(row["shard"], []).append((row, members))
    refused = [] if rejected is None else rejected.to_dicts()
    if refused and not shards:
        shards[0] = []
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(str(folder), Path(scratch))
        for number in sorted(shards):
            commit_shard(store, number, shards[number], refused, schema=schema)
            refused = []
        publish_tables(store, sorted(shards), {"recipe": Recipe().to_json(), "recipe_digest": Recipe().digest})
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
    """A dataset whose shards hold the given clips; what the rows say of size and length is theirs."""
    table = rows(len(clips), **fixed)
    samples = []
    for index, (row, (mp4, flac)) in enumerate(zip(table.to_dicts(), clips, strict=True)):
        with av.open(io.BytesIO(mp4)) as container:
            stream = container.streams.video[0]
            frames, height, width = stream.frames, stream.height, stream.width
        row |= {"height": height, "width": width, "resolution": height * width, "aspect_ratio": height / width}
        row |= {"num_frames": frames, "duration": frames / 24, "num_samples": soundfile.info(io.BytesIO(flac)).frames}
        samples.append((row | {"shard": index // per_shard}, {"flac": flac, "mp4": mp4}))
    return publish(folder, samples, schema=table.schema)

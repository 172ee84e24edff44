"""Synthetic manifests and datasets for the tests of tables: plausible rows in every column, no media."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

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

"""Builds of files that say what shall happen to their worker (support.faults), for tests of engines."""

from __future__ import annotations

import hashlib
from pathlib import Path

import polars as pl

from javisc.compiler.build import BuildOptions, BuildResult, build
from javisc.compiler.inputs.table import table
from javisc.compiler.recipe import PRESETS


def sources(folder: Path, contents: dict[str, str]) -> pl.DataFrame:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, content in contents.items():
        (folder / name).write_text(content)
        status = (folder / name).stat()
        rows.append(
            {
                "path": str(folder / name),
                "relpath": name,
                "source_bytes": status.st_size,
                "mtime_ns": status.st_mtime_ns,
            }
        )
    return table(rows)


def windows(rows: pl.DataFrame, count: int) -> pl.DataFrame:
    """`count` windows of a second of each row's file."""
    starts = pl.DataFrame({"window_start": [float(number) for number in range(count)]})
    cut = rows.drop("window_start", "window_end").join(starts, how="cross")
    return cut.with_columns(window_end=pl.col("window_start") + 1.0).select(rows.columns)


def run(inputs: pl.DataFrame | None, out: Path, **options: object) -> BuildResult:
    chosen = {"compiler": "support.faults:faulty", "workers": 2, "shard_samples": 4, "time_limit": 2.0, **options}
    return build(inputs, PRESETS["jav"], out, BuildOptions(**chosen))  # type: ignore[arg-type]


def rejects(out: Path) -> dict[str, tuple[str, str]]:
    return {
        row["relpath"]: (row["reason"], row["message"]) for row in pl.read_parquet(out / "rejected.parquet").to_dicts()
    }


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every shard and index."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((out / "shards").iterdir())}

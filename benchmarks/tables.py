"""Time and peak memory of the table commands on a manifest of many rows.

    python -P benchmarks/tables.py --rows 10000000 --scratch /tmp/tables --out benchmarks/results/tables.md

Makes two datasets' tables of half the rows each (every column of the schema filled; no media), then runs each command
in a process of its own, as a user would. Outputs are deleted as soon as they are measured; the largest moment on disk
is printed too.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import polars as pl

from javisc.manifests.io import write_header, write_table
from javisc.manifests.schema import MANIFEST_SCHEMA, REJECTED_SCHEMA, SHARDS_SCHEMA

WORDS = (
    "a dog barks",
    "rain falls on a tin roof",
    "a man speaks while music plays",
    "waves and gulls",
    "an engine starts and idles",
)


def make(folder: Path, rows: int, name: str) -> None:
    """A dataset's tables with `rows` rows, generated lazily; texts and numbers differ from row to row."""
    row = pl.col("row")

    def draw(salt: int, size: int) -> pl.Expr:
        return (row.hash(salt) % size).cast(pl.Int64)

    words = pl.lit("")
    for place, text in enumerate(WORDS):
        words = pl.when(draw(90, len(WORDS)) == place).then(pl.lit(text)).otherwise(words)
    caption = pl.format("{}, then {} times again near place {}", words, draw(1, 9), draw(2, 100_000))
    known: dict[str, pl.Expr] = {
        "path": pl.format("/data/raw/{}/{}/{}.mp4", pl.lit(name), row // 1000, row.hash(3)),
        "id": row.hash(3).cast(pl.String),
        "relpath": pl.format("{}/{}.mp4", row // 1000, row.hash(3)),
        "key": pl.format("{}_{}_{}", pl.lit(name), row // 1000, row.hash(3)),
        "audio_path": pl.format("/data/raw/{}/{}/{}.mp4", pl.lit(name), row // 1000, row.hash(3)),
        "num_frames": draw(4, 480) + 10,
        "duration": (draw(4, 480) + 10) / 24,
        "height": pl.lit(360),
        "width": pl.lit(640),
        "aspect_ratio": pl.lit(0.5625),
        "resolution": pl.lit(230_400),
        "fps": pl.lit(24.0),
        "audio_fps": pl.lit(16_000),
        "channels": pl.lit(1),
        "shard": row // 500,
        "text": caption,
        "texts": pl.concat_list(caption),
        "corpus": pl.lit(name),
        "split": pl.lit("train"),
        "lang": pl.when(draw(5, 10) > 0).then(pl.lit("en")).otherwise(pl.lit("de")),
        "source_sha256": pl.concat_str(*(row.hash(salt).cast(pl.String) for salt in (6, 7, 8))).str.slice(0, 57),
        "source_container": pl.lit("mov,mp4,m4a,3gp,3g2,mj2"),
        "source_video_codec": pl.lit("h264"),
        "source_audio_codec": pl.lit("aac"),
        "source_pixel_format": pl.lit("yuv420p"),
        "unpaired_audio_path": pl.lit(None, pl.String),
        "audio_text": pl.lit(None, pl.String),
        "label": pl.lit(None, pl.String),
        "loudness": -draw(9, 6000) / 100,
        "silent": draw(10, 50) == 0,
        "still": draw(11, 80) == 0,
    }
    columns = []
    for salt, (column, dtype) in enumerate(MANIFEST_SCHEMA.items()):
        if column in known:
            value = known[column]
        elif dtype == pl.Boolean:
            value = draw(salt, 2) == 0
        elif dtype.is_float():
            value = draw(salt, 1_000_000) / 1e6
        elif dtype.is_numeric():
            value = draw(salt, 10_000)
        else:
            value = pl.lit(None)
        columns.append(value.cast(dtype).alias(column))
    write_table(
        pl.LazyFrame().select(pl.int_range(rows, dtype=pl.Int64).alias("row")).select(columns),
        folder / "manifest.parquet",
    )
    for table, schema in (("rejected", REJECTED_SCHEMA), ("shards", SHARDS_SCHEMA)):
        write_table(pl.DataFrame(schema=schema), folder / f"{table}.parquet")
    write_header(folder / "dataset.json", {"counts": {"samples": rows}})


def measured(command: list[str]) -> tuple[float, float, str]:
    """Seconds, peak resident MB and output of a command. Exits if it fails."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        told = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: exit {process.returncode}\n{told}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024, told


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--scratch", type=Path, required=True, help="an empty or new folder; removed at the end")
    parser.add_argument("--out", type=Path, help="the Markdown table to write; printed in any case")
    options = parser.parse_args()
    scratch: Path = options.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    if any(scratch.iterdir()):
        sys.exit(f"--scratch {scratch} is not empty")
    lines, largest = [], 0
    try:
        half = options.rows // 2
        make(scratch / "a", half, "tavgbench")
        make(scratch / "b", options.rows - half, "vggsound")
        tables = size(scratch)
        jobs = [
            ("merge", ["a", "b", "--out", "all"], None),
            ("filter", ["all", 'num_frames >= 48 and lang == '
'"en" and loudness > -40', '"dog" in text or motion > 0.2', "--no-silent",
                        "--out", "good"], "good"),
            ("split", ["all", "--ratios", "train=0.98,val=0.02", "--out", "halves"], "halves"),
            ("dedupe", ["all", "--out", "unique"], "unique"),
            ("stats", ["all"], None),
            ("export", ["all", "--csv", "train_jav.csv"], "train_jav.csv"),
        ]  # fmt: skip
        for name, arguments, output in jobs:
            folder = Path.cwd()
            os.chdir(scratch)
            try:
                seconds, megabytes, told = measured([sys.executable, "-P", "-m", "javisc", name, *arguments])
            finally:
                os.chdir(folder)
            largest = max(largest, size(scratch))
            print(told, flush=True)
            shown = " ".join(f"'{part}'" if " " in part else part for part in arguments)
            lines.append(
                f"| `javisc {name} {shown}` | {seconds:.1f} | {options.rows / seconds / 1e6:.2f} | {megabytes:,.0f} |"
            )
            print(lines[-1], flush=True)
            if output:
                path = scratch / output
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        shutil.rmtree(scratch)
    text = "\n".join(
        [
            f"# Tables of {options.rows:,} rows",
            "",
            f"`python -P benchmarks/tables.py --rows {options.rows} --scratch DIR --out benchmarks/results/tables.md`",
            "",
            f"Two input manifests, {tables / 1e9:.2f} GB of parquet together, {len(MANIFEST_SCHEMA)} columns; at most "
            f"{largest / 1e9:.1f} GB on "
            f"disk at a time. polars {pl.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores. Each "
            f"command is a process of "
            "its own, start included; memory is its peak resident size.",
            "",
            "| command | seconds | M rows/s | peak MB |",
            "|---|---:|---:|---:|",
            *lines,
            "",
        ]
    )
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Time, CPU and memory of `javisc annotate` on a manifest of many rows, as a user runs it.

    python benchmarks/annotate.py --rows 1000000 --scratch /tmp/annotate

Makes a dataset's tables (every column of the schema filled, a thousand rows a shard, no media) and a table with a caption and a
score for each row, then joins it as parquet, CSV and JSONL. Outputs are removed as soon as they are measured.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
from tables import make

from javisc.manifests.io import write_table
from javisc.manifests.schema import SHARDS_SCHEMA

PER_SHARD = 1000


def dataset(folder: Path, rows: int) -> None:
    """The tables of a dataset of `rows` samples."""
    folder.mkdir(parents=True)
    make(folder, rows, "many")
    whole = pl.scan_parquet(folder / "manifest.parquet").with_columns(
        shard=(pl.int_range(pl.len()) // PER_SHARD).cast(pl.Int32)
    )
    write_table(whole.sort("shard", "key"), folder / "other.parquet")
    (folder / "other.parquet").replace(folder / "manifest.parquet")
    numbers = pl.int_range(-(-rows // PER_SHARD), eager=True, dtype=pl.Int32).alias("shard")
    shards = pl.DataFrame(numbers).with_columns(
        samples=pl.lit(PER_SHARD), bytes=pl.lit(1), sha256=pl.col("shard").cast(pl.String), idx_sha256=pl.lit("")
    )
    blank = [pl.lit(None, kind).alias(name) for name, kind in SHARDS_SCHEMA.items() if name not in shards]
    made = shards.with_columns(blank).select(pl.col(name).cast(kind) for name, kind in SHARDS_SCHEMA.items())
    made.write_parquet(folder / "shards.parquet")


def table(ds: Path, out: Path) -> None:
    """A caption of some 140 bytes, with a comma in it, and a score for every sample, in another order than the samples."""
    text = pl.format(
        "In this clip, {} while the camera moves slowly to the left; it seems to be place {} and the light is {}.",
        pl.col("text"), pl.col("key").hash(1) % 100_000, pl.col("key").hash(2) % 100,
    )  # fmt: skip
    rows = (
        pl.scan_parquet(ds / "manifest.parquet").sort(pl.col("key").hash(3))
        .select("key", text.alias("caption"), (pl.col("key").hash(4) % 100_000 / 1e5).alias("score")).collect()
    )  # fmt: skip
    {".parquet": rows.write_parquet, ".csv": rows.write_csv, ".jsonl": rows.write_ndjson}[out.suffix](out)


def apart(make_: Callable[..., None], *arguments: object) -> None:
    """Call in a process of its own: the peak of a process counts what its parent held when it was started."""
    process = multiprocessing.get_context("spawn").Process(target=make_, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"exit {process.exitcode}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/annotate"))
    parser.add_argument("--forms", default=".parquet,.csv,.jsonl")
    told = parser.parse_args()
    shutil.rmtree(told.scratch, ignore_errors=True)
    ds = told.scratch / "DS"
    apart(dataset, ds, told.rows)
    print("| table | seconds | user CPU | system CPU | peak MB | field's bytes |\n|---|---|---|---|---|---|")
    for form in told.forms.split(","):
        out = told.scratch / f"table{form}"
        apart(table, ds, out)
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-P", "-m", "javisc", "annotate", str(ds), str(out), "--as", "new"])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"exit {process.returncode}")
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in (ds / "fields/new").rglob("*") if path.is_file())
        print(
            f"| {form} | {seconds:.1f} | {usage.ru_utime:.1f} | {usage.ru_stime:.1f} | {usage.ru_maxrss / 1024:.0f} "
            f"| {size:,} |",
            flush=True,
        )
        subprocess.run([sys.executable, "-P", "-m", "javisc", "annotate", str(ds), "--undo", "new"], check=True)
        out.unlink()
    shutil.rmtree(told.scratch)


if __name__ == "__main__":
    main()

"""Time and peak memory of scan, captions and plan on many inputs.

    python -P benchmarks/plan.py --out benchmarks/results/plan.md

Two ways in, each step in a process of its own: a folder of empty-looking one-byte files that is really walked (fewer
rows, since a file system has to hold them), and a parquet list of synthetic paths that are taken as they are. The second
build of each adds a tenth. "µs a row" should not grow with the rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl

BATCH = 20_000


def synthetic(rows: int) -> Iterator[pl.DataFrame]:
    """Inputs as a scan would give them, in batches."""
    for start in range(0, rows, BATCH):
        numbers = range(start, min(rows, start + BATCH))
        names = [f"group_{n % 997:03d}/clip_{n:09d}_{n * 7919 % 100_003}.mp4" for n in numbers]
        yield pl.DataFrame(
            {
                "path": [f"/mnt/archive/videos/{name}" for name in names],
                "relpath": names,
                "source_bytes": [1_000_000 + n % 4_000_000 for n in numbers],
                "mtime_ns": list(numbers),
                "text": [f"caption number {n}: a dog barks while rain falls on a tin roof" for n in numbers],
            }
        )


def plan_table(rows: int, folder: Path) -> dict[str, float]:
    """Plan `rows` synthetic inputs, then again with a tenth more."""
    from javisc.compiler.inputs.table import INPUT_SCHEMA, conform
    from javisc.compiler.plan.layout import Layout, lay_out, summary, write_plan
    from javisc.manifests.spool import spool

    schema = pl.Schema({name: INPUT_SCHEMA[name] for name in ("path", "relpath", "source_bytes", "mtime_ns", "text")})
    layout = Layout(500)
    began = time.monotonic()
    plan, _ = lay_out(conform(spool(synthetic(rows), folder / "scan", schema)), layout, folder / "first")
    write_plan(plan, folder / "plan.parquet")
    first = time.monotonic() - began
    more = conform(spool(synthetic(rows + rows // 10), folder / "more", schema))
    began = time.monotonic()
    plan, changes = lay_out(more, layout, folder / "second", old=pl.read_parquet(folder / "plan.parquet"))
    write_plan(plan, folder / "again.parquet")
    assert changes.new == rows // 10 and summary(folder / "again.parquet")["inputs"].sum() == rows + rows // 10
    return {"first": first, "again": time.monotonic() - began}


def scan_folder(rows: int, folder: Path) -> dict[str, float]:
    """Make `rows` small files with captions beside a tenth of them; then scan, attach and plan them."""
    from javisc.compiler.inputs.raw import from_raw
    from javisc.compiler.inputs.table import conform
    from javisc.compiler.plan.layout import Layout, lay_out, write_plan

    for number in range(rows):
        name = folder / "raw" / f"group_{number % 997:03d}" / f"clip_{number:09d}.mp4"
        if number < 997:
            name.parent.mkdir(parents=True)
        name.write_bytes(b"x")
        if number % 10 == 0:
            name.with_suffix(".txt").write_text(f"caption {number}")
    began = time.monotonic()
    (folder / "work").mkdir()
    plan, changes = lay_out(conform(from_raw([str(folder / "raw")])(folder / "work")), Layout(500), folder / "plan")
    write_plan(plan, folder / "plan.parquet")
    assert changes.new == rows
    return {"first": time.monotonic() - began}


def measured(way: str, rows: int, scratch: Path) -> dict[str, float]:
    """Run one way in a fresh process; its seconds and its peak resident memory, GB."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        command = [sys.executable, "-P", __file__, "--way", way, "--rows", str(rows), "--scratch", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--files", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=("table", "folder"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        found = (plan_table if arguments.way == "table" else scan_folder)(arguments.rows[0], arguments.scratch)
        found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(json.dumps(found))
        return
    lines = [
        f"# Scan and plan ({platform.machine()}, polars {pl.__version__}, Python {platform.python_version()})",
        "",
        "| inputs | from | plan | µs a row | a tenth more | peak memory |",
        "|---:|---|---:|---:|---:|---:|",
    ]
    for way, counts in (("table", arguments.rows), ("folder", arguments.files)):
        for rows in counts:
            found = measured(way, rows, arguments.scratch)
            again = f"{found['again']:.1f} s" if "again" in found else ""
            origin = "a synthetic table" if way == "table" else "a folder that is walked, captions in a tenth"
            each, peak = found["first"] / rows * 1e6, found["peak"]
            lines.append(f"| {rows:,} | {origin} | {found['first']:.1f} s | {each:.0f} | {again} | {peak:.2f} GB |")
            print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()

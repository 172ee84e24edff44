"""Time and peak memory of scan, captions, plan, resume, move and merge on many inputs.

    python -P benchmarks/plan.py --out benchmarks/results/plan.md

Two ways in, each step in a process of its own: a folder of hard links to small files that is really walked (fewer
rows, since a file system has to hold them), and a table of synthetic paths that are taken as they are. Of the table: a
first plan; the tables of its shards as a build publishes them (`parts`, no media); the same inputs again (`resume`); the same
under another mount, which is what the dataset then has (`moved`); the manifest of all shards (`merge`), and the same with
evaluation offsets, drawn for a tenth (`offsets`). Beside them: as many files of a corpus and rows of its table (`corpus`), and a
table of as many refused inputs (`refused`). "µs a row" should not grow with the rows, nor should the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

BATCH = 100_000
PER_SHARD = 2500
STEPS = ("first", "parts", "resume", "moved", "merge", "offsets")
BESIDE = ("corpus", "refused")


def synthetic(rows: int, root: str) -> Iterator[pl.DataFrame]:
    """Inputs as a scan would give them, in batches."""
    for start in range(0, rows, BATCH):
        n = pl.int_range(start, min(rows, start + BATCH), dtype=pl.Int64, eager=True).alias("n").to_frame()
        group, number, tail = (
            (pl.col("n") % 997).cast(pl.String).str.zfill(3),
            pl.col("n").cast(pl.String).str.zfill(9),
            (pl.col("n") * 7919 % 100_003).cast(pl.String),
        )
        name = pl.format("group_{}/clip_{}_{}.mp4", group, number, tail)
        yield n.select(
            path=pl.format("{}/{}", pl.lit(root), name),
            relpath=name,
            source_bytes=1_000_000 + pl.col("n") % 4_000_000,
            mtime_ns=pl.col("n"),
            text=pl.format("caption number {}: a dog barks while rain falls on a tin roof", pl.col("n")),
        )


def _planner(folder: Path, said: list[str]) -> Any:
    from javisc.compiler.plan.options import BuildOptions
    from javisc.compiler.plan.planning import Planner
    from javisc.compiler.recipe import PRESETS
    from javisc.compiler.run.digests import digests
    from javisc.compiler.store.files import Store

    (work := folder / "work").mkdir(exist_ok=True)
    return Planner(
        Store(str(folder / "ds"), work),
        PRESETS["jav"],
        BuildOptions(shard_samples=PER_SHARD),
        work,
        guess=lambda _: PER_SHARD,
        digests=lambda paths: digests(paths, 2, work),
        say=said.append,
    )


def plan_table(rows: int, folder: Path, root: str) -> list[str]:
    """Bring the plan of folder/ds up to date with `rows` synthetic inputs below `root`; what a user is told."""
    from javisc.compiler.inputs.table import INPUT_SCHEMA
    from javisc.manifests.spool import spool

    schema = pl.Schema({name: INPUT_SCHEMA[name] for name in ("path", "relpath", "source_bytes", "mtime_ns", "text")})
    said: list[str] = []
    _planner(folder, said).plan(lambda scratch: spool(synthetic(rows, root), scratch / "scan", schema))
    return said


def publish_parts(folder: Path) -> None:
    """The tables and commits of every shard of the plan, as workers leave them."""
    from javisc.compiler.store.commits import publish_part
    from javisc.compiler.store.files import Store
    from javisc.manifests.io import complete
    from javisc.manifests.schema import MANIFEST_SCHEMA

    store = Store(str(folder / "ds"), folder / "work")
    plan = pl.read_parquet(store.fetch(".build", "plan.parquet"), columns=["shard"])["shard"]
    lazy = pl.scan_parquet(store.fetch(".build", "plan.parquet"))
    for low in range(0, int(plan.max()) + 1, 40):  # type: ignore[arg-type]
        some = lazy.filter(pl.col("shard").is_between(low, low + 39)).collect()
        for (shard,), part in some.group_by(["shard"]):
            rows = part.select(
                "key",
                "path",
                "relpath",
                "id",
                "text",
                "shard",
                "source_bytes",
                source_sha256=pl.col("key") + "0" * 40,
                num_frames=pl.lit(240),
                duration=pl.lit(10.0),
                height=pl.lit(720),
                width=pl.lit(1280),
                fps=pl.lit(24.0),
            )
            made = {"bytes": 1, "sha256": "0" * 64, "idx_bytes": 1, "idx_sha256": "0" * 64}
            frame = complete(rows.lazy(), MANIFEST_SCHEMA).select(MANIFEST_SCHEMA.names()).collect()
            publish_part(store, int(shard), 0, frame, [], made)  # type: ignore[call-overload]


def merge_parts(folder: Path, amend: Any = None) -> Any:
    """The tables of all shards."""
    from javisc.compiler.plan.layout import summary
    from javisc.compiler.recipe import PRESETS
    from javisc.compiler.store.files import Store
    from javisc.compiler.store.tables import as_it_is, merge

    store = Store(str(folder / "ds"), folder / "work")
    plan = store.fetch(".build", "plan.parquet")
    return merge(store, plan, summary(plan)["shard"].to_list(), PRESETS["jav"], amend=amend or as_it_is)


def with_offsets(manifest: pl.LazyFrame, folder: Path) -> pl.LazyFrame:
    """A manifest with evaluation offsets for a tenth of its clips."""
    from javisc.compiler.sparsesync.offsets import Offsets
    from javisc.compiler.sparsesync.rules import Grid

    tenth = pl.when(pl.col("source_bytes") % 10 == 0).then(pl.lit("val")).otherwise(pl.lit("train"))
    chosen, report = Offsets(Grid()).choose(manifest.with_columns(split=tenth), folder)
    assert report.drawn > 0
    return chosen


def match_corpus(rows: int, folder: Path) -> None:
    """Files named as VGGSound's, and a table of its form of which a tenth is not there."""
    from javisc.compiler.inputs.corpora import of_kind
    from javisc.compiler.inputs.matching import match
    from javisc.compiler.inputs.table import INPUT_SCHEMA
    from javisc.manifests.spool import spool

    (root := folder / "vggsound").mkdir()
    name, start = pl.col("source_bytes").cast(pl.String).str.zfill(11), pl.col("mtime_ns") % 300

    def numbered() -> Iterator[pl.DataFrame]:
        for batch in synthetic(rows, str(root)):
            yield batch.with_columns(source_bytes="mtime_ns")

    with (root / "vggsound.csv").open("wb") as table:
        for batch in numbered():
            label = pl.format("class {}", pl.col("mtime_ns") % 309)
            split = pl.when(pl.col("mtime_ns") % 10 == 9).then(pl.lit("test")).otherwise(pl.lit("train"))
            batch.select(name, start, label.alias("label"), split.alias("split")).write_csv(table, include_header=False)

    def there() -> Iterator[pl.DataFrame]:
        for batch in numbered():
            relpath = pl.format("{}/{}_{}.mp4", pl.col("mtime_ns") % 997, name, start.cast(pl.String).str.zfill(6))
            some = batch.filter(pl.col("mtime_ns") % 10 > 0).with_columns(relpath=relpath, text=pl.lit(None, pl.String))
            more = (
                pl.lit(None, kind).alias(column) for column, kind in INPUT_SCHEMA.items() if column not in some.columns
            )
            yield some.with_columns(*more).select(INPUT_SCHEMA.names())

    files = spool(there(), folder / "files", INPUT_SCHEMA)
    matched = match(of_kind("video")["vggsound"], root, files, ("all",), scratch=folder / "matching")
    assert matched.inputs.filter(pl.col("refused").is_null()).select(pl.len()).collect().item() == rows - -(-rows // 10)


def refuse_all(rows: int, folder: Path) -> None:
    """The table of inputs that were all refused."""
    from javisc.compiler.store.commits import publish_part
    from javisc.compiler.store.files import Store

    store = Store(str(folder / "ds"), folder / "work")
    plan: list[pl.DataFrame] = []
    for batch in synthetic(rows, "/mnt/archive/videos"):
        keyed = batch.select("path", "relpath", "source_bytes", key=pl.format("{}{}", pl.lit("0" * 15), "mtime_ns"))
        for some in keyed.iter_slices(PER_SHARD):
            told = some.with_columns(reason=pl.lit("corrupt"), message=pl.lit("moov atom not found: " + "x" * 60))
            publish_part(store, len(plan), 0, [], told.to_dicts(), {})
            plan.append(some.select(pl.lit(len(plan), pl.Int32).alias("shard"), "key", revision=pl.lit(0, pl.Int32)))
    whole = pl.concat(plan).with_columns(source_bytes=pl.lit(1))
    whole.sort("shard", "key").write_parquet(folder / "ds" / ".build" / "plan.parquet")


def step(name: str, rows: int, folder: Path) -> None:
    """One step on folder/ds."""
    told = f"0 inputs are new, {rows} are in the plan already"
    if name == "first":
        assert plan_table(rows, folder, "/mnt/archive/videos") == []
    elif name == "parts":
        publish_parts(folder)
    elif name == "resume":
        assert plan_table(rows, folder, "/mnt/archive/videos") == [told]
    elif name == "moved":
        assert plan_table(rows, folder, "/mnt/elsewhere") == [told]
    elif name == "corpus":
        match_corpus(rows, folder)
    elif name == "refuse":
        refuse_all(rows, folder)
    elif name == "refused":
        assert merge_parts(folder).rejected == {"corrupt": rows}
    else:
        assert merge_parts(folder, with_offsets if name == "offsets" else None).samples == rows


def make_folder(rows: int, folder: Path) -> None:
    """`rows` hard links to small files, captions beside a tenth of them."""
    seeds = folder / "seeds"
    seeds.mkdir()
    for number in range(rows):
        name = folder / "raw" / f"group_{number % 997:03d}" / f"clip_{number:09d}.mp4"
        if number < 997:
            name.parent.mkdir(parents=True)
        seed = seeds / f"{number // 30_000}"  # a file system bounds the links of one file
        if number % 30_000 == 0:
            seed.write_bytes(b"x")
        os.link(seed, name)
        if number % 10 == 0:
            name.with_suffix(".txt").write_text(f"caption {number}")


def scan_folder(rows: int, folder: Path) -> None:
    """Scan the folder's files, attach captions and plan them."""
    from javisc.compiler.inputs.raw import from_raw
    from javisc.compiler.inputs.table import conform
    from javisc.compiler.plan.layout import Layout, lay_out, write_plan

    (folder / "work").mkdir()
    plan, changes = lay_out(conform(from_raw([str(folder / "raw")])(folder / "work")), Layout(500), folder / "plan")
    write_plan(plan, folder / "plan.parquet")
    assert changes.new == rows


def measured(way: str, rows: int, folder: Path) -> dict[str, float]:
    """Run one step in a fresh process; its seconds, the seconds of CPU and its peak resident memory, GB."""
    command = [sys.executable, "-P", __file__, "--way", way, "--rows", str(rows), "--scratch", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--files", type=int, nargs="*", default=[20_000, 200_000])
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--way", choices=("folder", "refuse", *STEPS, *BESIDE), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        began = time.monotonic()
        if arguments.way == "folder":
            scan_folder(arguments.rows[0], arguments.scratch)
        else:
            step(arguments.way, arguments.rows[0], arguments.scratch)
        own = resource.getrusage(resource.RUSAGE_SELF)
        print(
            json.dumps(
                {
                    "seconds": time.monotonic() - began,
                    "cpu": own.ru_utime + own.ru_stime,
                    "peak": own.ru_maxrss / 1e6,
                }
            )
        )
        return
    lines = [
        f"# Scan, plan and merge ({platform.machine()}, polars {pl.__version__}, Python {platform.python_version()})",
        "",
        "| inputs | step | time | CPU, µs a row | peak memory |",
        "|---:|---|---:|---:|---:|",
    ]
    names = {
        "first": "a first plan of a synthetic table",
        "resume": "the same inputs again, all published",
        "moved": "the same inputs under another mount",
        "merge": "the manifest of all shards",
        "offsets": "the same with evaluation offsets",
        "corpus": "files and annotations of a corpus, joined",
        "refused": "the table of refused inputs",
        "folder": "a folder that is walked, captions in a tenth, and its plan",
    }
    jobs = [(rows, steps) for rows in arguments.rows for steps in (STEPS, ("corpus",), ("refuse", "refused"))]
    jobs += [(rows, ("folder",)) for rows in arguments.files]
    for rows, ways in jobs:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            if "folder" in ways:
                make_folder(rows, Path(folder))
            for way in ways:
                found = measured(way, rows, Path(folder))
                if way in ("parts", "refuse"):
                    continue
                each = found["cpu"] / rows * 1e6
                lines.append(
                    f"| {rows:,} | {names[way]} | {found['seconds']:.0f} s | {each:.0f} | {found['peak']:.2f} GB |"
                )
                print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()

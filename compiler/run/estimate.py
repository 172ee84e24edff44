"""What a build will cost, from a handful of inputs drawn by hash: the same handful, and so the same answer, every time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.plan.keys import draw, key_of
from javisc.compiler.reasons import Rejected
from javisc.compiler.run.calls import Call, Outcome
from javisc.compiler.run.engine import PROBE, SHORT, Job, limit_of
from javisc.compiler.run.pool import Pool
from javisc.compiler.run.sources import copies, fetching, local_source
from javisc.compiler.run.unit import compile_input
from javisc.manifests.entries import named
from javisc.manifests.kinds import extensions

HANDFUL = 8
#: Seconds of each that are compiled for real.
SECONDS = 4.0


@dataclass(frozen=True)
class Estimate:
    """By source byte: compiled bytes, seconds of media and of one worker, bytes of renditions. `good`: share that compiles."""

    inputs: int
    source_bytes: int
    bytes_per_byte: float
    media_per_byte: float
    work_per_byte: float
    good: float
    renditions_per_byte: float = 0.0

    @property
    def rendition_bytes(self) -> int:
        """Bytes of all renditions, which lie beside the shards."""
        return int(self.source_bytes * self.renditions_per_byte)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return int(self.source_bytes * self.bytes_per_byte)

    @property
    def media_seconds(self) -> float:
        return self.source_bytes * self.media_per_byte

    @property
    def work_seconds(self) -> float:
        """Seconds for one worker."""
        return self.source_bytes * self.work_per_byte

    def per_shard(self, shard_size: int) -> int:
        """Samples that fill a shard of `shard_size` bytes."""
        if not self.bytes:  # nothing of the handful compiled: say that clips are as large as their sources
            return max(1, int(shard_size * self.inputs // max(self.source_bytes, 1)))
        each = self.bytes / max(1, round(self.inputs * self.good))
        return max(1, int(shard_size // max(each, 1)))


def handful(inputs: pl.LazyFrame, seed: int) -> list[dict[str, Any]]:
    """The inputs with the lowest draws: a fair sample that does not depend on their order."""
    best: list[tuple[int, str, dict[str, Any]]] = []
    for batch in inputs.filter(pl.col("refused").is_null()).collect_batches(chunk_size=50_000):
        rows = batch.select(
            "path", "raw_path", "relpath", "source_bytes", "audio_path", "audio_bytes", "window_start", "window_end"
        )
        drawn = [(draw(seed, key_of(relpath)), relpath) for relpath in rows["relpath"]]
        order = sorted(range(len(drawn)), key=lambda i: drawn[i])[:HANDFUL]
        best = sorted([*best, *((*drawn[i], rows.row(i, named=True)) for i in order)], key=lambda item: item[:2])[
            :HANDFUL
        ]
    return [row for _, _, row in best]


def estimate(inputs: pl.LazyFrame, job: Job, seed: int, workers: int) -> Estimate:
    """Probe the handful in workers of their own and extrapolate. `work_*` is a measurement, all else is repeatable."""
    totals = inputs.filter(pl.col("refused").is_null()).select(pl.len(), pl.col("source_bytes").sum())
    count, size = totals.collect(engine="streaming").row(0)
    chosen = handful(inputs, seed)
    scratch = Path(job.scratch, "estimate")
    shutil.rmtree(scratch, ignore_errors=True)
    read = made = media = work = beside = 0.0
    calls: list[dict[str, Any]] = []
    good = 0
    preload = (__name__, job.compiler.partition(":")[0])
    if job.recipe.kind == "audio" and all(0 < (row["source_bytes"] or 0) <= SHORT for row in chosen):
        workers = 1  # to start another takes longer than the handful does
    with Pool(max(1, min(workers, len(chosen))), scratch / "logs", preload) as pool:
        for row in chosen:
            raw = row["raw_path"]
            arguments = {
                "path": row["path"],
                "raw_path": None if raw is None else raw.hex(),
                "window": [row["window_start"], row["window_end"]],
                "audio": row["audio_path"],
                "recipe": job.recipe.to_json(),
                "compiler": job.compiler,
                "scratch": str(scratch / key_of(row["path"])),
                "renditions": [recipe.to_json() for recipe in job.renditions],
            }
            limit = limit_of((row["source_bytes"] or 0) + (row["audio_bytes"] or 0), job.time_limit)
            before = fetching(
                ("fetched", row["path"], row["source_bytes"]),
                ("fetched_audio", row["audio_path"], row["audio_bytes"]),
                scratch=str(scratch),
                key=key_of(row["path"]),
            )
            arguments |= copies(before)
            pool.submit(Call(len(calls), f"{__name__}:measure", arguments, limit, before))
            calls.append(row)
        outcomes: dict[int, Outcome] = {}
        while pool.busy:
            for outcome in pool.wait():
                outcome.stop_if_unavailable()
                outcomes[outcome.call.tag] = outcome
    for number, row in enumerate(calls):  # in their own order: sums of floats depend on it
        outcome = outcomes[number]
        read += row["source_bytes"] or 0
        if outcome.error is None:
            good += 1
            made += outcome.value["bytes"]
            beside += outcome.value["beside"]
            media += outcome.value["seconds"]
            work += outcome.value["work"]
    shutil.rmtree(scratch, ignore_errors=True)
    read = max(read, 1.0)
    share = good / max(1, len(chosen))
    return Estimate(count, size or 0, made / read, media / read, work / read, share, beside / read)


def measure(
    path: str,
    raw_path: str | None,
    window: list[float | None],
    recipe: dict[str, Any],
    compiler: str,
    scratch: str,
    audio: str | None = None,
    fetched: str | None = None,
    fetched_audio: str | None = None,
    renditions: Sequence[dict[str, Any]] = (),
) -> dict[str, float]:
    """In a worker: probe a file, compile its first SECONDS, and scale to its length: bytes, seconds of media, of work.

    beside: bytes of its renditions, of these recipes.
    """
    folder = Path(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with local_source(path, raw_path, folder, fetched) as source:
        whole = named(PROBE)(source).duration
    start = window[0] or 0.0
    end = window[1] if window[1] is not None else whole
    if recipe["max_seconds"] is not None and end is not None:
        end = min(end, start + float(recipe["max_seconds"]))
    length = SECONDS if end is None or end <= start else end - start
    began = time.perf_counter()
    piece: list[float | None] = [start, start + min(length, SECONDS)] if end is not None else window
    beside: dict[str, Any] = {
        "audio": audio,
        "fetched": fetched,
        "fetched_audio": fetched_audio,
        "renditions": renditions,
    }
    columns = compile_input("0", path, raw_path, piece, recipe, compiler, scratch, **beside)
    seconds = columns.get("duration") or 0.0
    if not seconds:
        raise Rejected("too_short", "nothing came out")
    scale = max(1.0, length / seconds)
    sizes = {file.name.partition(".")[2]: file.stat().st_size for file in folder.iterdir()}
    made = sum(size for end, size in sizes.items() if end in extensions())
    smaller = sum(sizes.get(f"{recipe['name']}.mp4", 0) for recipe in renditions)
    return {
        "bytes": made * scale,
        "beside": smaller * scale,
        "seconds": seconds * scale,
        "work": (time.perf_counter() - began) * scale,
    }

"""What a build will cost, from a handful of inputs drawn by hash: the same handful, and so the same answer, every time."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.plan.keys import draw, key_of
from javisc.compiler.run.calls import Call, Outcome
from javisc.compiler.run.engine import SHORT, Job, limit_of, modules_of
from javisc.compiler.run.measure import measure
from javisc.compiler.run.pool import Pool
from javisc.compiler.run.sources import copies, fetching

HANDFUL = 8


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


def estimate(inputs: pl.LazyFrame, job: Job, seed: int, workers: int, pool: Pool | None = None) -> Estimate:
    """Probe the handful and extrapolate. `work_*` is a measurement, all else is repeatable.

    pool: idle workers that take it; None: workers of its own.
    """
    totals = inputs.filter(pl.col("refused").is_null()).select(pl.len(), pl.col("source_bytes").sum())
    count, size = totals.collect(engine="streaming").row(0)
    chosen = handful(inputs, seed)
    scratch = Path(job.scratch, "estimate")
    shutil.rmtree(scratch, ignore_errors=True)
    read = made = media = work = beside = 0.0
    calls: list[dict[str, Any]] = []
    good = 0
    if job.recipe.kind == "audio" and all(0 < (row["source_bytes"] or 0) <= SHORT for row in chosen):
        workers = 1  # to start another takes longer than the handful does
    own = (
        Pool(max(1, min(workers, len(chosen))), scratch / "logs", modules_of(job.compiler))
        if pool is None
        else nullcontext(pool)
    )
    with own as taken:
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
            taken.submit(Call(len(calls), f"{measure.__module__}:{measure.__name__}", arguments, limit, before))
            calls.append(row)
        outcomes: dict[int, Outcome] = {}
        while taken.busy:
            for outcome in taken.wait():
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

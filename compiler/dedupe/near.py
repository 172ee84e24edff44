"""Near-duplicates of a whole manifest: fingerprints to disk, buckets instead of all pairs, each candidate checked on
its fingerprints."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from javisc.compiler.dedupe.fingerprint import (
    LOOKED_UP,
    buckets,
    pictures_alike,
    prints_of_rows,
    sounds_alike,
    too_poor,
)
from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.spread import spread
from javisc.manifests.dedupe import ENTRIES, candidates
from javisc.manifests.io import ROW_GROUP, write_table
from javisc.manifests.kinds import MEDIA
from javisc.manifests.merge import ROW
from javisc.manifests.schema import DATASET_COLUMN
from javisc.manifests.spool import in_slices

BATCH = 2_000
#: Seconds that a batch may take, and each sample of it.
_START, _SECONDS = 60.0, 5.0
NEEDED = (
    DATASET_COLUMN,
    "key",
    "shard",
    *(f"{kind}_{part}" for kind in MEDIA for part in ("offset", "size", "crc32")),
)
PRINTS = {"row": pl.Int64(), "pictures": pl.List(pl.UInt64), "sound": pl.List(pl.UInt32), "error": pl.String()}
MATCHES: dict[str, Callable[[bool, bool], bool]] = {
    "either": lambda picture, sound: picture or sound,
    "both": lambda picture, sound: picture and sound,
    "picture": lambda picture, sound: picture,
    "sound": lambda picture, sound: sound,
}


@dataclass(frozen=True)
class Near:
    pairs: np.ndarray  #: rows [n, 2]
    compared: int
    unread: int  #: samples that gave no fingerprint
    poor_pictures: np.ndarray  #: rows whose pictures are too flat to be told from others
    poor_sounds: np.ndarray  #: rows whose sound is too silent to be told from others


def near_pairs(frame: pl.LazyFrame, folder: Path, *, match: str = "either", workers: int = 1) -> Near:
    """Rows of located samples that are near-duplicates. `folder` keeps the fingerprints: a second run makes only what is missing.

    Memory is bounded by ENTRIES buckets at a time, one batch of fingerprints, and the candidate pairs.
    """
    paths = _fingerprints(frame, folder, workers)
    nothing = np.zeros(0, np.int64)
    if not paths:
        return Near(np.zeros((0, 2), np.int64), 0, 0, nothing, nothing)
    table = pl.scan_parquet([str(path) for path in paths], glob=False)
    unread = int(table.filter(pl.col("error").is_not_null()).select(pl.len()).collect().item())
    possible = candidates(_entries(table))
    alike = MATCHES[match]
    good: list[np.ndarray] = []
    for start in range(0, len(possible), BATCH):
        pairs = possible[start : start + BATCH]
        rows = pl.Series(np.unique(pairs))
        wanted = table.filter(pl.col("row").is_in(rows.implode())).collect(engine="streaming")
        prints = {
            row: (np.array(p, np.uint64), np.array(s, np.uint32))
            for row, p, s in wanted.select("row", "pictures", "sound").iter_rows()
        }
        kept = [
            alike(pictures_alike(prints[a][0], prints[b][0]), sounds_alike(prints[a][1], prints[b][1]))
            for a, b in pairs.tolist()
        ]
        good.append(pairs[np.array(kept, bool)])
    pictures, sounds = _poor(paths, frame)
    pairs = np.concatenate(good) if good else np.zeros((0, 2), np.int64)
    return Near(pairs, len(possible), unread, pictures, sounds)


def _numbered(frame: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """The rows of a scanned table with their numbers ROW, BATCH at a time: those of one table of fingerprints."""
    taken = 0
    for some in in_slices(frame, ROW_GROUP):
        yield from some.with_row_index(ROW, offset=taken).iter_slices(BATCH)
        taken += some.height


def _poor(paths: list[Path], frame: pl.LazyFrame) -> tuple[np.ndarray, np.ndarray]:
    """The rows with pictures, and with sound, of which the fingerprint says too little. paths: of `_fingerprints`."""
    there = frame.select(pl.col(f"{kind}_size").is_not_null().alias(kind) for kind in MEDIA)
    pictures, sounds = [], []
    for path, some in zip(paths, _numbered(there), strict=True):
        known = some.select(pl.col(ROW).cast(pl.Int64).alias("row"), *MEDIA)
        batch = pl.read_parquet(path, glob=False).filter(pl.col("error").is_null()).join(known, on="row", how="inner")
        for row, seen, heard, flac, mp4 in batch.select("row", "pictures", "sound", *MEDIA).iter_rows():
            flat, silent = too_poor(np.array(seen, np.uint64), np.array(heard, np.uint32))
            pictures += [row] * bool(mp4 and flat)
            sounds += [row] * bool(flac and silent)
    return np.sort(np.array(pictures, np.int64)), np.sort(np.array(sounds, np.int64))


def _fingerprints(frame: pl.LazyFrame, folder: Path, workers: int) -> list[Path]:
    """One table per batch of rows, named by a digest of what it was made from.

    A sample on which its worker dies, twice, has no fingerprint; it costs no other one its own.
    """
    paths: list[Path] = []

    def batches() -> Iterator[tuple[tuple[Path, list[dict[str, Any]]], dict[str, Any], float]]:
        for part in _numbered(frame.select(NEEDED)):
            digest = hashlib.blake2b(part.write_csv().encode(), digest_size=12).hexdigest()
            paths.append(folder / f"{digest}.parquet")
            if not paths[-1].is_file():
                rows = part.to_dicts()
                yield (paths[-1], rows), {"rows": rows, "path": str(paths[-1])}, _START + _SECONDS * len(rows)

    bad = [outcome.call.tag for outcome in spread(f"{__name__}:make", batches(), workers=workers) if outcome.error]
    for path, rows in bad:
        told: dict[int, dict[str, Any]] = {}
        singles = ((row[ROW], {"rows": [row]}, _START) for row in rows)
        for outcome in spread(f"{prints_of_rows.__module__}:prints_of_rows", singles, workers=workers):
            nothing = {"row": outcome.call.tag, "pictures": [], "sound": [], "error": outcome.message}
            told[outcome.call.tag] = nothing if outcome.error else outcome.value[0]
        write_table(pl.DataFrame([told[row[ROW]] for row in rows], schema=PRINTS), path)
    return paths


def make(rows: list[dict[str, Any]], path: str) -> None:
    """In a worker: write the table of some rows' fingerprints."""
    write_table(pl.DataFrame(prints_of_rows(rows), schema=PRINTS), path)


def _entries(table: pl.LazyFrame) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All (bucket, row) in portions by bucket, each portion a pass over the fingerprints."""
    counts = table.select(
        (2 * pl.col("pictures").list.len() + pl.col("sound").list.len().clip(0, LOOKED_UP)).cast(pl.Int64).sum()
    )
    portions = max(1, -(-int(counts.collect(engine="streaming").item() or 0) // ENTRIES))
    for portion in range(portions):
        found: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        for batch in table.select("row", "pictures", "sound").collect_batches(chunk_size=BATCH, engine="streaming"):
            for row, pictures, sound in batch.iter_rows():
                mine = buckets(np.array(pictures, np.uint64), np.array(sound, np.uint32))
                mine = mine[mine % np.uint64(portions) == portion]
                found.append(mine)
                rows.append(np.full(len(mine), row, np.int64))
        if found:
            yield np.concatenate(found), np.concatenate(rows)


def default_workers() -> int:
    return usable_cores()

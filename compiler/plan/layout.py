"""The plan: which sample goes into which shard, decided by hashes and written down before any work.

Tables may be longer than memory: rows are dealt to files so that those of one path, then those of one name, then those of
neighbouring draws, then those of neighbouring shards lie together; only one such part is held at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.plan.before import BEFORE_SCHEMA, PLAN_SCHEMA, Before, Published, PublishedTable, as_now
from javisc.compiler.plan.changes import LOST_SCHEMA, Changes
from javisc.compiler.plan.comparing import Digests, compare, one_by_one
from javisc.compiler.plan.keys import draw
from javisc.compiler.plan.matching import KEYED_SCHEMA, MATCHED_SCHEMA, PATHS_SCHEMA, by_name, by_path, keyed, once
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.errors import UserError
from javisc.manifests.io import ROW_GROUP, write_table
from javisc.manifests.partitions import Partitions, by
from javisc.manifests.spool import regrouped, spool

__all__ = ["PLAN_SCHEMA", "Changes", "Layout", "as_now", "lay_out", "read_shards", "summary", "write_plan"]

_BATCH = 100_000
#: Rows of a part, of the new table and of the old.
ROWS = 100_000
#: Fresh inputs and their draws; `bad` ones are refused and shall not thin out the shards.
_DRAWN_SCHEMA = pl.Schema({**PLAN_SCHEMA, "draw": pl.UInt64(), "bad": pl.Boolean()})


@dataclass(frozen=True)
class Layout:
    """What decides the spread: `per_shard` samples a shard, drawn by `seed`."""

    per_shard: int
    seed: int = 0


def lay_out(
    inputs: pl.LazyFrame,
    layout: Layout,
    folder: Path,
    *,
    old: pl.LazyFrame | pl.DataFrame | None = None,
    published: Published | pl.DataFrame | None = None,
    prune: bool = False,
    retry: Iterable[str] = (),
    digests: Digests = one_by_one,
    rows_at_once: int = ROWS,
) -> tuple[pl.LazyFrame, Changes]:
    """Give every input its key and shard, keeping what an older plan says.

    inputs: INPUT_SCHEMA. old: the plan before (PLAN_SCHEMA). published: key, shard, sha256, reason of what stands on disk.
    retry: reasons for which a published reject is planned again. folder: scratch for what is longer than memory. digests: hashes
    the files whose time alone changed. rows_at_once: held in memory, about; it does not shape the result.
    Returns the plan (PLAN_SCHEMA, sorted by shard and key) and what changed. The result does not depend on the order of
    the inputs. New inputs always get new shards; a shard whose inputs change gets its revision raised, which makes what is
    published of it stale.
    """
    changes = Changes()
    standing = PublishedTable(published) if isinstance(published, pl.DataFrame) else published
    before = Before(None if old is None else old.lazy(), standing)
    count = max(int(inputs.select(pl.len()).collect(engine="streaming").item()), before.height)
    parts = -(-count // rows_at_once)

    new = Partitions(folder / "new", parts, KEYED_SCHEMA)
    for batch in inputs.collect_batches(chunk_size=_BATCH):
        new.add(keyed(batch), by("path"))
    paths, names = (
        Partitions(folder / "old-paths", parts, PATHS_SCHEMA),
        Partitions(folder / "old", parts, BEFORE_SCHEMA),
    )
    for chunk in before.chunks(min(_BATCH, rows_at_once)):
        paths.add(chunk, by("path"))
        names.add(chunk, by("plain"))
    first = before.highest + 1

    matched = Partitions(folder / "matched", parts, MATCHED_SCHEMA)
    for rows, there in zip(new, paths, strict=True):
        matched.add(by_path(once(rows, changes), there), by("plain"))

    stays = Partitions(folder / "stays", parts, PLAN_SCHEMA)
    fresh = {bad: Partitions(folder / f"fresh-{bad:d}", parts, _DRAWN_SCHEMA) for bad in (False, True)}
    lost = Partitions(folder / "lost", 1, LOST_SCHEMA)
    for rows, there in zip(matched, names, strict=True):
        settled = by_name(rows, there, changes)
        settled, kept, missing = compare(settled, there, changes, prune=prune, retry=frozenset(retry), digests=digests)
        if before.split_drawn:
            drawn = there.select("key", drawn="split")
            settled = settled.join(drawn, on="key", how="left").with_columns(split=pl.coalesce("split", "drawn"))
        lost.add(missing, pl.lit(0))
        planned = settled.filter(pl.col("shard").is_not_null()).select(PLAN_SCHEMA.names())
        for frame in (planned, kept):
            stays.add(frame, pl.col("shard").cast(pl.Int64) * parts // first)
        for bad, drawn in _drawn(settled.filter(pl.col("shard").is_null()), layout.seed).items():
            # The upper half of a draw, which is even, cuts it into ranges.
            fresh[bad].add(drawn, (pl.col("draw") // 2**32).cast(pl.Int64) * parts // 2**32)
    changes.new = sum(each.height for each in fresh.values())
    changes.kept = stays.height
    changes.lost = spool(lost, folder / "gone", LOST_SCHEMA)

    spread = Partitions(folder / "spread", parts, PLAN_SCHEMA)
    shards = max(1, -(-fresh[False].height // layout.per_shard))
    for each in fresh.values():
        for frame in _spread(each, shards, first):
            spread.add(frame, (pl.col("shard").cast(pl.Int64) - first) * parts // shards)
    raised = pl.col("shard").is_in(sorted(changes.pruned)).cast(pl.Int32)
    ordered = (
        frame.with_columns(revision=pl.col("revision") + raised).sort("shard", "key")
        for table in (stays, spread)
        for frame in table
    )
    return spool(regrouped(ordered, ROW_GROUP), folder / "ordered", PLAN_SCHEMA), changes


def _drawn(fresh: pl.DataFrame, seed: int) -> dict[bool, pl.DataFrame]:
    """New inputs with their draws, good and bad ones."""
    draws = pl.Series("draw", [draw(seed, key) for key in fresh["key"]], dtype=pl.UInt64)
    drawn = fresh.with_columns(draws, bad=pl.col("refused").is_not_null(), revision=pl.lit(0, pl.Int32))
    return {bad: drawn.filter(pl.col("bad") == bad).select(_DRAWN_SCHEMA.names()) for bad in (False, True)}


def _spread(fresh: Partitions, shards: int, first: int) -> Iterator[pl.DataFrame]:
    """Deal new inputs to shards from `first` on, in the order of their draw, so that every shard is a fair sample."""
    placed = 0
    for frame in fresh:
        if frame.is_empty():
            continue
        place = pl.int_range(placed, placed + frame.height, dtype=pl.Int64)
        placed += frame.height
        yield frame.sort("draw", "key").with_columns(shard=(place * shards // fresh.height + first).cast(pl.Int32))


def write_plan(plan: pl.LazyFrame, path: Path) -> None:
    """Publish a plan. Raises UserError."""
    write_table(plan, path)


def read_shards(
    path: Path, wanted: pl.DataFrame, rows_at_once: int = 20_000
) -> Iterator[tuple[int, int, list[dict[str, Any]]]]:
    """Yield (shard, revision, inputs in key order) for the shards of `wanted` (shard, revision, inputs), a few at a time."""
    plan = pl.scan_parquet(path, glob=False)
    group: list[int] = []
    held = 0
    ordered = wanted.sort("shard")
    for position, (shard, count) in enumerate(ordered.select("shard", "inputs").iter_rows()):
        group.append(shard)
        held += count
        if held >= rows_at_once or position == ordered.height - 1:
            chosen = pl.col("shard").is_between(group[0], group[-1]) & pl.col("shard").is_in(group)
            frame = as_now(plan.filter(chosen).collect()).sort("shard", "key")
            for (number, revision), part in frame.group_by(["shard", "revision"], maintain_order=True):
                yield int(number), int(revision), part.drop("shard", "revision").to_dicts()  # type: ignore[call-overload]
            group, held = [], 0


def summary(path: Path) -> pl.DataFrame:
    """The shards of a plan, sorted: shard, revision, inputs (rows) and bytes of their sources. Raises UserError."""
    try:
        return (
            pl.scan_parquet(path, glob=False)
            .group_by("shard")
            .agg(pl.col("revision").first(), inputs=pl.len(), bytes=pl.col("source_bytes").sum())
            .sort("shard")
            .collect(engine="streaming")
        )
    except (OSError, *POLARS_FAULTS) as error:
        raise UserError(f"{path} cannot be read: {error}") from error

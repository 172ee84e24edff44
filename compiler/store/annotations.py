"""Annotations in bulk: the shards of a field of KEY.json, many at a time, since each holds a thousand members of a few words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import polars as pl

from javisc.compiler.store.commits import commit_place, part_files
from javisc.compiler.store.files import Store
from javisc.compiler.store.shard import small_shards
from javisc.manifests.fields import canonical_many
from javisc.manifests.kinds import PARTS

#: Shards that are on their way to the disk together, and how many such batches are at work side by side.
BATCH, SIDE_BY_SIDE = 32, 2


def commit_annotations(
    store: Store, schema: pl.Schema, columns: Sequence[str], rows: pl.DataFrame, parents: Mapping[int, str]
) -> None:
    """Publish shards of a field of annotations; of each batch the commits come last. Raises UserError.

    rows: key, shard, and what else the field's table has beside places (`schema`), in the order of shard and key. columns: those
    that KEY.json says. parents: the digests of the base's shards.
    """
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for part in pool.map(lambda batch: _commit_batch(store, schema, columns, batch, parents), _batches(rows)):
            assert part


def _batches(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The rows of BATCH shards each."""
    starts = (rows["shard"] != rows["shard"].shift(1)).fill_null(True).arg_true().to_list()[::BATCH]
    for start, end in itertools.pairwise([*starts, rows.height]):
        yield rows.slice(start, end - start)


def _commit_batch(
    store: Store, schema: pl.Schema, columns: Sequence[str], rows: pl.DataFrame, parents: Mapping[int, str]
) -> int:
    shards, counts = rows.group_by("shard", maintain_order=True).len()
    packed = small_shards("json", rows["key"], canonical_many(rows, columns), counts.to_list())
    told = zip(PARTS, (packed.offsets, packed.sizes, packed.crc32), strict=True)
    whole = rows.with_columns(pl.Series(f"json_{name}", part, pl.Int64) for name, part in told).select(schema.names())
    files: dict[tuple[str, ...], bytes | memoryview] = {}
    commits: dict[tuple[str, ...], bytes] = {}
    at = 0
    for shard, count, tar, idx, made in zip(shards, counts, packed.tars, packed.indices, packed.made, strict=True):
        tables, commit = part_files(shard, 0, whole.slice(at, count), [], made, schema, parents[shard])
        at += count
        files |= {(*store.packs, f"{shard:06d}.idx"): idx, (*store.packs, f"{shard:06d}.tar"): tar, **tables}
        commits[commit_place(shard)] = commit
    store.write_many(files)
    store.write_many(commits)
    return len(commits)

"""Datasets of an older javisc that hold "None" where nothing was meant: plan, tables and KEY.json mended, nothing encoded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.plan.planning import PLAN, plan_digest
from javisc.compiler.plan.saved import add_plan
from javisc.compiler.store.commits import Parts, publish_part
from javisc.compiler.store.files import Store
from javisc.compiler.store.rows import placed
from javisc.compiler.store.shard import pack_shard, read_members
from javisc.manifests.absent import found, mend, without
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.io import write_table
from javisc.manifests.schema import REJECTED_SCHEMA

#: A KEY.json longer than this is not one of ours.
MAX_JSON = 16 << 20


def mend_words(store: Store, split: Mapping[str, float], seed: int) -> list[str]:
    """Put nulls where a cell of the plan or of a part holds an absent value's name, and pack the shards concerned anew.

    split, seed: what draws the split of rows whose split was such a word. Returns what was done, in words. Doing it twice, or
    half and then whole, comes to the same.
    """
    said = []
    local = store.fetch(*PLAN)
    if cells := found(pl.scan_parquet(local, glob=False)):
        plan = without(pl.read_parquet(local, glob=False).lazy())
        with store.publish(*PLAN) as path:
            write_table(plan, path)
            add_plan(store, plan_digest(path))
        said.append(f"plan: {'; '.join(map(str, cells))}: now null")
    parts = Parts(store)
    shards = [shard for shard, commit in parts.commits.items() if commit["samples"] and _holds(parts, shard)]
    for shard in shards:
        _repack(store, parts, shard, split, seed)
    if shards:
        said.append(f"{len(shards)} shards packed anew, nothing encoded: their labels held words for what is not known")
    return said


def _holds(parts: Parts, shard: int) -> bool:
    try:
        return bool(found(parts.manifest([shard])))
    except (
        FileNotFoundError,
        *POLARS_FAULTS,
    ):  # lost: it is made again from its sources, which mends it too
        return False


def _repack(store: Store, parts: Parts, shard: int, split: Mapping[str, float], seed: int) -> None:
    """Write a shard with other KEY.json and the same media, and its part."""
    name = f"{shard:06d}"
    before = parts.manifest([shard]).collect()
    after = mend(before.lazy(), split, seed).collect()
    changed = {
        new["key"]: {column: value for column, value in new.items() if value != old[column]}
        for old, new in zip(before.to_dicts(), after.to_dicts(), strict=True)
    }
    tar = store.fetch("shards", f"{name}.tar")
    packed = pack_shard(store, shard, _samples(tar, changed))
    rows = after.sort("key").to_dicts()
    for row, members in zip(rows, packed.samples, strict=True):
        placed(row, shard, [[m.extension, m.offset, m.size, m.crc32] for m in members])
    commit = parts.commits[shard]
    rejects = parts.rejected([shard]).collect().select(REJECTED_SCHEMA.names()).to_dicts()
    publish_part(store, shard, commit["revision"], rows, rejects, packed.made, plan=commit.get("plan"))


def _samples(tar: Path, changed: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, bytes | Path]]]:
    """The samples of a shard in their order, with the changes in KEY.json. Members are found by the archive's own headers."""
    with tar.open("rb") as stream:
        key, members = "", dict[str, bytes | Path]()
        for name, offset, size, _ in read_members(stream, tar.stat().st_size):
            sample, _, extension = name.partition(".")
            if sample != key:
                if members:
                    yield key, members
                key, members = sample, {}
            stream.seek(offset)
            content = stream.read(size)
            members[extension] = _json(content, changed.get(sample, {})) if extension == "json" else content
        if members:
            yield key, members


def _json(content: bytes, changes: Mapping[str, Any]) -> bytes:
    """KEY.json with other values; what became null is left out. Only the changed ones: a table keeps fewer digits than JSON."""
    told = json.loads(content[:MAX_JSON])
    told |= {name: value for name, value in changes.items() if name in told or value is not None}
    kept = {name: value for name, value in told.items() if value is not None}
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return (text + "\n").encode()

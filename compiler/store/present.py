"""What lies there: the shards and parts of a dataset compared with what their commits and the plan say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.store.commits import BUILD, Parts
from javisc.compiler.store.files import Store
from javisc.manifests.errors import UserError

#: What is published beside shards.
TABLES = {"manifest.parquet", "rejected.parquet", "shards.parquet"}


def intact(store: Store) -> dict[int, dict[str, Any]]:
    """The commits of shards of which nothing is missing or of another size."""
    parts = Parts(store)
    lost = losses(store, parts, parts.commits)
    return {shard: commit for shard, commit in parts.commits.items() if shard not in lost}


def refuse_strangers(store: Store) -> None:
    """Raise UserError where files of a dataset's names lie in a folder in which nothing was begun yet: somebody else's."""
    there = sorted(TABLES & store.names())
    there += sorted(
        "/".join((*store.packs, name)) for name in store.names(*store.packs) if name.endswith((".tar", ".idx"))
    )
    if there:
        raise UserError(
            f"{store.root} holds {', '.join(there[:3])}{', …' if len(there) > 3 else ''}, which would be written over or "
            "mixed with what is written now: give another --out, or move them away"
        )


def losses(store: Store, parts: Parts, shards: Iterable[int]) -> dict[int, str]:
    """Committed shards of which a file is missing or has another size, and which file that is."""
    there, tables = store.sizes(*store.packs), store.sizes(BUILD, "parts")
    found: dict[int, str] = {}
    for shard in shards:
        for name, size in expected_sizes(shard, parts.commits[shard], store.packs).items():
            folder, _, file = name.rpartition("/")
            has = (tables if folder.startswith(BUILD) else there).get(file)
            if has is None:
                found.setdefault(shard, f"{name} is missing")
            elif size is not None and has != size:
                found.setdefault(shard, f"{name} has {has} bytes instead of {size}")
    return found


def expected_sizes(
    shard: int, commit: Mapping[str, Any], packs: tuple[str, ...] = ("shards",)
) -> dict[str, int | None]:
    """The files of a committed shard and their sizes; None where an older commit does not say."""
    name = f"{shard:06d}"
    tables: Mapping[str, Any] = commit.get("tables") or {}
    files: dict[str, int | None] = {}
    if commit["samples"]:
        tar, idx = ("/".join((*packs, f"{name}.{end}")) for end in ("tar", "idx"))
        files |= {tar: commit["bytes"], idx: commit.get("idx_bytes")}
    for table in ("manifest", "rejected"):
        files[f"{BUILD}/parts/{name}.{table}.parquet"] = tables.get(table, [None])[0]
    return files


def expected_digests(shard: int, commit: Mapping[str, Any]) -> dict[str, str]:
    """The files of a committed shard and their SHA-256, as far as the commit says."""
    name = f"{shard:06d}"
    files: dict[str, str] = {}
    if commit["samples"]:
        files |= {f"shards/{name}.tar": commit["sha256"], f"shards/{name}.idx": commit["idx_sha256"]}
    for table, (_, digest) in (commit.get("tables") or {}).items():
        files[f"{BUILD}/parts/{name}.{table}.parquet"] = digest
    return files


def damage(root: str, files: dict[str, str], scratch: str) -> str | None:
    """In a worker: the first of some files whose bytes are not those of its digest, in words; None if all are."""
    store = Store(root, Path(scratch))
    for name, digest in files.items():
        try:
            local = store.fetch(*name.split("/"))
            with local.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            return f"{name} is missing"
        if store.remote:
            local.unlink()
        if found != digest:
            return f"{name} has other bytes than it was published with"
    return None


def strangers(parts: Parts, plan: Path, shards: Iterable[int]) -> dict[int, str]:
    """Committed shards whose samples and rejects are not the inputs that the plan gives them, and how they differ.

    A refused input that was planned again has moved to another shard: its old reject counts for nothing.
    """
    every = pl.scan_parquet(plan, glob=False).select("shard", "key")
    found: dict[int, str] = {}
    for group in parts.groups(sorted(shard for shard in shards if shard in parts.commits)):
        here = pl.col("shard").is_between(group[0], group[-1]) & pl.col("shard").is_in(group)
        planned = every.filter(here).collect(engine="streaming")
        made = parts.manifest(group).select("shard", "key").collect(engine="streaming")
        refused = parts.rejected(group).select("shard", "key").collect(engine="streaming")
        extra = made.join(planned, on=["shard", "key"], how="anti")
        absent = planned.join(pl.concat([made, refused]), on=["shard", "key"], how="anti")
        found |= {shard: f"lacks inputs of the plan (as {key})" for shard, key in absent.unique("shard").iter_rows()}
        found |= {
            shard: f"holds samples that the plan does not have (as {key})"
            for shard, key in extra.unique("shard").iter_rows()
        }
    return {int(shard): why for shard, why in found.items()}

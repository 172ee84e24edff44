"""What becomes of a dataset's fields when its shards change: they are kept true to their base."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import polars as pl

from javisc.compiler.store.annotations import commit_annotations
from javisc.compiler.store.commits import Parts
from javisc.compiler.store.fields import OF, base_shards, field_store, fold, publish_field
from javisc.compiler.store.files import Store
from javisc.manifests.errors import UserError
from javisc.manifests.fields import FIELD_HEADER, Field, fields_of, folded
from javisc.manifests.io import HEADER, read_header


def reconcile(base: Store, say: Callable[[str], None], *, lay: bool = True) -> list[str]:
    """After a dataset's shards have changed: make its fields true to them, and lay them over the manifest again.

    Annotations follow their samples into new shards, if these come from the same source; shards of other fields whose base is
    another now are dropped. Returns the names of fields that now lack shards which they had. Raises UserError.
    """
    torn: list[str] = []
    fields = fields_of(base.root)
    if not fields:
        if folded(read_header(base.path(HEADER))):
            fold(base)
        return torn
    parents = base_shards(base)
    total = int(json.loads(base.read(HEADER))["counts"]["samples"])
    for field in fields:
        stale = [shard for shard, digest in field.parents.items() if parents.get(shard) != digest]
        if not stale and field.header["of"] == total:
            continue
        store = field_store(base.root, field.name, base.scratch)
        had = field.header["counts"]["samples"]
        moved = field.table().collect() if field.member == "json" and stale else None
        parts = Parts(store)
        for shard in stale:  # but those that were made anew with their base
            if parts.commits.get(shard, {}).get("plan", "") != parents.get(shard):
                parts.remove(shard)
        if moved is not None:
            follow(base, store, field, moved, parents)
        try:
            left = publish_field(
                base, store, field.name, field.header["settings"], field.header["made_by"], lay=False
            ).samples
        except UserError:
            say(f"field {field.name}: all of its samples are gone, and so is it")
            store.remove(FIELD_HEADER)
            store.remove_tree()
            continue
        if left < had:
            say(f"field {field.name}: {had - left} samples whose base is gone or another were dropped")
            torn.append(field.name)
    if lay:
        fold(base)
    return torn


def follow(base: Store, store: Store, field: Field, rows: pl.DataFrame, parents: Mapping[int, str]) -> None:
    """Pack the annotations of samples that lie in other shards now. rows: the field's, as it was."""
    here = pl.scan_parquet(base.fetch("manifest.parquet"), glob=False).select("key", "shard", "source_sha256")
    parts = Parts(store)
    done = [shard for shard in parts.commits if parts.commits[shard].get("plan") == parents.get(shard)]
    moved = (
        rows.lazy()
        .filter(~pl.col("shard").is_in(done))
        .drop("shard")
        .join(here, on="key", how="inner")
        .filter(pl.col("source_sha256").eq_missing(pl.col(OF)))
        .filter(~pl.col("shard").is_in(done))
        .sort("shard", "key")
        .collect()
    )
    commit_annotations(store, pl.Schema(rows.schema), field.columns, moved, parents)

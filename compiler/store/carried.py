"""What was added to a dataset's tables after its build (scores, offsets), so that a repair keeps it."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.store.files import Store
from javisc.compiler.store.tables import Amend, as_it_is
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.fields import folded
from javisc.manifests.io import ROW_GROUP
from javisc.manifests.merge import repeats
from javisc.manifests.partitions import left_join
from javisc.manifests.schema import MANIFEST_SCHEMA
from javisc.manifests.spool import in_slices, regrouped, spool

#: What every merge writes anew.
_MERGED = frozenset({"format_version", "recipe", "recipe_digest", "tools", "mixed_tools", "counts", "digest", "fields"})
_CHOSEN = ("offset_sec", "vstart_sec")


def carried(store: Store) -> tuple[Amend, dict[str, Any]]:
    """What gives a manifest the added columns of the one that is there, by key, and the header's added entries.

    Of a manifest or header that is lost or damaged, nothing.
    """
    told: Any = {}
    try:
        told = json.loads(store.read("dataset.json"))
        header = {name: value for name, value in told.items() if name not in _MERGED} if isinstance(told, dict) else {}
    except (FileNotFoundError, ValueError):  # lost or damaged: nothing can be kept
        header = {}
    # What fields lie over the manifest is laid again when it is published.
    laid = {column for columns in folded(told if isinstance(told, dict) else {}).values() for column in columns}
    try:
        added = _added(pl.scan_parquet(store.fetch("manifest.parquet"), glob=False), laid, store.scratch / "carried")
    except (FileNotFoundError, *POLARS_FAULTS):
        return as_it_is, header
    if added is None:
        return as_it_is, header
    extra = [name for name in added.collect_schema() if name != "key"]

    def amend(manifest: pl.LazyFrame, folder: Path) -> pl.LazyFrame:
        names = manifest.collect_schema().names()
        kept = manifest.drop([name for name in extra if name in names])
        order = [*names, *(name for name in extra if name not in names)]
        schema = kept.join(added, on="key", how="left").select(order).collect_schema()
        joined = (frame.select(order) for frame in left_join(kept, added, "key", folder / "carried", pieces=True))
        return spool(regrouped(joined, ROW_GROUP), folder / "kept", schema)

    return amend, header


def _added(old: pl.LazyFrame, laid: Collection[str], folder: Path) -> pl.LazyFrame | None:
    """A copy of a manifest's keys and added columns, since the manifest itself is about to go; None where nothing was added.

    laid: columns that count for nothing. Raises what polars raises at a damaged table.
    """
    names = old.collect_schema().names()
    counts = old.select(pl.col(name).count() for name in _CHOSEN if name in names).collect(engine="streaming")
    chosen = [name for name in counts.columns if counts[name][0]]
    extra = [name for name in names if name not in laid and (name not in MANIFEST_SCHEMA or name in chosen)]
    if not extra or "key" not in names or any(table.height for table in repeats(old, ["key"])):
        return None
    kept = old.select("key", *extra)
    return spool(in_slices(kept, ROW_GROUP), folder, kept.collect_schema())

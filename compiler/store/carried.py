"""What was added to a dataset's tables after its build (scores, offsets), so that a repair keeps it."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from javisc.compiler.store.files import Store
from javisc.compiler.store.tables import Amend, as_it_is
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.fields import folded
from javisc.manifests.schema import MANIFEST_SCHEMA

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
    try:
        old = pl.read_parquet(store.fetch("manifest.parquet"), glob=False)
    except (FileNotFoundError, *POLARS_FAULTS):
        return as_it_is, header
    # What fields lie over the manifest is laid again when it is published.
    laid = {column for columns in folded(told if isinstance(told, dict) else {}).values() for column in columns}
    extra = [
        name
        for name in old.columns
        if name not in laid and (name not in MANIFEST_SCHEMA or (name in _CHOSEN and old[name].count()))
    ]
    if not extra or "key" not in old or old["key"].is_duplicated().any():
        return as_it_is, header

    def amend(manifest: pl.DataFrame) -> pl.DataFrame:
        names = manifest.columns
        kept = manifest.drop([name for name in extra if name in names])
        joined = kept.join(old.select("key", *extra), on="key", how="left", maintain_order="left")
        return joined.select(*names, *(name for name in extra if name not in names))

    return amend, header

"""Repairing fields: shards that are lost or damaged are made again from what is there, and the manifest shows them again."""

from __future__ import annotations

import shlex

import polars as pl

from javisc.compiler.fields.render import remake
from javisc.compiler.store.commits import Parts
from javisc.compiler.store.fields import base_shards, field_store, fold, publish_field
from javisc.compiler.store.files import Store
from javisc.compiler.store.present import expected_digests
from javisc.compiler.store.reconciled import follow, reconcile
from javisc.compiler.store.renditions import made_as_now
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.fields import FIELD_HEADER, Field, fields_of
from javisc.manifests.files import sha256_of


def mend_fields(base: Store, *, workers: int | None = None) -> list[str]:
    """Make again what of a dataset's fields is missing or wrong, with the bytes it had. Returns what was done, in words."""
    said: list[str] = []
    fields = fields_of(base.root)
    if not fields:
        return said
    reconcile(base, said.append, lay=False)
    for field in fields_of(base.root):
        store = field_store(base.root, field.name, base.scratch)
        if lost := _lost(base, store, field):
            shards = ", ".join(f"{shard:06d}" for shard in sorted(lost)[:3])
            if field.member == "json":
                rows = _rows(store, field)
                for shard in lost:
                    Parts(store).remove(shard)
                follow(base, store, field, rows, base_shards(base))
                publish_field(base, store, field.name, field.header["settings"], field.header["made_by"], lay=False)
                said.append(f"field {field.name}: {len(lost)} shards made again ({shards})")
            elif again := _again(base, field):
                said.append(
                    f"field {field.name}: {len(lost)} shards were lost or damaged ({shards}) and are taken out; to make them "
                    f"again: {again}"
                )
                _take_out(base, store, field, lost)
            elif "recipe" in field.header["settings"]:
                for shard in lost:
                    Parts(store).remove(shard)
                remake(base.root, field.name, workers=workers)
                said.append(f"field {field.name}: {len(lost)} shards rendered again ({shards})")
            else:
                said.append(
                    f"field {field.name}: {len(lost)} shards are lost or damaged ({shards}): make the field again"
                )
    fold(base)
    return said


def _again(base: Store, field: Field) -> str:
    """What to type for a field that is not made again here: latents, which their networks make, and renditions that an older
    javisc made otherwise, which are made anew as a whole. Nothing for others."""
    settings, told = field.header["settings"], field.header.get("made_by")
    if "recipe" in settings and not made_as_now(settings):
        render = ["--short-side", str(settings["recipe"]["short_side"]), "--as", field.name]
        undo = shlex.join(["javisc", "annotate", base.root, "--undo", field.name])
        return f"{undo} && {shlex.join(['javisc', 'render', base.root, *render])} (an older javisc made it, with other sizes)"
    if not isinstance(told, dict) or told.get("command") != "encode" or not isinstance(told.get("set"), list):
        return ""
    words = [f"--{name}={told.get(name)}" for name in ("recipe", "as", "passes", "batches")]
    return shlex.join(["javisc", "encode", base.root, *words, *(f"--set={one}" for one in told["set"])])


def _take_out(base: Store, store: Store, field: Field, lost: set[int]) -> None:
    """Publish a field without some of its shards; one that has no others goes, all but what it was begun with."""
    for shard in lost:
        Parts(store).remove(shard)
    if lost == set(field.parents):
        store.remove(FIELD_HEADER)
    else:
        publish_field(base, store, field.name, field.header["settings"], field.header["made_by"], lay=False)


def _lost(base: Store, store: Store, field: Field) -> set[int]:
    """The shards of a field whose files are not what their commits say, or have none."""
    parts = Parts(store)
    found = {shard for shard in field.parents if shard not in parts.commits}
    for shard, commit in parts.commits.items():
        files = {name.removeprefix("shards/"): digest for name, digest in expected_digests(shard, commit).items()}
        for name, digest in files.items():
            local = store.fetch(*name.split("/")) if store.exists(*name.split("/")) else None
            if local is None or sha256_of(local) != digest:
                found.add(shard)
    return found & set(field.parents)


def _rows(store: Store, field: Field) -> pl.DataFrame:
    """The field's rows: of its table, or where that is lost, of the manifest parts."""
    try:
        return pl.read_parquet(store.fetch("manifest.parquet"), glob=False)
    except (FileNotFoundError, *POLARS_FAULTS):
        return Parts(store).manifest(sorted(Parts(store).commits)).collect()

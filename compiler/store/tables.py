"""Merging the parts of all shards into the tables of the dataset."""

from __future__ import annotations

import hashlib
import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.recipe import Recipe
from javisc.compiler.store.commits import BUILD, Parts
from javisc.compiler.store.files import Store
from javisc.compiler.store.present import strangers
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.environment import said
from javisc.manifests.errors import UserError
from javisc.manifests.io import ROW_GROUP, write_header, write_table
from javisc.manifests.schema import REJECTED_SCHEMA, SHARDS_SCHEMA
from javisc.manifests.spool import regrouped, spool


@dataclass(frozen=True)
class Merged:
    """What the tables hold."""

    samples: int
    shards: int
    bytes: int
    rejected: Mapping[str, int]


#: Gives the manifest columns that are chosen after the build, as evaluation offsets; it gets an empty local folder, too.
Amend = Callable[[pl.LazyFrame, Path], pl.LazyFrame]


def as_it_is(frame: pl.LazyFrame, folder: Path) -> pl.LazyFrame:
    return frame


def merge(
    store: Store,
    plan: Path,
    shards: list[int],
    recipe: Recipe,
    *,
    amend: Amend = as_it_is,
    mixed_tools: Sequence[Mapping[str, str]] = (),
    more: Mapping[str, Any] | None = None,
) -> Merged:
    """Publish the tables of a build, see publish_tables. mixed_tools: versions of tools beside today's that made shards of it.

    more: further entries of dataset.json. Raises UserError, also where parts hold other keys than the plan.
    """
    try:
        if strange := strangers(Parts(store), plan, shards):
            shard, why = min(strange.items())
            raise UserError(f"shard {shard:06d} {why}: run `javisc repair {store.root}`", exit_code=1)
        # A refused input that was tried again has moved to a later shard; only its place in the plan counts.
        places = pl.scan_parquet(plan, glob=False).select("key", "shard")
        header: dict[str, Any] = {**(more or {}), "recipe": recipe.to_json(), "recipe_digest": recipe.digest}
        if mixed_tools:
            header["mixed_tools"] = [dict(each) for each in mixed_tools]
        return publish_tables(store, shards, header, places=places, amend=amend)
    except POLARS_FAULTS as error:
        if "os error" in str(error):  # a full disk, which its own message tells best
            raise
        raise UserError(
            f"a table in {store.path(BUILD)} cannot be read ({said(error)}): run `javisc repair {store.root}`",
            exit_code=1,
        ) from error


def publish_tables(
    store: Store,
    shards: Sequence[int],
    header: Mapping[str, Any],
    *,
    places: pl.LazyFrame | None = None,
    rejected: Amend = as_it_is,
    amend: Amend = as_it_is,
) -> Merged:
    """Publish manifest.parquet, rejected.parquet, shards.parquet and, last, dataset.json. All `shards` must be committed.

    Rows stand in the order of shard and key. Shards that are committed and not named are removed. header: what dataset.json says
    beside tools, counts and digest. places: (key, shard) of the refusals that still hold; None: all. rejected, amend: get the
    table of refusals and the manifest, and return the ones to publish, in rows as many as memory need not hold. Raises UserError.
    """
    store.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tables-", dir=store.scratch) as folder:
        return _publish(store, shards, header, places, rejected, amend, Path(folder))


def _publish(
    store: Store,
    shards: Sequence[int],
    header: Mapping[str, Any],
    places: pl.LazyFrame | None,
    rejected: Amend,
    amend: Amend,
    folder: Path,
) -> Merged:
    parts = Parts(store)
    rows = [{"shard": shard, **parts.commits[shard]} for shard in shards if parts.commits[shard]["samples"]]
    table = pl.DataFrame(rows, schema=SHARDS_SCHEMA, strict=False) if rows else pl.DataFrame(schema=SHARDS_SCHEMA)
    found = rejected(_refused(parts, shards, places, folder), folder)
    reasons = (
        found.group_by("reason").len().collect(engine="streaming").sort(["len", "reason"], descending=[True, False])
    )
    manifest = amend(parts.manifest([row["shard"] for row in rows]), folder)
    lengths = [] if store.field else [pl.col("duration").sum(), pl.col("num_frames").cast(pl.Int64).sum()]
    totals = manifest.select(pl.len().alias("samples"), *lengths).collect(engine="streaming").row(0)
    samples, *lasting = totals
    measures = {name: value or 0 for name, value in zip(("seconds", "frames"), lasting, strict=False)}
    for name, frame in (("manifest", manifest), ("rejected", found), ("shards", table)):
        with store.publish(f"{name}.parquet") as local:
            write_table(frame, local)
    size = int(table["bytes"].sum())
    whole: dict[str, Any] = {
        **header,
        "tools": tools() | header.get("tools", {}),
        "counts": {
            "samples": samples,
            "rejected": int(reasons["len"].sum()),
            "shards": table.height,
            "bytes": size,
            **measures,
        },
        "digest": digest_of(table),
    }
    with store.publish(store.header) as local:
        write_header(local, whole)
    for shard in set(parts.commits) - set(shards):
        parts.remove(shard)
    return Merged(samples, table.height, size, dict(reasons.iter_rows()))


def _refused(parts: Parts, shards: Sequence[int], places: pl.LazyFrame | None, folder: Path) -> pl.LazyFrame:
    """The refusals of some shards that still hold; see publish_tables."""

    def groups() -> Iterator[pl.DataFrame]:
        for group in parts.groups(shard for shard in shards if parts.commits[shard]["rejected"]):
            refused = parts.rejected(group)
            if places is not None:
                here = pl.col("shard").is_between(min(group), max(group)) & pl.col("shard").is_in(group)
                refused = refused.join(places.filter(here), on=["key", "shard"], how="semi", maintain_order="left")
            yield refused.select(REJECTED_SCHEMA.names()).collect(engine="streaming")

    return spool(regrouped(groups(), ROW_GROUP), folder / "refused", REJECTED_SCHEMA)


def digest_of(shards: pl.DataFrame) -> str:
    """The dataset's digest: SHA-256 over number and digests of its shards, in order."""
    lines = (f"{row['shard']:06d} {row['sha256']} {row['idx_sha256']}\n" for row in shards.iter_rows(named=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def tools() -> dict[str, str]:
    """Versions of what has a say in the bytes."""
    return dict(_tools())


@cache
def _tools() -> dict[str, str]:
    import av

    versions = {
        name: importlib.metadata.version(name) for name in ("javisc", "av", "soxr", "soundfile", "numpy", "polars")
    }
    return versions | {name: ".".join(map(str, version)) for name, version in sorted(av.library_versions.items())}

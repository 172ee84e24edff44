"""Checking the fields of a dataset: their files, that they belong to their base as it is, and that the manifest shows them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from javisc.compiler.check.shard import MAX_TRIED, _readers, packed, unpacked
from javisc.compiler.recipe import Recipe
from javisc.compiler.run.engine import EngineOptions
from javisc.compiler.run.spread import Job, spread
from javisc.compiler.store.fields import base_shards, field_store, own_rows
from javisc.compiler.store.files import Store
from javisc.compiler.store.shard import Member, header, index_line, index_text, read_members
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.entries import named
from javisc.manifests.errors import UserError
from javisc.manifests.fields import FIELD_HEADER, Field, begun, canonical, fields_of, folded, laid
from javisc.manifests.files import sha256_of
from javisc.manifests.io import HEADER, read_header
from javisc.manifests.kinds import PARTS, kind_of
from javisc.manifests.members import KEY

if TYPE_CHECKING:
    from javisc.compiler.check.dataset import Checks

_RATE, _START = 20_000.0, 300.0
#: A field's member longer than this is none.
_MOST = 4 << 30


def verify_fields(base: Store, folder: Path, checks: Checks, say: Callable[[str], None]) -> None:
    """Say every defect of a dataset's fields."""
    for name in begun(base.root):
        say(
            f"fields/{name}: begun and not finished: run its command again, or `javisc annotate {base.root} --undo {name}`"
        )
    try:
        fields = fields_of(base.root)
    except UserError as error:
        say(str(error))
        return
    told = read_header(base.path(HEADER))
    if not fields and not folded(told):
        return
    parents = base_shards(base)
    manifest = base.fetch("manifest.parquet")
    own = own_rows(base, pl.scan_parquet(manifest, glob=False), told)
    keys = own.select("key", "shard", "num_frames").collect()
    calls: list[tuple[str, dict[str, Any], float]] = []
    for field in fields:
        try:
            calls += _tables(base, field, keys, parents, folder, say)
        except (FileNotFoundError, UserError, *POLARS_FAULTS) as error:
            say(f"fields/{field.name}: its tables cannot be read: {error}")
            return
    try:
        shown = laid(own, fields)[0].collect()
        if not shown.equals(pl.read_parquet(manifest, glob=False).select(shown.columns)):
            say("manifest.parquet: does not show what its fields say: `javisc repair` lays them over it again")
    except (UserError, *POLARS_FAULTS) as error:
        say(f"manifest.parquet: does not show what its fields say ({error}): `javisc repair` lays them over it again")
    if not calls:
        return
    if checks.level == "sizes" or checks.sample is not None:
        return
    outcomes = spread(
        Job(f"{__name__}:verify_field_shard"),
        iter(calls),
        workers=checks.workers,
        engine=checks.engine,
        options=EngineOptions(address=checks.address),
    )
    with closing(outcomes):  # type: ignore[type-var]
        for outcome in outcomes:
            for defect in outcome.value or ():
                say(f"{outcome.call.tag}.{defect}")
            if outcome.error is not None:
                say(f"{outcome.call.tag}.tar: {outcome.error}: {outcome.message}")


def _tables(
    base: Store,
    field: Field,
    keys: pl.DataFrame,
    parents: dict[int, str],
    folder: Path,
    say: Callable[[str], None],
) -> Iterator[tuple[str, dict[str, Any], float]]:
    where = f"fields/{field.name}"
    store = field_store(base.root, field.name, folder)
    table = pl.read_parquet(store.fetch("manifest.parquet"), glob=False)
    shards = pl.read_parquet(store.fetch("shards.parquet"), glob=False)
    for key in table.join(keys, on=["key", "shard"], how="anti")["key"].head(3):
        say(f"{where}: {key} is no sample of the base, or lies in another shard of it")
    for key in table.filter(pl.col("key").is_duplicated())["key"].unique().head(3):
        say(f"{where}: {key} stands there more than once")
    for shard, digest in field.parents.items():
        if parents.get(shard) != digest:
            say(
                f"{where}/{shard:06d}.tar: belongs to another shard than the base has now: `javisc repair` drops or remakes it"
            )
    if set(field.parents) != set(shards["shard"]):
        say(f"{where}/{FIELD_HEADER}: names other shards than shards.parquet")
    counted = (field.header["counts"]["samples"], field.header["of"])
    if counted != (table.height, keys.height):
        say(
            f"{where}/{FIELD_HEADER}: says {counted[0]} of {counted[1]} samples, there are {table.height} of {keys.height}"
        )
    expected = {f"{shard:06d}.{end}" for shard in shards["shard"] for end in ("tar", "idx")}
    there = {name for name in store.names() if name.endswith((".tar", ".idx"))}
    for name in sorted(expected - there):
        say(f"{where}/{name}: missing")
    for name in sorted(there - expected):
        say(f"{where}/{name}: in no table")
    for row in shards.iter_rows(named=True):
        name = f"{row['shard']:06d}"
        if {f"{name}.tar", f"{name}.idx"} <= there:
            arguments = {
                "dataset": base.root,
                "name": field.name,
                "row": row,
                "base": packed(keys.filter(pl.col("shard") == row["shard"])),
                "scratch": str(folder / f"{field.name}-{name}"),
            }
            yield f"{where}/{name}", arguments, (_START + row["bytes"] / _RATE)


def verify_field_shard(dataset: str, name: str, row: dict[str, Any], base: str, scratch: str) -> list[str]:
    """In a worker: the defects of a field's shard, each beginning with "tar:" or "idx:". row: its row of shards.parquet."""
    store = field_store(dataset, name, Path(scratch))
    told = json.loads(store.read(FIELD_HEADER))
    shard = int(row["shard"])
    tar, idx = store.fetch(f"{shard:06d}.tar"), store.fetch(f"{shard:06d}.idx")
    rows = pl.scan_parquet(store.fetch("manifest.parquet"), glob=False).filter(pl.col("shard") == shard).collect()
    defects: list[str] = []
    if (size := tar.stat().st_size) != row["bytes"]:
        defects.append(f"tar: {size} bytes, shards.parquet says {row['bytes']}")
    if sha256_of(tar) != row["sha256"]:
        defects.append("tar: SHA-256 differs from shards.parquet")
    if sha256_of(idx) != row["idx_sha256"]:
        defects.append("idx: SHA-256 differs from shards.parquet")
    members: dict[str, list[Member]] = {}
    try:
        defects += _members(tar, size, rows, unpacked(base), told, members)
    except UserError as error:
        return [*defects, f"tar: {error}"]
    expected = index_text([index_line(key, found) for key, found in members.items()])
    right = idx.stat().st_size <= 2 * len(expected) + 1000 and idx.read_text(errors="replace") == expected
    if not right:
        defects.append("idx: does not say what the tar holds")
    small = max((m.size for found in members.values() for m in found), default=0) <= MAX_TRIED
    return [*defects, *(_readers(tar, idx, members, right) if small and not defects else ())]


def _members(
    tar: Path, size: int, rows: pl.DataFrame, base: pl.DataFrame, told: dict[str, Any], members: dict[str, list[Member]]
) -> Iterator[str]:
    by_key = {found["key"]: found for found in rows.iter_rows(named=True)}
    of = {found["key"]: found for found in base.iter_rows(named=True)}
    wanted = str(told["member"])
    kind = kind_of(wanted)
    assert kind is not None
    made = told["settings"].get("recipe")
    recipe = Recipe.from_json(made) if isinstance(made, dict) else None
    with tar.open("rb") as stream:
        for name, offset, length, raw in read_members(stream, size):
            key, _, extension = name.partition(".")
            if raw != header(name, length):
                yield f"tar: {name}: the header has other fields than mode 0644, time 0 and no owner"
            if extension != wanted or key not in by_key or not KEY.fullmatch(key):
                yield f"tar: {name}: in no row of the field's table"
                continue
            if length > (kind.most or _MOST):
                yield f"tar: {name}: {length} bytes, at most {kind.most or _MOST} are allowed"
                continue
            stream.seek(offset)
            content = stream.read(length)
            found = by_key[key]
            members.setdefault(key, []).append(Member(extension, offset, length, zlib.crc32(content)))
            if (offset, length, zlib.crc32(content)) != tuple(found[f"{wanted}_{part}"] for part in PARTS):
                yield f"tar: {name}: offset, size or CRC-32 differ from the field's table"
            if wanted == "json":
                if content != canonical({column: found[column] for column in told["columns"]}):
                    yield f"tar: {name}: says other than the field's table"
            elif recipe is not None or kind.free:
                row = {**of.get(key, {}), **{column: found[column] for column in told["columns"]}}
                yield from (f"tar: {name}: {defect}" for defect in named(kind.check)(content, row, recipe))
    if list(members) != rows["key"].to_list():
        yield "tar: holds other keys than the field's table, or in another order"

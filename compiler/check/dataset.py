"""Re-reading a whole dataset and naming every defect in one line: tables here, shards in workers."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.check import cells
from javisc.compiler.reasons import REASONS
from javisc.compiler.recipe import Recipe
from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.pool import Call, Pool
from javisc.compiler.store.files import Store
from javisc.compiler.store.tables import digest_of
from javisc.manifests.absent import found
from javisc.manifests.errors import UserError
from javisc.manifests.io import HEADER, read_header, scan_table
from javisc.manifests.schema import LATER, MANIFEST_SCHEMA, REJECTED_SCHEMA, SHARDS_SCHEMA

#: A shard is decoded at least this fast (bytes a second), plus a start-up: a hang is a defect too.
_RATE = 20_000.0
_START = 300.0


@dataclass(frozen=True)
class Verified:
    """What was read, and every defect found."""

    samples: int
    shards: int
    bytes: int
    defects: list[str]


def verify(
    path: str | os.PathLike[str], *, workers: int | None = None, report: Callable[[str], None] = lambda defect: None
) -> Verified:
    """Check a compiled dataset (folder or URL) down to the last frame. `report` hears each defect when it is found.

    Raises UserError if it is no dataset at all.
    """
    with tempfile.TemporaryDirectory(prefix="javisc-verify-") as folder:
        return _Verify(Store(os.fspath(path), Path(folder)), Path(folder), report).run(workers or usable_cores())


class _Verify:
    def __init__(self, store: Store, folder: Path, report: Callable[[str], None]) -> None:
        self.store, self.folder, self.report = store, folder, report
        self.defects: list[str] = []
        self.header = read_header(store.path(HEADER))
        if "datasets" in self.header:
            raise UserError(f"{store.root} is a view of other datasets: verify those")
        if "recipe" not in self.header:
            raise UserError(f"{store.path(HEADER)} has no recipe: javisc build did not write it")
        # A dataset of DatasetWriter says that no recipe made its members: what only a recipe can tell is not looked at.
        self.recipe = None if self.header["recipe"] is None else Recipe.from_json(self.header["recipe"])

    def say(self, defect: str) -> None:
        self.defects.append(defect)
        self.report(defect)

    def run(self, workers: int) -> Verified:
        manifest_file = self.store.fetch("manifest.parquet")
        manifest = scan_table(str(manifest_file), MANIFEST_SCHEMA)
        shards = scan_table(str(self.store.fetch("shards.parquet")), SHARDS_SCHEMA).collect()
        rejected = scan_table(str(self.store.fetch("rejected.parquet")), REJECTED_SCHEMA)
        for table, frame, schema in (("manifest", manifest, MANIFEST_SCHEMA), ("rejected", rejected, REJECTED_SCHEMA)):
            if missing := [name for name in schema if name not in frame.collect_schema() and name not in LATER]:
                raise UserError(
                    f"{self.store.path(table)}.parquet lacks the column {missing[0]}: build the dataset again"
                )
        samples = self._tables(manifest, rejected, shards)
        self._files(shards)
        self._shards(shards, str(manifest_file), workers)
        return Verified(samples, shards.height, int(shards["bytes"].sum()), self.defects)

    def _tables(self, manifest: pl.LazyFrame, rejected: pl.LazyFrame, shards: pl.DataFrame) -> int:
        """Check the tables against each other and the header. Returns the number of samples."""
        keys = manifest.select("key", "shard").collect()
        refused = rejected.select("key", "reason", "relpath").collect()
        for key in keys.filter(pl.col("key").is_duplicated())["key"].unique(maintain_order=True):
            self.say(f"manifest.parquet: key {key} stands more than once")
        for key in keys.filter(~pl.col("key").str.contains(r"^[a-z0-9_]+$").fill_null(False))["key"]:
            self.say(f"manifest.parquet: key {key!r} is not made of a-z, 0-9 and _")
        for key in keys.join(refused, on="key", how="semi")["key"]:
            self.say(f"rejected.parquet: key {key} is also in the manifest")
        for row in refused.filter(~pl.col("reason").is_in(list(REASONS)).fill_null(False)).iter_rows(named=True):
            self.say(f"rejected.parquet: {row['relpath']!r}: {row['reason']!r} is no documented reason")
        for absent in found(manifest):
            self.say(
                f"manifest.parquet: {absent}; an older javisc wrote it: `javisc repair {self.store.root}` mends it"
            )
        for defect in cells.defects(manifest, self.recipe) if self.recipe else ():
            self.say(f"manifest.parquet: {defect}")
        counted = keys.group_by("shard").len().join(shards, on="shard", how="full", coalesce=True).sort("shard")
        for row in counted.filter(pl.col("len").ne_missing(pl.col("samples"))).iter_rows(named=True):
            self.say(f"shards.parquet: shard {row['shard']}: {row['samples']} samples, the manifest has {row['len']}")
        if (digest := digest_of(shards)) != self.header.get("digest"):
            self.say(f"{HEADER}: digest is {self.header.get('digest')}, shards.parquet gives {digest}")
        counts = self.header.get("counts") or {}
        for name, count in (("samples", keys.height), ("rejected", refused.height), ("shards", shards.height)):
            if counts.get(name) != count:
                self.say(f"{HEADER}: counts.{name} is {counts.get(name)}, the tables have {count}")
        return keys.height

    def _files(self, shards: pl.DataFrame) -> None:
        """Check that shards/ holds exactly the files that shards.parquet names."""
        expected = {f"{shard:06d}.{end}" for shard in shards["shard"] for end in ("tar", "idx")}
        there = self.store.names("shards")
        for name in sorted(expected - there):
            self.say(f"shards/{name}: missing")
        for name in sorted(there - expected):
            self.say(f"shards/{name}: in no table")

    def _shards(self, shards: pl.DataFrame, manifest: str, workers: int) -> None:
        there = self.store.names("shards")
        with Pool(max(1, min(workers, shards.height)), self.folder / "logs", ("javisc.compiler.check.shard",)) as pool:
            pending = self._calls(shards, manifest, there)
            exhausted = False
            while not exhausted or pool.busy:
                while not exhausted and pool.hungry:
                    call = next(pending, None)
                    exhausted = call is None
                    if call is not None:
                        pool.submit(call)
                for outcome in pool.wait():
                    outcome.stop_if_unavailable()
                    shard = outcome.call.tag
                    for defect in outcome.value or ():
                        self.say(f"shards/{shard:06d}.{defect}")
                    if outcome.error is not None:
                        self.say(f"shards/{shard:06d}.tar: {outcome.error}: {outcome.message}")
                    shutil.rmtree(self.folder / f"{shard:06d}", ignore_errors=True)

    def _calls(self, shards: pl.DataFrame, manifest: str, there: set[str]) -> Iterator[Call]:
        for row in shards.iter_rows(named=True):
            name = f"{row['shard']:06d}"
            if not {f"{name}.tar", f"{name}.idx"} <= there:
                continue
            arguments: dict[str, Any] = {
                "root": self.store.root,
                "row": row,
                "manifest": manifest,
                "recipe": None if self.recipe is None else self.recipe.to_json(),
                "scratch": str(self.folder / name),
            }
            yield Call(
                row["shard"], "javisc.compiler.check.shard:verify_shard", arguments, _START + row["bytes"] / _RATE
            )

"""Re-reading a whole dataset and naming every defect in one line: tables here, shards in workers."""

from __future__ import annotations

import importlib.metadata
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.check import cells
from javisc.compiler.check.fields import verify_fields
from javisc.compiler.check.kept import Kept
from javisc.compiler.check.sampling import at_most, drawn
from javisc.compiler.check.shard import packed
from javisc.compiler.reasons import REASONS
from javisc.compiler.recipe import Recipe
from javisc.compiler.run.engine import EngineOptions
from javisc.compiler.run.spread import Job, spread
from javisc.compiler.run.stopping import stoppable
from javisc.compiler.store.fields import own_rows
from javisc.compiler.store.files import Store
from javisc.compiler.store.tables import digest_of
from javisc.manifests.absent import found
from javisc.manifests.errors import UserError
from javisc.manifests.fields import folded
from javisc.manifests.files import sha256_of
from javisc.manifests.io import HEADER, read_header, scan_table, write_table
from javisc.manifests.schema import LATER, MANIFEST_SCHEMA, REJECTED_SCHEMA, SHARDS_SCHEMA

#: A shard is decoded at least this fast (bytes a second), plus a start-up: a hang is a defect too.
_RATE = 20_000.0
_START = 300.0


@dataclass(frozen=True)
class Checks:
    """What is checked, and by what. level: see check.shard.LEVELS. workers, engine, address: see run.engine.EngineOptions.

    sample: the share of the samples that is read, drawn by `seed`; at the level digests a share of the shards. part: (i, n): the
    shards whose number leaves i when divided by n; the tables are part 0's. keep: write the result beside the dataset, and go on
    with a check of the same kind that was interrupted.
    """

    level: str = "frames"
    sample: float | None = None
    seed: int = 0
    part: tuple[int, int] | None = None
    workers: int | None = None
    engine: str = "local"
    address: str | None = None
    keep: bool = False

    @property
    def name(self) -> str:
        """Its name among others of the same dataset."""
        drawn = "" if self.sample is None else f"-sample{self.sample:g}-seed{self.seed}"
        return self.level + drawn + ("" if self.part is None else f"-part{self.part[0]}of{self.part[1]}")


@dataclass(frozen=True)
class Verified:
    """What was read, and every defect found.

    drawn: how many samples, or at the level digests shards, were read of `whole`; None where all were. bad: of how many of those
    there are defects. resumed: shards that an interrupted check had found sound. note: why the result is not kept.
    """

    samples: int
    shards: int
    bytes: int
    defects: list[str]
    drawn: int | None = None
    whole: int = 0
    bad: int = 0
    resumed: int = 0
    note: str | None = None

    @property
    def missed(self) -> int | None:
        """How many of `whole` may be damaged at most, with 95 % confidence; None where all were read."""
        return None if self.drawn is None else min(self.whole, math.floor(at_most(self.bad, self.drawn) * self.whole))


def verify(
    path: str | os.PathLike[str],
    *,
    workers: int | None = None,
    report: Callable[[str], None] = lambda defect: None,
    checks: Checks | None = None,
) -> Verified:
    """Check a compiled dataset (folder or URL), unless `checks` says less down to the last frame. `report` hears each defect.

    Raises UserError if it is no dataset at all.
    """
    chosen = replace(checks or Checks(), **({} if workers is None else {"workers": workers}))  # type: ignore[arg-type]
    if chosen.sample is not None and chosen.level == "sizes":
        raise UserError(
            "--sample: at --level sizes all sizes are compared anyway: leave --sample out, or give another --level"
        )
    if chosen.sample is not None and not 0 < chosen.sample <= 1:
        raise UserError(f"--sample {chosen.sample:g}: a share above 0 and up to 1 is allowed, as 0.01")
    with tempfile.TemporaryDirectory(prefix="javisc-verify-") as folder, stoppable():
        return _Verify(Store(os.fspath(path), Path(folder)), Path(folder), report, chosen).run()


class _Verify:
    def __init__(self, store: Store, folder: Path, report: Callable[[str], None], checks: Checks) -> None:
        self.store, self.folder, self.report, self.checks = store, folder, report, checks
        self.defects: list[str] = []
        self.bad = 0
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

    def run(self) -> Verified:
        manifest_file = self.store.fetch("manifest.parquet")
        manifest = scan_table(str(manifest_file), MANIFEST_SCHEMA)
        if folded(self.header):  # shards and KEY.json know nothing of what fields lay over them
            manifest_file = self.folder / "own-manifest.parquet"
            write_table(own_rows(self.store, manifest, self.header), manifest_file)
            manifest = scan_table(str(manifest_file), MANIFEST_SCHEMA)
        shards = scan_table(str(self.store.fetch("shards.parquet")), SHARDS_SCHEMA).collect()
        rejected = scan_table(str(self.store.fetch("rejected.parquet")), REJECTED_SCHEMA)
        for table, frame, schema in (("manifest", manifest, MANIFEST_SCHEMA), ("rejected", rejected, REJECTED_SCHEMA)):
            if missing := [name for name in schema if name not in frame.collect_schema() and name not in LATER]:
                raise UserError(
                    f"{self.store.path(table)}.parquet lacks the column {missing[0]}: build the dataset again"
                )
        checks = self.checks
        index, count = checks.part or (0, 1)
        keys = manifest.select("key", "shard").filter(pl.col("shard") % count == index).collect()
        if index == 0:
            self._tables(manifest, rejected, shards)
        shards = shards.filter(pl.col("shard") % count == index)
        self._files(shards, count, index)
        settings = {
            name: value for name, value in asdict(checks).items() if name in ("level", "sample", "seed", "part")
        }
        settings["part"] = None if checks.part is None else list(checks.part)
        kept = Kept(self.store, checks.name, settings, sha256_of(manifest_file), keep=checks.keep)
        chosen = None if checks.sample is None else self._drawn(manifest, shards, checks.sample)
        whole = len(keys) if checks.level != "digests" else shards.height
        read = shards if chosen is None else shards.filter(pl.col("shard").is_in(list(chosen)))
        resumed = len(kept.shards)
        try:
            if checks.level != "sizes":
                self._shards(read, manifest, chosen, kept)
            if index == 0:
                verify_fields(self.store, self.folder, checks, self.say)
        finally:
            kept.write()
        seen = None if chosen is None else len(chosen) if checks.level == "digests" else sum(map(len, chosen.values()))
        size = int(shards["bytes"].sum())
        found = Verified(keys.height, shards.height, size, self.defects, seen, whole, self.bad, resumed, kept.note)
        kept.write(
            samples=found.samples, bytes=found.bytes, count=len(self.defects), defects=self.defects[:1000], drawn=seen,
            damaged_at_most=found.missed, javisc=importlib.metadata.version("javisc"),
        )  # fmt: skip
        return replace(found, note=kept.note)

    def _drawn(self, manifest: pl.LazyFrame, shards: pl.DataFrame, share: float) -> dict[int, set[str]]:
        """The shards of the draw and, where samples are drawn, those of each. Parts of a dataset draw what the whole draws."""
        if self.checks.level == "digests":
            found = drawn((f"{shard:06d}" for shard in shards["shard"]), share, self.checks.seed)
            return {int(name): set() for name in found}
        keys = manifest.select("key", "shard").filter(pl.col("shard").is_in(shards["shard"].to_list())).collect()
        chosen = keys.filter(pl.col("key").is_in(list(drawn(keys["key"], share, self.checks.seed))))
        return {
            int(shard): set(rows["key"])  # type: ignore[call-overload]
            for (shard,), rows in chosen.group_by(["shard"], maintain_order=True)
        }

    def _tables(self, manifest: pl.LazyFrame, rejected: pl.LazyFrame, shards: pl.DataFrame) -> None:
        """Check the tables against each other and the header."""
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

    def _files(self, shards: pl.DataFrame, count: int, index: int) -> None:
        """Check that shards/ holds exactly the files that shards.parquet names, of its sizes."""
        expected = {f"{row['shard']:06d}.{end}": row for row in shards.iter_rows(named=True) for end in ("tar", "idx")}
        there = self.store.sizes("shards")
        for name in sorted(expected.keys() - there):
            self.say(f"shards/{name}: missing")
        for name in sorted(there.keys() - expected.keys()):
            number = name.partition(".")[0]
            if (int(number) % count if number.isdecimal() else 0) == index:
                self.say(f"shards/{name}: in no table")
        for name in sorted(expected.keys() & there):
            if name.endswith(".tar") and there[name] != expected[name]["bytes"]:
                self.say(f"shards/{name}: {there[name]} bytes, shards.parquet says {expected[name]['bytes']}")

    def _shards(
        self, shards: pl.DataFrame, manifest: pl.LazyFrame, chosen: dict[int, set[str]] | None, kept: Kept
    ) -> None:
        there = self.store.names("shards")
        left = shards.filter(~pl.format("{}", pl.col("shard").cast(pl.String).str.zfill(6)).is_in(list(kept.shards)))
        options = EngineOptions(address=self.checks.address)
        outcomes = spread(
            Job("javisc.compiler.check.shard:verify_shard"),
            self._calls(left, manifest, chosen, there),
            workers=self.checks.workers,
            engine=self.checks.engine,
            options=options,
        )
        with closing(outcomes):  # type: ignore[type-var]
            for outcome in outcomes:
                shard, found = outcome.call.tag, outcome.value or {"defects": [], "bad": None}
                defects = [f"shards/{shard:06d}.{defect}" for defect in found["defects"]]
                if outcome.error is not None:
                    defects.append(f"shards/{shard:06d}.tar: {outcome.error}: {outcome.message}")
                self.bad += bool(defects) if found["bad"] is None else found["bad"]
                for defect in defects:
                    self.say(defect)
                kept.add(shard, defects, found["bad"])

    def _calls(
        self, shards: pl.DataFrame, manifest: pl.LazyFrame, chosen: dict[int, set[str]] | None, there: set[str]
    ) -> Iterator[tuple[int, dict[str, Any], float]]:
        for row in shards.iter_rows(named=True):
            name = f"{row['shard']:06d}"
            if not {f"{name}.tar", f"{name}.idx"} <= there:
                continue
            rows = manifest.filter(pl.col("shard") == row["shard"])
            if chosen is not None and self.checks.level != "digests":
                rows = rows.filter(pl.col("key").is_in(list(chosen[row["shard"]])))
            arguments: dict[str, Any] = {
                "root": self.store.root,
                "row": row,
                "rows": packed(
                    rows.collect() if self.checks.level != "digests" else rows.select("key").clear().collect()
                ),
                "recipe": None if self.recipe is None else self.recipe.to_json(),
                "level": self.checks.level,
                "drawn": chosen is not None,
                "scratch": str(self.folder) if self.checks.engine == "local" else None,
            }
            yield row["shard"], arguments, _START + row["bytes"] / _RATE

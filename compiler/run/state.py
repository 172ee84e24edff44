"""What of a plan is published, and what was published and is lost: where a build resumes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.plan.layout import summary
from javisc.compiler.run.calls import Call
from javisc.compiler.run.engine import Unit
from javisc.compiler.run.pool import Pool
from javisc.compiler.store.commits import BUILD, Parts
from javisc.compiler.store.files import Store
from javisc.compiler.store.present import damage, expected_digests, expected_sizes, losses, strangers
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.schema import REJECTED_SCHEMA

#: Reading a shard is slower than this (bytes a second) only where storage hangs.
_RATE, _START = 1e6, 300.0


class State:
    """The shards of a plan (a local file) beside what the store holds.

    shards: see plan.layout.summary. lost: committed shards of which something is missing or wrong, and what. foreign: those
    that were made from another plan than `plans`, the digests of this one and those before it. torn: those of which something
    lies there without a commit: a build was killed, or the commit is lost.
    """

    def __init__(self, store: Store, plan: Path, plans: Collection[str]) -> None:
        self.store, self.plan = store, plan
        self.shards = summary(plan)
        self.parts = Parts(store)
        done = [shard for shard, revision in self._numbers() if self.parts.done(shard, revision)]
        self.lost = losses(store, self.parts, done)
        there = {name.partition(".")[0] for name in store.names("shards") | store.names(BUILD, "parts")}
        self.torn = {
            shard for shard, _ in self._numbers() if shard not in self.parts.commits and f"{shard:06d}" in there
        }
        made_from = {shard: self.parts.commits[shard].get("plan") for shard in done}
        self.foreign = {shard for shard, digest in made_from.items() if digest is not None and digest not in plans}

    def _numbers(self) -> list[tuple[int, int]]:
        return self.shards.select("shard", "revision").rows()

    def check(self, workers: int, scratch: Path) -> None:
        """Compare every file with its digest, too, and every part's keys with the plan's; what is wrong joins `lost`."""
        whole = [shard for shard, revision in self._numbers() if self.done(shard, revision)]
        with Pool(max(1, min(workers, len(whole))), scratch / "logs", (damage.__module__,)) as pool:
            for shard in whole:
                commit = self.parts.commits[shard]
                files = expected_digests(shard, commit)
                size = sum(size or 0 for size in expected_sizes(shard, commit).values())
                arguments = {"root": self.store.root, "files": files, "scratch": str(scratch / f"check-{shard:06d}")}
                pool.submit(Call(shard, f"{damage.__module__}:damage", arguments, _START + size / _RATE))
            while pool.busy:
                for outcome in pool.wait():
                    outcome.stop_if_unavailable()
                    why = outcome.value if outcome.error is None else f"cannot be read ({outcome.message})"
                    if why is not None:
                        self.lost[outcome.call.tag] = why
        whole = [shard for shard in whole if shard not in self.lost]
        self.foreign |= set(strangers(self.parts, self.plan, whole))

    def done(self, shard: int, revision: int) -> bool:
        """True if the shard is published in this revision, from this plan, and all of it lies there."""
        return self.parts.done(shard, revision) and shard not in self.lost and shard not in self.foreign

    @property
    def left(self) -> pl.DataFrame:
        """The rows of `shards` that are still, or again, to be made."""
        return self.shards.filter(pl.Series([not self.done(*row) for row in self._numbers()], dtype=pl.Boolean))

    def lines(self, *, repair: bool) -> list[str]:
        """What was found to be lost, in words. repair: also what only lacks a commit, which any killed build leaves."""
        said = []
        if self.torn and repair:
            said.append(f"{len(self.torn)} shards lie there without a commit (as {min(self.torn):06d}): made again")
        if self.lost:
            shown = "; ".join(self.lost[shard] for shard in sorted(self.lost)[:3]) + (
                "; …" if len(self.lost) > 3 else ""
            )
            said.append(f"{len(self.lost)} published shards are lost or damaged and are made again: {shown}")
        if self.foreign:
            said.append(
                f"{len(self.foreign)} published shards were made from another plan (as {min(self.foreign):06d}): made again"
            )
        return said

    def unit(self, shard: int, revision: int, inputs: list[dict[str, Any]], *, as_it_was: bool) -> Unit:
        """The unit that makes a shard; a lost one, if `as_it_was`, with the bytes that it had and no input that it refused."""
        commit = self.parts.commits.get(shard) or self._listed(shard)
        if not as_it_was or commit is None or not (shard in self.lost or shard in self.torn) or shard in self.foreign:
            return Unit(shard, revision, inputs)
        refused = {row["key"]: row for row in self._rejects(shard, [row["key"] for row in inputs])}
        for row in inputs:
            if row["key"] in refused:
                row.update(refused=refused[row["key"]]["reason"], refused_message=refused[row["key"]]["message"])
        expected = {name: commit[name] for name in ("sha256", "idx_sha256")} if commit["samples"] else None
        return Unit(shard, revision, inputs, expected)

    def _listed(self, shard: int) -> dict[str, Any] | None:
        """What the dataset's own table says of a shard; None where it does not know it or cannot be read."""
        try:
            rows = (
                pl.read_parquet(self.store.fetch("shards.parquet"), glob=False)
                .filter(pl.col("shard") == shard)
                .to_dicts()
            )
        except (FileNotFoundError, *POLARS_FAULTS):  # lost as well
            return None
        return rows[0] if rows else None

    def _rejects(self, shard: int, keys: list[str]) -> list[dict[str, Any]]:
        """The rows of what a shard of `keys` refused, from its part, or where that is lost too, from the dataset's table."""
        for name in ((BUILD, "parts", f"{shard:06d}.rejected.parquet"), ("rejected.parquet",)):
            try:
                table = pl.scan_parquet(self.store.fetch(*name), glob=False).select(REJECTED_SCHEMA.names())
                return table.filter(pl.col("key").is_in(keys)).collect(engine="streaming").to_dicts()
            except (FileNotFoundError, *POLARS_FAULTS):  # lost as well
                continue
        return []

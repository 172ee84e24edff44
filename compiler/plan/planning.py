"""Bringing a dataset's plan up to date with its inputs, and writing it down before any work."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl

from javisc.compiler.inputs.table import BESIDE, KEPT, LEFT, conform
from javisc.compiler.plan.before import DamagedPlan
from javisc.compiler.plan.changes import Changes, Names
from javisc.compiler.plan.comparing import Digests
from javisc.compiler.plan.layout import Layout, lay_out, write_plan
from javisc.compiler.plan.options import RETRIED, BuildOptions
from javisc.compiler.plan.saved import SETTINGS, check_settings, read_settings, write_settings
from javisc.compiler.recipe import Recipe
from javisc.compiler.store.commits import BUILD, Parts
from javisc.compiler.store.files import Store
from javisc.compiler.store.present import refuse_strangers
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.environment import Unavailable, gone, said
from javisc.manifests.errors import UserError
from javisc.manifests.urls import is_url

#: A table of INPUT_SCHEMA, or a function that makes one; it gets an empty local folder for what is longer than memory.
Inputs = pl.LazyFrame | pl.DataFrame | Callable[[Path], pl.LazyFrame]
PLAN = (BUILD, "plan.parquet")
#: How the names of tables begin that one plan leaves for the next.
_KEPT = "kept."
#: Rows, or names of folders, that are held at a time.
_BATCH = 100_000


def plan_digest(path: Path) -> str:
    """SHA-256 of a plan's file: what its shards' commits carry."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Planner:
    """Makes the plan of one build.

    guess: samples that fill a shard, from a table of INPUT_SCHEMA. digests: of files whose time changed. say: hears what is new.
    scratch: a local folder.
    """

    def __init__(
        self,
        store: Store,
        recipe: Recipe,
        options: BuildOptions,
        scratch: Path,
        *,
        guess: Callable[[pl.LazyFrame], int],
        digests: Digests,
        say: Callable[[str], None],
    ) -> None:
        self.store, self.recipe, self.options, self.scratch = store, recipe, options, scratch
        self.guess, self.digests, self.say = guess, digests, say

    def plan(self, inputs: Inputs | None) -> Path:
        """Bring the plan up to date and return it as a local file. Raises UserError."""
        exists = self.store.exists(*PLAN)
        if exists:
            check_settings(self.store, self.recipe, self.options)
        if self.options.finish or self.options.repair or (exists and self.options.partial):
            if not exists:
                raise UserError(f"{self.store.root} has no plan yet: build without --finish first")
            return self.store.fetch(*PLAN)
        if not exists and self.store.exists("dataset.json"):
            raise UserError(
                f"{self.store.root} holds a dataset without {'/'.join(PLAN)}, so nothing can be added to it: give another --out"
            )
        assert inputs is not None
        if not exists:
            refuse_strangers(self.store)
        folder = self.scratch / "plan"
        folder.mkdir(parents=True)
        self._hand_over(folder / KEPT)
        table = conform(inputs(folder) if callable(inputs) else inputs)
        for left in sorted((folder / LEFT).glob("*.parquet")):
            with self.store.publish(BUILD, _KEPT + left.name) as local:
                shutil.copyfile(left, local)
        for beside in sorted((folder / BESIDE).glob("*.parquet")):
            with self.store.publish(beside.name) as local:
                shutil.copyfile(beside, local)
        if table.select(pl.len()).collect(engine="streaming").item() == 0:
            raise UserError(
                f"no input was found, but {self.store.root} was built from some: mount their folder again, or give it"
                if exists
                else "no input was found: give a folder or list with media files",
                exit_code=1,
            )
        layout = Layout(self._per_shard(table), self.options.seed)
        old = self._old() if exists else None
        try:
            plan, changes = lay_out(
                table,
                layout,
                folder,
                old=old,
                published=None if old is None else Parts(self.store),
                prune=self.options.prune,
                retry=RETRIED if self.options.retry_rejected else (),
                digests=self.digests,
            )
        except DamagedPlan as error:
            raise self._damaged(error) from error
        self._stop_if_lost(changes)
        with self.store.publish(*PLAN) as local:
            write_plan(plan, local)
            # First the settings that name it: no plan stands there that they do not know.
            write_settings(self.store, self.recipe, self.options, layout, plan_digest(local))
        self._tell(changes, exists)
        shutil.rmtree(folder, ignore_errors=True)
        return self.store.fetch(*PLAN)

    def _hand_over(self, folder: Path) -> None:
        """Put what the plan before left for this one into a folder."""
        folder.mkdir()
        for name in sorted(self.store.names(BUILD)):
            if name.startswith(_KEPT):
                shutil.copyfile(self.store.fetch(BUILD, name), folder / name.removeprefix(_KEPT))

    def _old(self) -> pl.LazyFrame:
        local = self.store.fetch(*PLAN)
        try:
            plan = pl.scan_parquet(local, glob=False)
            plan.collect_schema()
        except POLARS_FAULTS as error:
            raise self._damaged(error) from error
        return plan

    def _damaged(self, error: Exception) -> UserError:
        return UserError(
            f"{self.store.path(*PLAN)} is damaged ({said(error)}): restore it, or give another --out", exit_code=1
        )

    def _stop_if_lost(self, changes: Changes) -> None:
        """Raise Unavailable where planned inputs are gone with all around them: a lost mount must not change the plan."""
        if self.options.prune:
            return
        away: dict[bytes, bool] = {}
        lost = Names()
        for batch in changes.lost.collect_batches(chunk_size=_BATCH):
            names = []
            for path, raw in batch.iter_rows():
                folder = os.path.dirname(os.fsencode(path) if raw is None else raw)  # noqa: PTH120
                if folder not in away:
                    if len(away) >= _BATCH:
                        away.clear()
                    away[folder] = not is_url(path) and gone(os.path.join(folder, b"x"))  # noqa: PTH118
                if away[folder]:
                    names.append(path)
            lost.add(names)
        if lost:
            raise Unavailable(
                f"{len(lost)} inputs of the plan are gone with their folders ({lost.first[0]!r} is the first): mount them again "
                "and run the same command; if they were deleted, say --prune and the plan does without them"
            )

    def _tell(self, changes: Changes, again: bool) -> None:
        if again:
            self.say(f"{changes.new} inputs are new, {changes.kept} are in the plan already")
        for line in changes.lines(self.options.prune):
            self.say(line)

    def _per_shard(self, table: pl.LazyFrame) -> int:
        """Samples per shard: as asked for, as the settings say, or from the estimate."""
        if self.options.shard_samples is not None:
            return self.options.shard_samples
        if self.store.exists(*SETTINGS) and self.store.exists(*PLAN):
            settings = read_settings(self.store)
            if settings["shard_size"] == self.options.shard_size:
                return int(settings["per_shard"])
        usable = table.filter(pl.col("refused").is_null()).select(pl.len(), pl.col("source_bytes").sum())
        count, size = usable.collect(engine="streaming").row(0)
        if (size or 0) * 4 <= self.options.shard_size:
            # Compiled clips are hardly ever four times their source: this fits one shard without looking.
            return max(1, count)
        return self.guess(table)

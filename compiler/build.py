"""From an input table to a compiled dataset: plan, run what is not published, merge."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.inputs.table import conform
from javisc.compiler.media.encoders import check_encoder
from javisc.compiler.plan.layout import read_shards, summary
from javisc.compiler.plan.options import BuildOptions
from javisc.compiler.plan.planning import PLAN, Inputs, Planner, plan_digest
from javisc.compiler.plan.saved import read_settings
from javisc.compiler.recipe import Recipe
from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.digests import digests
from javisc.compiler.run.early import UNPLANNED
from javisc.compiler.run.engine import COMPILERS, EngineOptions, Job, check_engine, make_engine, modules_of
from javisc.compiler.run.estimate import Estimate, estimate
from javisc.compiler.run.pool import Pool
from javisc.compiler.run.progress import Reporter
from javisc.compiler.run.state import State
from javisc.compiler.run.stopping import stoppable
from javisc.compiler.sparsesync.offsets import saved_offsets
from javisc.compiler.store.commits import Parts
from javisc.compiler.store.fields import field_store
from javisc.compiler.store.files import Store, unwritable
from javisc.compiler.store.lock import Held, locked
from javisc.compiler.store.reconciled import reconcile
from javisc.compiler.store.renditions import SOURCES, begin_built, recipe_of
from javisc.compiler.store.running import forget, running
from javisc.compiler.store.scratch import Scratch, sweep
from javisc.compiler.store.tables import Amend, as_it_is, merge
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.environment import UNWRITABLE, Unavailable
from javisc.manifests.errors import UserError
from javisc.manifests.splits import unused

__all__ = ["BuildOptions", "BuildResult", "Inputs", "build", "plan_only"]


@dataclass(frozen=True)
class BuildResult:
    """What stands on disk after a build. rejected: count by reason. shards_left: those that other ranges still have to build."""

    out: str
    samples: int
    shards: int
    bytes: int
    rejected: Mapping[str, int]
    seconds: float
    shards_left: int = 0
    notes: tuple[str, ...] = ()


def build(
    inputs: Inputs | None,
    recipe: Recipe,
    out: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    reporter: Reporter | None = None,
    pool: Pool | None = None,
) -> BuildResult:
    """Compile the inputs (INPUT_SCHEMA, see compiler.inputs) into the dataset `out`, a folder or URL.

    `recipe.kind` chooses what a file becomes: "jav" and "sync" go through transcode, "audio" through transcode_audio.
    What an earlier, interrupted build published stays; inputs that are new since then are appended in new shards.
    inputs may be None with options.finish, and is not looked at where a range of an existing plan is built.
    pool: workers of this machine that have begun (run.early); they are gone afterwards.
    Raises UserError for anything a user can mend; the dataset is then left in a state that the same call resumes.
    """
    check_encoder(recipe)
    return _Build(recipe, os.fspath(out), options or BuildOptions(), reporter or Reporter(), pool).run(inputs)


def plan_only(
    inputs: Inputs, recipe: Recipe, out: str | os.PathLike[str], options: BuildOptions | None = None
) -> Estimate:
    """What `build` would cost, from a probed handful; writes nothing below `out`."""
    options = options or BuildOptions()
    check_encoder(recipe)
    check_engine(options.engine, EngineOptions(options.workers, options.address), used=False)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        table = conform(inputs(Path(folder)) if callable(inputs) else inputs)
        job = _job(recipe, os.fspath(out), Path(folder), options)
        return estimate(table, job, options.seed, options.workers or usable_cores())


def _job(recipe: Recipe, out: str, scratch: Path, options: BuildOptions) -> Job:
    compiler = options.compiler or COMPILERS[recipe.kind]
    return Job(
        out,
        recipe,
        str(scratch),
        compiler,
        options.time_limit,
        options.split,
        options.seed,
        renditions=_renditions(recipe, options),
    )


def _renditions(recipe: Recipe, options: BuildOptions) -> tuple[Recipe, ...]:
    """The recipes of the renditions that are asked for. Raises UserError."""
    if options.renditions and (recipe.kind != "jav" or options.compiler is not None):
        raise UserError(
            "--renditions: only `javisc build jav` makes them with the clips; `javisc render` adds them later"
        )
    return tuple(recipe_of(recipe, side) for side in options.renditions)


class _Build:
    """One run of `build`."""

    def __init__(
        self, recipe: Recipe, out: str, options: BuildOptions, reporter: Reporter, pool: Pool | None = None
    ) -> None:
        self.recipe, self.options, self.reporter = recipe, options, reporter
        self.work = Scratch(out, options.scratch)
        self.scratch = self.work.path
        self.store = Store(out, self.scratch / "fetched")
        self.began = time.monotonic()
        self.notes: list[str] = []
        self.pool = pool

    def run(self, inputs: Inputs | None) -> BuildResult:
        ranged = self.options.partial
        idle = self.options.write_plan or self.options.finish
        check_engine(
            self.options.engine, EngineOptions(self.options.workers, self.options.address), used=not idle
        )  # before anything is looked at or written
        planner = Planner(
            self.store,
            self.recipe,
            self.options,
            self.scratch,
            guess=self._per_shard,
            digests=self._digests,
            say=self._note,
        )
        with locked(self.store, shared=ranged) as held, stoppable():
            if held.note:
                self._note(held.note)
            if held.alone:
                sweep(self.store, self.work)
                forget(self.store)
            try:
                self.work.open()
                with running(self.store, self.options.what, self.options.part), self._workers(idle):
                    # A plan that stands is only read: tasks that come together need not wait for each other.
                    with self._planning() if ranged and not self.store.exists(*PLAN) else nullcontext():
                        path = planner.plan(inputs)
                    if self.options.offsets is not None:
                        self.options.offsets.save(self.store)
                    if self.options.write_plan:
                        return self._result(0, summary(path).height, 0, {}, 0)
                    return self._run(path, held)
            except KeyboardInterrupt:
                raise UserError(self._interrupted(), exit_code=130) from None
            except (OSError, *POLARS_FAULTS) as error:
                if (full := _full(error)) is None:
                    raise
                raise unwritable(full.filename or self.scratch, full) from error
            finally:
                self.work.close()

    @contextmanager
    def _workers(self, idle: bool) -> Iterator[None]:
        """Have this machine's workers for the block: those that look at a handful for the plan build afterwards."""
        if idle or self.options.engine != "local":
            yield
            return
        if self.pool is None:
            self.pool = Pool(self._count, None, modules_of(self._job().compiler))
        with self.pool as pool:
            pool.keep_logs(self.scratch / "logs")
            yield

    @property
    def _count(self) -> int:
        return self.options.workers or usable_cores()

    def _job(self) -> Job:
        return _job(self.recipe, self.store.root, self.scratch, self.options)

    @contextmanager
    def _planning(self) -> Iterator[None]:
        """Be the one task that writes the plan; say so while another one does."""
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.store, name="plan.lock"))
            except UserError as error:
                if isinstance(error, Unavailable):
                    raise
                self._note("another task writes the plan: waiting for it (`javisc plan` writes it beforehand)")
                stack.enter_context(locked(self.store, name="plan.lock", wait=True))
            yield

    def _interrupted(self) -> str:
        if not self.store.exists(*PLAN):
            return UNPLANNED
        shards = summary(self.store.fetch(*PLAN))
        parts = Parts(self.store)
        done = sum(parts.done(shard, revision) for shard, revision in shards.select("shard", "revision").iter_rows())
        return f"interrupted: {done} of {shards.height} shards are published; run the same command again, it resumes"

    def _per_shard(self, table: pl.LazyFrame) -> int:
        job = replace(self._job(), renditions=())
        found = estimate(table, job, self.options.seed, self._count, self.pool)
        return found.per_shard(self.options.shard_size)

    def _digests(self, paths: Sequence[Path]) -> Sequence[str | None]:
        """Of sources whose time changed: workers hash them."""
        return digests(paths, self._count, self.scratch / "digests")

    def _note(self, line: str) -> None:
        self.notes.append(line)
        self.reporter.say(line)

    def _run(self, path: Path, held: Held) -> BuildResult:
        """Run what is not published; merge unless this is a range of the whole."""
        for rendition in _renditions(self.recipe, self.options):
            begin_built(self.store, rendition)
        settings = read_settings(self.store)
        digest = plan_digest(path)
        state = State(self.store, path, {digest, *settings.get("plans", [])})
        if self.options.check:
            state.check(self._count, self.scratch / "check")
        for line in state.lines(repair=self.options.repair):
            self._note(line)
        shards, left = state.shards, state.left
        todo = left.clear() if self.options.finish else left
        if self.options.repair:
            todo = left.filter(pl.col("shard").is_in([*state.lost, *state.foreign, *state.torn]))
        todo = todo.filter(pl.col("shard").map_elements(self.options.takes, return_dtype=pl.Boolean))
        made: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        self.reporter.start(
            int(todo["inputs"].sum()), int(todo["bytes"].sum()), shards.height, shards.height - left.height
        )
        if todo.height:
            units = (state.unit(*row, as_it_was=not self.options.prune) for row in read_shards(path, todo))
            scratch = None if self.options.scratch is None else os.path.abspath(self.options.scratch)  # noqa: PTH100 (keeps links)
            engine = make_engine(
                self.options.engine,
                replace(self._job(), plan=digest),
                EngineOptions(self.options.workers, self.options.address, scratch, self.pool),
            )
            with closing(engine.run(units, self.reporter.event)) as results:  # type: ignore[type-var]
                for result in results:
                    held.check()
                    made.update(samples=result.samples, bytes=result.bytes, shards=1)
                    refused.update(result.rejected)
                    self.reporter.unit(result)
        waiting = left.height - todo.height
        if self.options.partial:
            return self._result(made["samples"], made["shards"], made["bytes"], refused, waiting)
        if waiting and self.options.repair:
            self._note(f"{waiting} of {shards.height} shards were never built: run the build, it resumes")
            return self._result(made["samples"], made["shards"], made["bytes"], refused, waiting)
        if waiting:
            raise UserError(
                f"{waiting} of {shards.height} shards are not built yet (the first is {left['shard'][0]}): "
                "build them with --part or --shard-range, or run without --finish",
                exit_code=1,
            )
        held.check()
        if held.alone:
            sweep(self.store, self.work)
        mixed = settings.get("mixed_tools", [])
        kept, more = self._carried() if self.options.repair else (as_it_is, {})
        amend = self._offsets(kept)
        whole = merge(
            self.store, path, shards["shard"].to_list(), self.recipe, amend=amend, mixed_tools=mixed, more=more
        )
        reconcile(self.store, self._note)
        for side in self.options.renditions if whole.samples else ():
            self._rest_of(side)
        if self.options.split and whole.samples and not self.options.repair:
            for line in unused(pl.scan_parquet(self.store.fetch("manifest.parquet"), glob=False), self.options.split):
                self._note(line)
        return self._result(whole.samples, whole.shards, whole.bytes, whole.rejected, 0)

    def _carried(self) -> tuple[Amend, dict[str, Any]]:
        """What a repair keeps of tables that something was added to."""
        from javisc.compiler.store.carried import carried  # numpy comes with it, which a build starts without

        return carried(self.store)

    def _rest_of(self, side: int) -> None:
        """Make what shards of older builds lack of a rendition, and publish it."""
        from javisc.compiler.fields.render import (  # which encodes: builds of sounds start without it
            NothingLarger,
            render,
        )

        try:
            told = self.options
            done = render(
                self.store.root,
                side,
                held=True,
                made_from=SOURCES,
                workers=told.workers,
                engine=told.engine,
                address=told.address,
            )
            small = f", {done.smaller} are as small already" * bool(done.smaller)
            self._note(f"rendition {done.name}: {done.samples} of {done.of} clips{small}")
        except NothingLarger as error:
            self._note(str(error))
            field_store(self.store.root, recipe_of(self.recipe, side).name, self.scratch).remove_tree()

    def _offsets(self, kept: Amend) -> Amend:
        """`kept`, and what gives the manifest its evaluation offsets: those that this build was given, or one before it."""
        offsets = saved_offsets(self.store)
        if offsets is None:
            return kept

        def amend(manifest: pl.LazyFrame, folder: Path) -> pl.LazyFrame:
            chosen, report = offsets.choose(kept(manifest, folder), folder)
            if self.options.offsets is not None:
                self._note(report.line())
            return chosen

        return amend

    def _result(self, samples: int, shards: int, size: int, rejected: Mapping[str, int], left: int) -> BuildResult:
        seconds = time.monotonic() - self.began
        return BuildResult(self.store.root, samples, shards, size, dict(rejected), seconds, left, tuple(self.notes))


def _full(error: Exception) -> OSError | None:
    """The error of a full or read-only disk, also where polars tells of it in words."""
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return error
    match = re.search(r"\(os error (\d+)\)", str(error))
    code = int(match[1]) if match else 0
    return OSError(code, os.strerror(code)) if code in UNWRITABLE else None

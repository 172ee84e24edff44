"""From an input table to a compiled dataset: plan, run what is not published, merge."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.inputs.table import conform, is_url
from javisc.compiler.plan.layout import Changes, Layout, lay_out, read_shards, summary, write_plan
from javisc.compiler.recipe import Recipe
from javisc.compiler.run.engine import COMPILERS, Job, Unit, make_engine
from javisc.compiler.run.estimate import Estimate, estimate
from javisc.compiler.run.progress import Reporter
from javisc.compiler.store.commits import BUILD, Parts
from javisc.compiler.store.files import UNWRITABLE, Store, unwritable
from javisc.compiler.store.lock import alive, locked
from javisc.compiler.store.tables import merge
from javisc.manifests.errors import UserError

#: A table of INPUT_SCHEMA, or a function that makes one; it gets an empty local folder for what is longer than memory.
Inputs = pl.LazyFrame | pl.DataFrame | Callable[[Path], pl.LazyFrame]
PLAN = (BUILD, "plan.parquet")
SETTINGS = (BUILD, "settings.json")
WORK = ".work"
#: Refusals that another attempt may lift; what --retry-rejected plans again.
RETRIED = ("crashed", "timeout", "internal", "vanished", "unreadable", "no_caption")


@dataclass(frozen=True)
class BuildOptions:
    """How a build runs. Only `shard_size`, `shard_samples`, `seed` and `split` have a say in the result.

    shard_size: bytes of a shard, by estimate; shard_samples overrides it. split: names and shares. workers: processes of the
    local engine, None for one per core. time_limit: seconds per file, to which some per megabyte are added. shard_range:
    build only the shards a ≤ n < b and do not merge. finish: only merge what is published. prune: rewrite shards whose
    inputs changed or are gone. retry_rejected: try inputs again that were refused for reasons that may pass. scratch: local
    folder for unpacked clips. compiler: what becomes of one file, see run.engine.COMPILERS; None: what the recipe says.
    """

    shard_size: int = 512_000_000
    shard_samples: int | None = None
    seed: int = 0
    split: Mapping[str, float] = field(default_factory=dict)
    workers: int | None = None
    engine: str = "local"
    time_limit: float = 120.0
    shard_range: tuple[int, int | None] | None = None
    finish: bool = False
    prune: bool = False
    retry_rejected: bool = False
    scratch: Path | None = None
    compiler: str | None = None


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
) -> BuildResult:
    """Compile the inputs (INPUT_SCHEMA, see compiler.inputs) into the dataset `out`, a folder or URL.

    `recipe.kind` chooses what a file becomes: "jav" and "sync" go through transcode, "audio" through transcode_audio.
    What an earlier, interrupted build published stays; inputs that are new since then are appended in new shards.
    inputs may be None with options.finish, and is not looked at where a range of an existing plan is built.
    Raises UserError for anything a user can mend; the dataset is then left in a state that the same call resumes.
    """
    return _Build(recipe, os.fspath(out), options or BuildOptions(), reporter or Reporter()).run(inputs)


def plan_only(
    inputs: Inputs, recipe: Recipe, out: str | os.PathLike[str], options: BuildOptions | None = None
) -> Estimate:
    """What `build` would cost, from a probed handful; writes nothing below `out`."""
    options = options or BuildOptions()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        table = conform(inputs(Path(folder)) if callable(inputs) else inputs)
        job = _job(recipe, os.fspath(out), Path(folder), options)
        return estimate(table, job, options.seed, options.workers or os.cpu_count() or 1)


def _job(recipe: Recipe, out: str, scratch: Path, options: BuildOptions) -> Job:
    return Job(out, recipe, str(scratch), options.compiler or COMPILERS[recipe.kind], options.time_limit)


class _Build:
    """One run of `build`."""

    def __init__(self, recipe: Recipe, out: str, options: BuildOptions, reporter: Reporter) -> None:
        self.recipe, self.options, self.reporter = recipe, options, reporter
        name = f"{socket.gethostname()}-{os.getpid()}"
        if options.scratch is not None or is_url(out):
            self.scratch = Path(options.scratch or tempfile.gettempdir(), f"javisc-{name}")
        else:
            self.scratch = Path(os.path.abspath(out), WORK, name)  # noqa: PTH100 (keeps links)
        self.store = Store(out, self.scratch / "fetched")
        self.began = time.monotonic()
        self.notes: list[str] = []

    def run(self, inputs: Inputs | None) -> BuildResult:
        ranged = self.options.shard_range is not None
        with locked(self.store, shared=ranged), _stoppable():
            if not ranged:
                self._sweep()
            try:
                self.scratch.mkdir(parents=True, exist_ok=True)
                with locked(self.store, name="plan.lock", wait=True) if ranged else nullcontext():
                    path = self._plan(inputs)
                return self._run(path)
            except KeyboardInterrupt:
                raise UserError(self._interrupted(), exit_code=130) from None
            except (OSError, pl.exceptions.PolarsError) as error:
                if (full := _full(error)) is None:
                    raise
                raise unwritable(full.filename or self.scratch, full) from error
            finally:
                shutil.rmtree(self.scratch, ignore_errors=True)
                if not self.store.remote and not self.options.scratch:
                    _remove_if_empty(Path(self.store.root, WORK))

    def _interrupted(self) -> str:
        if not self.store.exists(*PLAN):
            return "interrupted before the plan was written; nothing is published"
        shards = summary(self.store.fetch(*PLAN))
        parts = Parts(self.store)
        done = sum(parts.done(shard, revision) for shard, revision in shards.select("shard", "revision").iter_rows())
        return f"interrupted: {done} of {shards.height} shards are published; run the same command again, it resumes"

    def _sweep(self) -> None:
        """Remove what killed builds and workers left behind. The lock is ours alone, so nobody uses it."""
        if not self.store.remote:
            root = Path(self.store.root)
            for stale in (root / WORK).glob("*"):
                if stale != self.scratch:
                    shutil.rmtree(stale, ignore_errors=True)
            for folder in (root, root / "shards", root / BUILD, root / BUILD / "parts"):
                for leftover in folder.glob(".*.tmp") if folder.is_dir() else ():
                    leftover.unlink(missing_ok=True)
        own = f"javisc-{socket.gethostname()}-"
        for stale in self.scratch.parent.glob(f"{own}*"):
            pid = stale.name.removeprefix(own)
            if pid.isdigit() and not alive(int(pid)):
                shutil.rmtree(stale, ignore_errors=True)

    def _plan(self, inputs: Inputs | None) -> Path:
        """Bring the plan up to date and return it as a local file."""
        exists = self.store.exists(*PLAN)
        if exists:
            self._check_settings()
        if self.options.finish or (exists and self.options.shard_range is not None):
            if not exists:
                raise UserError(f"{self.store.root} has no plan yet: build without --finish first")
            return self.store.fetch(*PLAN)
        if not exists and self.store.exists("dataset.json"):
            raise UserError(
                f"{self.store.root} holds a dataset without {'/'.join(PLAN)}, so nothing can be added to it: give another --out"
            )
        assert inputs is not None
        folder = self.scratch / "plan"
        folder.mkdir(parents=True)
        table = conform(inputs(folder) if callable(inputs) else inputs)
        if table.select(pl.len()).collect(engine="streaming").item() == 0 and not exists:
            raise UserError("no input was found: give a folder or list with media files")
        layout = Layout(self._per_shard(table), self.options.seed, self.options.split)
        plan, changes = lay_out(
            table,
            layout,
            folder,
            old=pl.read_parquet(self.store.fetch(*PLAN)) if exists else None,
            published=Parts(self.store).published() if exists else None,
            prune=self.options.prune,
            retry=RETRIED if self.options.retry_rejected else (),
        )
        self._write_settings(layout)
        with self.store.publish(*PLAN) as local:
            write_plan(plan, local)
        self._tell(changes, exists)
        shutil.rmtree(folder, ignore_errors=True)
        return self.store.fetch(*PLAN)

    def _tell(self, changes: Changes, again: bool) -> None:
        if again:
            self._note(f"{changes.new} inputs are new, {changes.kept} are in the plan already")
        for line in changes.lines(self.options.prune):
            self._note(line)

    def _note(self, line: str) -> None:
        self.notes.append(line)
        self.reporter.say(line)

    def _per_shard(self, table: pl.LazyFrame) -> int:
        """Samples per shard: as asked for, as the settings say, or from the estimate."""
        if self.options.shard_samples is not None:
            return self.options.shard_samples
        if self.store.exists(*SETTINGS) and self.store.exists(*PLAN):
            settings = json.loads(self.store.read(*SETTINGS))
            if settings["shard_size"] == self.options.shard_size:
                return int(settings["per_shard"])
        usable = table.filter(pl.col("refused").is_null()).select(pl.len(), pl.col("source_bytes").sum())
        count, size = usable.collect(engine="streaming").row(0)
        if (size or 0) * 4 <= self.options.shard_size:
            # Compiled clips are hardly ever four times their source: this fits one shard without looking.
            return max(1, count)
        job = _job(self.recipe, self.store.root, self.scratch, self.options)
        found = estimate(table, job, self.options.seed, self.options.workers or os.cpu_count() or 1)
        return found.per_shard(self.options.shard_size)

    def _check_settings(self) -> None:
        """Raise UserError if the dataset was begun with settings that shape bytes otherwise."""
        settings = json.loads(self.store.read(*SETTINGS))
        root = self.store.root
        if settings["recipe_digest"] != self.recipe.digest:
            was, now = settings["recipe"], self.recipe.to_json()
            what = ", ".join(f"{name} {was.get(name)!r} → {now[name]!r}" for name in now if was.get(name) != now[name])
            raise UserError(
                f"{root} was built with another recipe ({what}): give the settings it had, or another --out"
            )
        for name, value in (("seed", self.options.seed), ("split", _shares(self.options.split))):
            if settings[name] != value:
                raise UserError(
                    f"{root} was built with --{name} {settings[name]!r}, now it is {value!r}: give the same, or another --out"
                )

    def _write_settings(self, layout: Layout) -> None:
        settings = {
            "recipe": self.recipe.to_json(),
            "recipe_digest": self.recipe.digest,
            "seed": self.options.seed,
            "split": _shares(self.options.split),
            "shard_size": self.options.shard_size,
            "per_shard": layout.per_shard,
        }
        self.store.write((json.dumps(settings, indent=1) + "\n").encode(), *SETTINGS)

    def _run(self, path: Path) -> BuildResult:
        """Run what is not published; merge unless this is a range of the whole."""
        shards = summary(path)
        parts = Parts(self.store)
        stale = [not parts.done(*row) for row in shards.select("shard", "revision").iter_rows()]
        left = shards.filter(pl.Series(stale, dtype=pl.Boolean))
        todo = left.clear() if self.options.finish else left
        if self.options.shard_range is not None:
            low, high = self.options.shard_range
            todo = todo.filter(pl.col("shard").is_between(low, high if high is not None else 1 << 31, closed="left"))
        made: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        self.reporter.start(
            int(todo["inputs"].sum()), int(todo["bytes"].sum()), shards.height, shards.height - left.height
        )
        if todo.height:
            units = (Unit(*row) for row in read_shards(path, todo))
            engine = make_engine(
                self.options.engine,
                _job(self.recipe, self.store.root, self.scratch, self.options),
                self.options.workers,
            )
            with closing(engine.run(units, self.reporter.event)) as results:  # type: ignore[type-var]
                for result in results:
                    made.update(samples=result.samples, bytes=result.bytes, shards=1)
                    refused.update(result.rejected)
                    self.reporter.unit(result)
        waiting = left.height - todo.height
        if self.options.shard_range is not None:
            return self._result(made["samples"], made["shards"], made["bytes"], refused, waiting)
        if waiting:
            raise UserError(
                f"{waiting} of {shards.height} shards are not built yet (the first is {left['shard'][0]}): "
                "build them with --shard-range, or run without --finish",
                exit_code=1,
            )
        self._sweep()
        whole = merge(self.store, path, shards["shard"].to_list(), self.recipe, self.scratch)
        return self._result(whole.samples, whole.shards, whole.bytes, whole.rejected, 0)

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


def _shares(split: Mapping[str, float]) -> list[list[Any]]:
    """A split as JSON that keeps its order, which decides too."""
    return [[name, float(share)] for name, share in split.items()]


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:  # other ranges still work in it, or it was never made
        return


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into KeyboardInterrupt and let the clean-up finish; the third ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

    def stop(number: int, frame: object) -> None:
        nonlocal count
        count += 1
        if count == 1:
            raise KeyboardInterrupt
        if count >= 3:
            os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

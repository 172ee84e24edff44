"""The local engine: spawned workers compile the files of a few open shards side by side, then pack them."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from javisc.compiler.run.ahead import Ahead, groups, known
from javisc.compiler.run.calls import Call, Outcome
from javisc.compiler.run.copies import Copies
from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.engine import SHORT, EngineOptions, Event, Job, Unit, UnitResult, limit_of, modules_of
from javisc.compiler.run.packing import other_bytes
from javisc.compiler.run.pool import Pool
from javisc.compiler.store.commits import publish_part
from javisc.compiler.store.files import Store, unwritable
from javisc.compiler.store.rows import manifest_row, placed, rejected_row, sample_json
from javisc.manifests.errors import UserError

#: Packing is copying: this many bytes a second is slower than any disk worth building on, plus PACK_SECONDS.
_PACK_RATE = 1e6
_PACK_SECONDS = 600.0
#: No further shard is opened while clips of more bytes than this wait to be packed.
MAX_STAGED = 8_000_000_000


@dataclass
class _Open:
    """A shard that is being filled."""

    unit: Unit
    folder: Path
    left: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    staged: int = 0
    renditions: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    failed: str | None = None


class LocalEngine:
    """Runs units on this machine with `options.workers` processes (default: one per usable core).

    copies: a folder for copies of remote sources that other engines may share; None: one of its own. bound: bytes that a file
    may take; one that needs more is refused as one that crashes. None: what the machine has.
    """

    def __init__(self, job: Job, options: EngineOptions, copies: Path | None = None, bound: int | None = None) -> None:
        self.job, self.options, self.bound = job, options, bound
        self.workers = options.workers or usable_cores()
        self.scratch = Path(job.scratch)
        self.store = Store(job.out, self.scratch / "uploads")
        self.staged = 0
        self.recipe = job.recipe.to_json()
        self.ahead = Ahead(self.workers, Copies(copies or self.scratch / "sources"), self.scratch / "logs" / "ahead")

    def run(self, units: Iterable[Unit], report: Callable[[Event], None]) -> Iterator[UnitResult]:
        """Publish the units; see Engine. Workers are gone when this ends, however it ends."""
        pending = iter(units)
        open_shards: dict[int, _Open] = {}
        exhausted = False
        own = self.options.pool or Pool(
            self.workers, self.scratch / "logs", modules_of(self.job.compiler), bound=self.bound
        )
        with own as pool, self.ahead as ahead:
            while True:
                room = self.staged < MAX_STAGED and not ahead.full
                while not exhausted and pool.hungry and (room or not open_shards):
                    unit = next(pending, None)
                    exhausted = unit is None
                    if unit is not None:
                        yield from self._open(unit, pool, open_shards, report)
                    room = self.staged < MAX_STAGED and not ahead.full
                if exhausted and not open_shards:
                    return
                for outcome in self._ready(pool, open_shards) + self._ended(pool):
                    kind, shard, source = outcome.call.tag
                    opened = open_shards[shard]
                    if kind == "pack":
                        yield self._publish(open_shards.pop(shard), outcome)
                    else:
                        self._collect(opened, source, outcome, report)
                        if opened.left == 0 and (result := self._full(opened, pool)):
                            del open_shards[shard]
                            yield result

    def _ready(self, pool: Pool, open_shards: dict[int, _Open]) -> list[Outcome]:
        """Submit the clips whose sources are ready; the outcomes of those whose sources are not to be had."""
        failed = []
        for group, outcome in self.ahead.wait(0.0 if pool.busy else 0.5):
            for row, run in zip(group.rows, group.runs, strict=True):
                call = self._call(open_shards[group.shard], row, run)
                if outcome.error is None:
                    pool.submit(call)
                else:
                    failed.append(replace(outcome, call=call))
        return failed

    def _ended(self, pool: Pool) -> list[Outcome]:
        """Wait a moment for calls that end, or for sources that are ready."""
        return pool.wait(also=self.ahead.connections) if pool.busy else []

    def _open(
        self, unit: Unit, pool: Pool, open_shards: dict[int, _Open], report: Callable[[Event], None]
    ) -> Iterator[UnitResult]:
        folder = self.scratch / f"{unit.shard:06d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        opened = _Open(unit, folder, 0)
        rows = []
        for source in sorted(unit.inputs, key=lambda row: -(row["source_bytes"] or 0)):
            if source["refused"] is not None:
                self._reject(opened, source, source["refused"], source["refused_message"] or "", 0.0, report)
            else:
                rows.append(source)
        opened.left = len(rows)
        for group in groups(unit.shard, rows):
            if group.waits:
                self.ahead.push(group)
            else:
                for row, run in zip(group.rows, group.runs, strict=True):
                    pool.submit(self._call(opened, row, run))
        open_shards[unit.shard] = opened
        if opened.left == 0 and (result := self._full(opened, pool)):
            del open_shards[unit.shard]
            yield result

    def _call(self, opened: _Open, source: dict[str, Any], run: str | None) -> Call:
        """The call that compiles a row whose sources are at hand, in a run of windows."""
        raw, size = source["raw_path"], (source["source_bytes"] or 0) + (source["audio_bytes"] or 0)
        arguments = {
            "key": source["key"],
            "path": source["path"],
            "raw_path": None if raw is None else raw.hex(),
            "window": [source["window_start"], source["window_end"]],
            "boxes": source["boxes"],
            "audio": source["audio_path"],
            "recipe": self.recipe,
            "compiler": self.job.compiler,
            "scratch": str(opened.folder),
            "known": known(source),
            **self.ahead.copy_of(source),
        }
        if self.job.renditions:
            arguments["renditions"] = [recipe.to_json() for recipe in self.job.renditions]
        tag = ("clip", opened.unit.shard, source)
        sound = self.job.recipe.kind == "audio"
        limit = limit_of(size, self.job.time_limit)
        call = Call(tag, "javisc.compiler.run.unit:compile_input", arguments, limit, short=sound and size <= SHORT)
        return call if sound else replace(call, run=run)

    def _collect(
        self, opened: _Open, source: dict[str, Any], outcome: Outcome, report: Callable[[Event], None]
    ) -> None:
        """Take what became of one file: a row, a reject, or the end of the build."""
        opened.left -= 1
        self.ahead.done(opened.unit.shard, source)
        if outcome.error is None:
            smaller, staged = outcome.value.pop("renditions", {}), outcome.value.pop("staged")
            opened.renditions[source["key"]] = smaller
            row = manifest_row(source, outcome.value, self.job.split, self.job.seed)
            opened.rows.append(row)
            opened.staged += staged
            report(Event(source["path"], source["source_bytes"] or 0, row["duration"] or 0.0, outcome.seconds))
            return
        self._stop_if_ours(outcome)
        reason = outcome.details.get("reason", {"raised": "internal"}.get(outcome.error, outcome.error))
        opened.failed = opened.failed or f"{source['path']!r} is refused now ({reason}: {outcome.message})"
        self._reject(opened, source, reason, outcome.message, outcome.seconds, report)

    def _stop_if_ours(self, outcome: Outcome) -> None:
        """Raise UserError if a call failed for want of space, rights or an answer, which is no fault of the file."""
        outcome.stop_if_unavailable()
        if outcome.error == "unwritable":
            error = OSError(outcome.details["errno"], os.strerror(outcome.details["errno"]))
            raise unwritable(outcome.details.get("path") or self.scratch, error)
        if outcome.error == "fatal":
            raise UserError(outcome.message, exit_code=outcome.details.get("code", 2))

    def _reject(
        self,
        opened: _Open,
        source: dict[str, Any],
        reason: str,
        message: str,
        seconds: float,
        report: Callable[[Event], None],
    ) -> None:
        opened.rejects.append(rejected_row(source, reason, message))
        report(Event(source["path"], source["source_bytes"] or 0, 0.0, seconds, reason, message))

    def _full(self, opened: _Open, pool: Pool) -> UnitResult | None:
        """All files of a shard are done: have it packed; one without samples is done at once."""
        self.staged += opened.staged
        if opened.unit.expected is not None and opened.failed is not None:
            raise other_bytes(opened.unit.shard, opened.failed)
        if not opened.rows:
            self.store.remove(*self.store.packs, f"{opened.unit.shard:06d}.idx")
            self.store.remove(*self.store.packs, f"{opened.unit.shard:06d}.tar")
            return self._commit(opened, {})
        opened.rows.sort(key=lambda row: row["key"])
        arguments = {
            "out": self.job.out,
            "shard": opened.unit.shard,
            "samples": [{"key": row["key"], "json": sample_json(row)} for row in opened.rows],
            "scratch": str(opened.folder),
            "uploads": str(self.scratch / "uploads"),
            "expected": opened.unit.expected,
            "renditions": {recipe.name: self._sizes(opened, recipe.name) for recipe in self.job.renditions},
        }
        limit = _PACK_SECONDS + opened.staged / _PACK_RATE
        pool.submit(
            Call(("pack", opened.unit.shard, None), "javisc.compiler.run.packing:pack", arguments, limit), first=True
        )
        return None

    def _sizes(self, opened: _Open, name: str) -> list[tuple[str, list[int]]]:
        """The samples of a shard that have a rendition, in order, and its height and width."""
        keys = (row["key"] for row in opened.rows)
        return [(key, opened.renditions[key][name]) for key in keys if name in opened.renditions.get(key, {})]

    def _publish(self, opened: _Open, outcome: Outcome) -> UnitResult:
        self._stop_if_ours(outcome)
        if outcome.error is not None:
            raise UserError(
                f"shard {opened.unit.shard:06d} could not be written: {outcome.error}: {outcome.message}; "
                "run the same command again, it resumes",
                exit_code=1,
            )
        for row, members in zip(opened.rows, outcome.value["members"], strict=True):
            placed(row, opened.unit.shard, members)
        return self._commit(opened, outcome.value["made"])

    def _commit(self, opened: _Open, made: dict[str, Any]) -> UnitResult:
        unit = opened.unit
        publish_part(self.store, unit.shard, unit.revision, opened.rows, opened.rejects, made, plan=self.job.plan)
        shutil.rmtree(opened.folder, ignore_errors=True)
        self.staged -= opened.staged
        reasons = dict(Counter(row["reason"] for row in opened.rejects))
        return UnitResult(unit.shard, len(opened.rows), made.get("bytes", 0), reasons)

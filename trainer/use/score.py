"""Rating the sync of a whole dataset with a trained selector: three more columns of its manifest.

The rows are cut into parts, each scored by a worker process and published in a folder of its own under a digest of everything
that decided it. So whatever was killed goes on where it stood, and a dataset that grew has only its new rows scored.
"""

from __future__ import annotations

import hashlib
import io
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.run.calls import Outcome
from javisc.compiler.run.cores import usable_cores
from javisc.compiler.run.engine import EngineOptions, check_engine
from javisc.compiler.run.spread import Job, Resources, spread
from javisc.compiler.run.stopping import stoppable
from javisc.compiler.store.files import Store
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.errors import UserError
from javisc.manifests.io import HEADER, Dataset, absolute, write_header, write_table, write_view
from javisc.manifests.outputs import check_output
from javisc.manifests.schema import DATASET_COLUMN, SCORES_SCHEMA
from javisc.manifests.urls import join
from javisc.trainer.transforms.sync_chain import SyncTransforms
from javisc.trainer.use.devices import TORCH, Devices, devices_of
from javisc.trainer.use.digests import digest_of
from javisc.trainer.use.kept_features import FIELD, PLACES, WAITING, Keeping, Shelf, with_features
from javisc.trainer.use.rating import Rater, failure, gives
from javisc.trainer.use.score_clip import NEEDED, CropOptions, NoScore
from javisc.trainer.use.score_worker import WorkerOptions
from javisc.trainer.use.scores_field import NAME, check_field, write_field
from javisc.trainer.use.selector import rater_of, short_side

#: Raised when the meaning of a score changes: parts of another version are not used.
VERSION = 2
PART_SCHEMA = pl.Schema(
    {"key": pl.String(), **SCORES_SCHEMA, "crops": pl.Int16(), "reason": pl.String(), "message": pl.String()}
)
#: What a worker is asked to do.
FUNCTION = "javisc.trainer.use.score_worker:score_rows"
#: Reasons that another attempt may lift: a part that holds one is made again by the next run.
RETRIED = ("crashed", "unreadable")
#: Seconds a worker may take to load a selector, and for a clip: several crops of the full model on one slow core.
_START, _CLIP = 600.0, 300.0
#: FLOP/s of one slow and busy core: a full-size Synchformer's clip takes it the better part of an hour.
_SLOWEST = 2e9
#: Seconds between lines of progress, and failed clips that are named at the end.
_EVERY, _NAMED = 10.0, 5


@dataclass(frozen=True)
class ScoreOptions:
    """How a dataset is scored.

    crops: at most so many of a clip, evenly spaced, overlapping by half at most. fps, short_side: what the selector was trained
    on; clips of another rate or size are resampled in memory, None is what its crops are cut from in `javisc predict`.
    audio_advance_sec: None is the checkpoint's own. preset: one of `desync.PRESETS`, which sets windows, pictures, precision and
    advance as that evaluator does. device: auto, cuda or cpu. workers: processes, None for one per GPU or core. batch_size: crops
    or segments; threads: decoding, of a process. precision: auto is fp16 on a GPU, as published, and fp32 on a CPU.
    part_size: clips of a part, which is what a kill can cost each worker. keep_features: the field of the dataset that gets the
    segments' features; "" keeps none. engine, address: see compiler.run.engine.
    """

    crops: int = 3
    fps: int = 25
    short_side: int | None = None
    device: str = "auto"
    workers: int | None = None
    batch_size: int | None = None
    threads: int | None = None
    precision: str = "auto"
    part_size: int = 100
    audio_advance_sec: float | None = None
    preset: str = ""
    keep_features: str = ""
    engine: str = "local"
    address: str | None = None


@dataclass(frozen=True)
class Scored:
    """What was done. reasons: clips without a score by reason; named: a few of them with key and message; kept: features."""

    rows: int
    fresh: int
    reasons: Mapping[str, int]
    named: list[str]
    kept: int = 0


@dataclass
class _Part:
    """Rows on their way to a part; `told` by row, which comes in pieces where some of them kill their process."""

    name: str
    rows: pl.DataFrame
    told: dict[int, dict[str, Any]] = field(default_factory=dict)


def score(
    source: str,
    checkpoint: str,
    out: str | None = None,
    *,
    options: ScoreOptions | None = None,
    parts: str | None = None,
    relative: bool = False,
    name: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Scored:
    """Score every clip of a dataset, view or table. The scores become columns of the view `out`, or of its own manifest.

    A dataset gets them as its field `name` (`scores`). The manifest changes at once, when all is scored; shards are only read.
    `parts`: where finished parts are kept, see `parts_folder`. Raises UserError.
    """
    options = options or ScoreOptions()
    check_engine(options.engine, EngineOptions(address=options.address))
    dataset = Dataset.open(source)
    built = not dataset.bare and "datasets" not in dataset.header
    if name is not None and (out is not None or not built):
        raise UserError(
            f"--as {name}: a field belongs to a dataset; "
            + ("leave out --as or --out" if out else f"{source} is a view or a table")
        )
    if out is None and dataset.bare:
        check_output(source, force=True)
    if out is None and built:
        check_field(dataset, name or NAME)
        if options.keep_features == (name or NAME):
            raise UserError(f"--keep-features {name or NAME}: the scores are the field of that name: give another")
    run = _Run(dataset, checkpoint, options, parts or parts_folder(dataset, out), say)
    with stoppable():
        names = run.score()
    made = run.table(names)
    settings = {"command": "score", "inputs": [source], "checkpoint": checkpoint, **run.identity}
    if out is not None:
        write_view(_with_scores(dataset.located(), made, run.given), out, made_by=settings, relative=relative)
    elif built:
        same = lambda: [part for part, _ in run.units()] == names  # noqa: E731
        write_field(dataset, name or NAME, made, run.given, run.identity, settings, run.scratch, same)
    else:
        write_table(_with_scores(dataset.manifest(), made, run.given), dataset.table)
        if not dataset.bare:
            header = dict(Dataset.open(dataset.path).header)
            write_header(join(dataset.path, HEADER), {**header, "scored": dict(settings)})
    kept = run.keeping.write(names, settings) if run.keeping else 0
    told = made.select("key", "reason", "message").filter(pl.col("reason").is_not_null())
    counts = told.group_by("reason").len().sort("len", "reason", descending=[True, False]).collect()
    some = told.filter(pl.col("message") != "").head(_NAMED).collect()
    named = [f"{key}: {reason}: {message}" for key, reason, message in some.iter_rows()]
    return Scored(run.rows, run.fresh, dict(counts.iter_rows()), named, kept)


def parts_folder(dataset: Dataset, out: str | None) -> str:
    """Where parts are kept unless told otherwise: DS/.score, or .NAME.score beside a table or a view to be written."""
    if out is None and not dataset.bare:
        return join(dataset.path, ".score")
    folder, _, name = (out or dataset.path).rstrip("/").rpartition("/")
    return join(folder or ("/" if (out or dataset.path).startswith("/") else "."), f".{name}.score")


def _with_scores(frame: pl.LazyFrame, made: pl.LazyFrame, given: Sequence[str]) -> pl.LazyFrame:
    """A manifest with the scores as its last columns. What this model does not give keeps what it had."""
    had = frame.collect_schema().names()
    other = [name for name in SCORES_SCHEMA if name not in given and name in had]
    fresh = [name for name in SCORES_SCHEMA if name not in other]
    kept = [name for name in had if name not in SCORES_SCHEMA]
    return pl.concat([frame.select(kept + other), made.select(fresh)], how="horizontal").select(
        kept + SCORES_SCHEMA.names()
    )


class _Run:
    """The scoring itself: parts that are missing are made by workers."""

    def __init__(
        self, dataset: Dataset, checkpoint: str, options: ScoreOptions, parts: str, say: Callable[[str], None]
    ) -> None:
        if options.preset:
            options = replace(options, audio_advance_sec=0.0, precision="fp32")
        self.rater, cropping, transforms = rater_for(checkpoint, options)
        self.given = gives(transforms)
        self.devices, precision = scored_on(options)
        cuda, here = self.devices.kind == "cuda", options.engine == "local"
        cores = usable_cores()
        #: Everything beside the rows that decides a score.
        self.identity = {
            "version": VERSION,
            "weights": digest_of(self.rater.model, transforms),
            "crops": options.crops,
            "fps": options.fps,
            "short_side": cropping.short_side,
            "precision": precision,
            "audio_advance_sec": transforms.audio_advance_sec,
            "preset": options.preset,
        }
        self.folder = tempfile.TemporaryDirectory(prefix="javisc-score-")
        self.scratch = Path(self.folder.name)
        self.store = Store(parts, self.scratch / "uploads")
        self.worker = WorkerOptions(
            checkpoint=absolute(checkpoint),
            device=self.devices.torch,
            batch_size=options.batch_size or (16 if cuda else 1),
            threads=options.threads or (max(1, cores // len(self.devices.gpus)) if cuda and here else 1),
            precision=precision,
            crops=options.crops,
            fps=options.fps,
            short_side=cropping.short_side,
            audio_advance_sec=transforms.audio_advance_sec,
            preset=options.preset,
            # What processes keep has to be where this one finds it, and goes with it where that can be.
            keep=(str(self.scratch / "kept") if here else absolute(self.store.root)) if options.keep_features else "",
        )
        weights = sum(x.nbytes for x in self.rater.model.state_dict().values())
        self.job = Job(FUNCTION, Resources(gpus=int(cuda), memory=TORCH + weights), items="rows")
        self.clip_sec = _CLIP if cuda else max(_CLIP, self._most() / _SLOWEST)
        self.dataset, self.options, self.say = dataset, options, say
        self.rows = self.fresh = self.done = 0
        self.made_by = precision_of(self.rater.features()[0], precision)
        name = options.keep_features
        self.keeping = (
            Keeping(dataset, name, self.made_by, self.store, Shelf(self.worker.keep, self.scratch)) if name else None
        )

    def _most(self) -> float:
        """FLOP of the most expensive clip there can be: one that has room for all windows."""
        windows = self.worker.crops * self.rater.transforms.window_sec * self.worker.fps
        try:
            return self.rater.cost(2 * math.ceil(windows) + 1)[2]
        except NoScore:
            return 0.0

    def units(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """The manifest in its order, `part_size` rows at a time, each with its part's name."""
        frame = with_features(self.dataset, self.made_by).select(*NEEDED, FIELD, *PLACES)
        seed = repr(sorted(self.identity.items())).encode()
        held: list[pl.DataFrame] = []
        for batch in frame.collect_batches(maintain_order=True, engine="streaming"):
            held.append(batch)
            if sum(len(rows) for rows in held) >= self.options.part_size:
                rows = pl.concat(held)
                whole = len(rows) // self.options.part_size * self.options.part_size
                for start in range(0, whole, self.options.part_size):
                    yield _named(rows[start : start + self.options.part_size], seed)
                held = [rows[whole:]]
        rest = pl.concat(held) if held else pl.DataFrame()
        if len(rest):
            yield _named(rest, seed)

    def score(self) -> list[str]:
        """Make the parts that are missing. Returns the names of all, in the manifest's order."""
        total = int(self.dataset.located().select(pl.len()).collect(engine="streaming").item())
        if total == 0:
            raise UserError(f"{self.dataset.path} has no rows: nothing to score")
        names: list[str] = []
        told, began, said = 0, time.monotonic(), time.monotonic()
        outcomes = spread(
            self.job, self._calls(names), workers=self.devices.workers, engine=self.options.engine,
            options=EngineOptions(address=self.options.address), devices=self.devices.gpus,
        )  # fmt: skip
        with closing(outcomes):  # type: ignore[type-var]
            for outcome in outcomes:
                fresh = self._take(outcome)
                self.done, self.fresh = self.done + fresh, self.fresh + fresh
                if self.done > told and time.monotonic() - said >= _EVERY:
                    told, said = self.done, time.monotonic()
                    self.say(f"{self.done} of {total} clips, {self.fresh / (said - began):.1f} a second")
        return names

    def _calls(self, names: list[str]) -> Iterator[tuple[_Part, dict[str, Any], float]]:
        """The calls that make the parts that are missing. names: gets those of all parts."""
        there = self._kept()
        for name, rows in self.units():
            names.append(name)
            self.rows += len(rows)
            if f"{name}.parquet" in there and (not self.keeping or self.keeping.complete(name, rows)):
                self.done += len(rows)
                continue
            given = [
                {"place": place, **row, DATASET_COLUMN: absolute(row[DATASET_COLUMN])}
                for place, row in enumerate(rows.to_dicts())
            ]
            limit = _START + self.clip_sec * len(rows)
            yield _Part(name, rows), {"rows": given, "options": asdict(self.worker)}, limit

    def _kept(self) -> set[str]:
        """Files of finished parts, without those that the next run is to try again. Raises UserError if one is damaged."""
        names = sorted(name for name in self.store.names() if name.endswith(".parquet") and not name.endswith(WAITING))
        if not names:
            return set()
        parts = pl.scan_parquet(
            self.store.fetch_many((), names), glob=False, schema=PART_SCHEMA, include_file_paths="part"
        )
        try:
            again = parts.filter(pl.col("reason").is_in(RETRIED)).select(pl.col("part").unique()).collect()["part"]
        except (OSError, *POLARS_FAULTS) as error:
            raise self._damaged(str(error)) from error
        return set(names) - {Path(part).name for part in again}

    def _damaged(self, why: str) -> UserError:
        return UserError(f"{self.store.root} holds a part that is damaged ({why}): delete the folder")

    def table(self, names: list[str]) -> pl.LazyFrame:
        """All rows' scores, in the manifest's order. Raises UserError if a part is not what it was published as."""
        paths = self.store.fetch_many((), [f"{name}.parquet" for name in names])
        made = pl.scan_parquet(paths, glob=False, schema=PART_SCHEMA)
        try:
            found = int(made.select(pl.len()).collect().item())
        except (OSError, *POLARS_FAULTS) as error:
            raise self._damaged(str(error)) from error
        if found != self.rows:
            raise self._damaged(f"{found} scores for {self.rows} rows")
        return made

    def _take(self, outcome: Outcome) -> int:
        """Publish a part that is whole; returns its rows."""
        part: _Part = outcome.call.tag
        places = [row["place"] for row in outcome.call.arguments["rows"]]
        if outcome.error in ("crashed", "timeout"):  # of one clip: a call of several is halved until it is found
            part.told[places[0]] = failure("crashed", outcome.message)
        elif outcome.error is not None:
            raise UserError(f"scoring stopped: {outcome.message}", exit_code=outcome.details.get("code", 1))
        else:
            part.told |= dict(zip(places, outcome.value, strict=True))
        if len(part.told) < len(part.rows):
            return 0
        told = [part.told[place] for place in range(len(part.rows))]
        if self.keeping:
            self.keeping.take(part.name, part.rows, told)
        rows = [{"key": key, **values} for key, values in zip(part.rows["key"], told, strict=True)]
        buffer = io.BytesIO()
        pl.DataFrame(rows, schema=PART_SCHEMA).write_parquet(buffer, compression="zstd")
        self.store.write(buffer.getvalue(), f"{part.name}.parquet")
        return len(rows)


def rater_for(checkpoint: str, options: ScoreOptions) -> tuple[Rater, CropOptions, SyncTransforms]:
    """What rates clips by these options, how it crops them, and its transforms. Raises UserError for options that do not fit."""
    cropping = CropOptions(options.crops, options.fps, options.short_side or 0, options.preset)
    rater = rater_of(checkpoint, cropping, options.audio_advance_sec)
    transforms = rater.transforms
    side = options.short_side or (transforms.input_size if options.preset else short_side(transforms))
    if side < transforms.input_size:
        raise UserError(
            f"--short-side {side}: the selector looks at {transforms.input_size} pixels, give at least that"
        )
    length = transforms.window_sec * options.fps
    if abs(length - round(length)) > 1e-6:
        raise UserError(
            f"--fps {options.fps}: the selector's {transforms.window_sec} s are no whole number of frames; "
            "give the rate it was trained at"
        )
    rater.options = replace(cropping, short_side=side)
    try:
        rater.cost(2 * round(length) + 1)
    except IndexError as error:  # its tables of positions are shorter
        raise UserError(f"--fps {options.fps}: {error}; or give the rate that the selector was trained at") from error
    except NoScore:  # so short a clip has none: this is about its pictures' number alone
        pass
    return rater, rater.options, transforms


def _named(rows: pl.DataFrame, seed: bytes) -> tuple[str, pl.DataFrame]:
    """A part's name: a digest of what decides its scores, wherever the dataset lies. The members' checksums are among it."""
    told = rows.drop(DATASET_COLUMN, FIELD, *PLACES).write_csv().encode()
    return hashlib.blake2b(seed + told, digest_size=16).hexdigest(), rows


def scored_on(options: ScoreOptions) -> tuple[Devices, str]:
    """What processes compute on, and the precision there. Raises UserError."""
    devices = devices_of(
        options.device, options.workers, engine=options.engine, address=options.address, on_cpu=usable_cores()
    )
    low = devices.kind == "cuda"
    return devices, ("fp16" if low else "fp32") if options.precision == "auto" else options.precision


def precision_of(made_by: str, precision: str) -> str:
    """What makes features, with the precision they are made in; "" stays."""
    return made_by and f"{made_by}-{precision}"

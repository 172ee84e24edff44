"""`javisc encode` without --out: latents as fields of their dataset, a shard of them for each of its own, a field for each pass.

Clips are encoded in the batches in which a dataset of latents would hold them (`use.encode`), which mix shards, so the members
have the same bytes either way. A part waits in the field's working folder until every part with clips of a shard is there. Then
the field's shard is packed, and what nobody waits for any more goes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from javisc.compiler.run.engine import EngineOptions, check_engine
from javisc.compiler.run.stopping import stoppable
from javisc.compiler.store.commits import BUILD, Parts
from javisc.compiler.store.fields import STAGE, FieldWriter, commit_field_shard, field_store
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.compiler.store.present import intact
from javisc.compiler.store.renditions import begun_with
from javisc.compiler.store.rows import rejected_row
from javisc.compiler.store.scratch import sweep_files
from javisc.manifests.errors import UserError
from javisc.manifests.fields import FIELD_HEADER, open_field
from javisc.manifests.io import Dataset, scan_many, shard_path
from javisc.manifests.kinds import PARTS
from javisc.manifests.schema import REJECTED_SCHEMA
from javisc.trainer.data.bytes.reader import CorruptSample, Reader
from javisc.trainer.data.index.catalog import Member
from javisc.trainer.data.index.latents import COLUMNS, MEMBER, field_name
from javisc.trainer.engine.config import differences
from javisc.trainer.use.encode import PLAN, THREADS, EncodeOptions, Work
from javisc.trainer.use.encode_part import Part, networks_places

#: The field's name where nothing is said.
NAME = "latents"
#: The field's setting that says what made the latents.
MADE_BY = "encoded"
#: What of a plan does not shape a field's bytes: places, how clips are read, and what the passes share.
_NOT_OURS = ("sources", "passes")
_NO_BYTES = ("paths", "reader", "ready")


@dataclass(frozen=True)
class EncodedField:
    """A field that was made: of how many samples of all it holds latents, and how many clips were refused, by reason."""

    dataset: str
    name: str
    samples: int
    of: int
    rejected: Mapping[str, int]


def encode_fields(
    recipe: str,
    overrides: Sequence[str],
    datasets: Sequence[str],
    name: str | None,
    options: EncodeOptions,
    say: Callable[[str], None] = lambda line: None,
) -> list[EncodedField]:
    """Encode the clips of each of the datasets into fields of it, one for each pass: NAME, NAME_p1, NAME_p2 …

    name: None takes the recipe's `data.latents`, else `latents`. Run again after a kill, it goes on; after a build has added
    clips, it makes theirs. Raises UserError: no clips, the field was made with other settings, networks are missing.
    """
    check_engine(options.engine, EngineOptions(address=options.address))
    made = []
    with tempfile.TemporaryDirectory(prefix="javisc-encode-") as folder, stoppable():
        for path in datasets:
            opened = Dataset.open(path)
            if opened.bare or "datasets" in opened.header:
                raise UserError(
                    f"{path} is a view or a table, and latents become a field of the dataset that holds the clips: give that "
                    "one, or --out for a dataset of their own"
                )
            work = Work(recipe, [f"data.paths={json.dumps([path])}", *overrides], options)
            chosen = name or work.data.latents or NAME
            names = [field_name(chosen, turn) for turn in range(options.passes)]
            base = Store(opened.folder, Path(folder) / "uploads")
            with locked(base) as held:
                if held.alone and not base.remote:
                    sweep_files(Path(base.root))
                plan = shaping(work.plan())
                for turn, one in enumerate(names):
                    check_other(base, one, {**plan, "pass": turn})
                told = {"command": "encode", "recipe": recipe, "set": list(overrides), "as": chosen}
                told |= {"passes": options.passes, "batches": options.batches, "torch": torch.__version__}
                for turn, one in enumerate(names):
                    made.append(_Pass(work, base, one, turn, plan, told, folder, say).run())
    return made


def shaping(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Of what decides a dataset of latents, what decides the bytes of a field: networks by their digests, wherever they lie."""
    kept = {name: value for name, value in plan.items() if name not in _NOT_OURS}
    kept["data"] = {name: value for name, value in kept["data"].items() if name not in _NO_BYTES}
    kept["encoders"] = {name: value for name, value in kept["encoders"].items() if name not in networks_places()}
    if "pools" in kept:
        kept["pools"] = {"digest": kept["pools"]["digest"]}
    return kept


def check_other(base: Store, name: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError if the dataset has such a field that was made otherwise."""
    begun = begun_with(base, name)
    store = field_store(base.root, name, base.scratch)
    if begun is None or not (store.exists(FIELD_HEADER) or intact(store)):
        return
    if MADE_BY not in begun:
        raise UserError(
            f"--as {name}: the dataset has a field of that name that something else made: give another name"
        )
    if changed := differences(begun[MADE_BY], settings):
        raise UserError(
            f"field {name} of {base.root} was made with other settings ({changed[0]}): set them back, give another name with "
            f"--as, or undo it first (`javisc annotate {base.root} --undo {name}`)"
        )


class _Pass:
    """A pass over a dataset's clips, which becomes a field."""

    clips: pl.DataFrame
    wanted: pl.LazyFrame
    order: str
    #: Shards that are to be made, and for how many parts each of them waits.
    left: set[int]
    waits: dict[int, int]

    def __init__(
        self,
        work: Work,
        base: Store,
        name: str,
        turn: int,
        plan: Mapping[str, Any],
        made_by: Mapping[str, Any],
        folder: str,
        say: Callable[[str], None],
    ) -> None:
        self.work, self.base, self.name, self.turn, self.folder, self.say = work, base, name, turn, folder, say
        self.plan = {**plan, "pass": turn}
        self.writer = FieldWriter(
            base.root,
            name,
            member=MEMBER,
            columns=COLUMNS,
            settings={MADE_BY: self.plan},
            made_by=made_by,
            scratch=folder,
            held=True,
        )
        self.store = self.writer.store
        self.stage = Store(self.store.path(BUILD, STAGE), Path(folder) / "uploads")
        self.reader = Reader(replace(work.data.reader.options(), mode="auto", verify=True))

    def run(self) -> EncodedField:
        """Make what is not there yet. Raises UserError."""
        with closing(self.writer), closing(self.reader):
            self.writer.begin()
            parts = self._laid_out()
            wanted = self.wanted.select("shard").unique().collect(engine="streaming")["shard"].to_list()
            self.left = {int(shard) for shard in wanted if not self.writer.has(shard)}
            self.clips = self.clips.filter(pl.col("shard").is_in(list(self.left)))
            self.waits = dict.fromkeys(self.left, 0) | dict(_parts_of(self.clips))
            self._make(parts)
            self._clear()
            merged = self.writer.publish()
        for reason, count in sorted(merged.rejected.items()):
            self.say(f"{count} clips refused: {reason}, see {self.store.path('rejected.parquet')}")
        field = open_field(self.base.root, self.name)
        return EncodedField(self.base.root, self.name, merged.samples, int(field.header["of"]), dict(merged.rejected))

    def _laid_out(self) -> list[Part]:
        """The pass's parts. Afterwards `clips` has part, place in it, key and shard of each of their clips, `order` is a digest
        of what is drawn for which clip, and `wanted` are the manifest's rows that should have latents."""
        splits = [(split, train) for split, train in self.work.splits() if train or self.turn == 0]
        parts: list[Part] = []
        frames, order = [], hashlib.sha256()
        for split, train in splits:
            with closing(self.work.source(split, train)) as source:
                found = self.work.stretches(source, Part(len(parts), split, train, self.turn, 0, 0, 0))
                sampler, catalog = source.loader.sampler, source.catalog
                order.update(f"{split} {train} {sampler.fingerprint}\n".encode())
                for part in found:
                    rows = sampler.rows(part.first, part.last)
                    order.update(f"{part.number} {len(rows)}\n".encode() + rows.tobytes())
                    frames.append(
                        pl.DataFrame(
                            {
                                "part": np.full(len(rows), part.number, np.int32),
                                "place": np.arange(len(rows)),
                                "key": catalog.strings["key"][rows],
                                "shard": catalog.numbers["shard"][rows].astype(np.int32),
                            }
                        )
                    )
                parts += found
        self.clips, self.order = pl.concat(frames), order.hexdigest()
        if self.clips["key"].is_duplicated().any():
            raise UserError(
                "data.train_split=null takes the clips of data.valid_split, too, and a field holds one window of each: set "
                "data.valid_split=null, or name the split to train on"
            )
        _, rows_of = scan_many(self.work.data.paths)
        names = [split for split, _ in splits]
        mine = pl.col("split").is_in(names) | pl.col("split").is_null()
        self.wanted = rows_of if None in names else rows_of.filter(mine)
        return parts

    def _make(self, parts: list[Part]) -> None:
        """Encode what shards wait for, and pack each shard as soon as nothing of it is missing."""
        needed = set(self.clips["part"].unique())
        whole, threads = self._begun()
        there = set(intact(self.stage)) & needed
        todo = [part for part in parts if part.number in needed - there]
        workers = self.work.workers(len(todo))
        threads = self.work.threads(workers, threads)
        state = {"plan": self.plan, "order": self.order, "whole": whole, THREADS: threads}
        self.store.write((json.dumps(state, indent=1, sort_keys=True) + "\n").encode(), BUILD, PLAN)
        self.say(f"field {self.name}: {len(self.left)} shards to make, of {len(todo)} parts")
        only = None
        if not whole:
            grouped = self.clips.sort("part", "place").group_by("part", maintain_order=True).agg("place")
            only = {int(part): list(places) for part, places in grouped.iter_rows()}
        self._pack(there)
        for number in self.work.made(todo, self.stage, self.folder, workers, threads, only):
            self.say(f"part {number}")
            self._pack({number})

    def _begun(self) -> tuple[bool, Any]:
        """Whether batches are encoded whole, and the threads that a process had before.

        Of a dataset that has grown, or whose clips have other splits now, only the clips are encoded that have no latents yet;
        whole batches give the same last bits as the first time. Parts of another order are of no use any more.
        """
        was: Any = json.loads(self.store.read(BUILD, PLAN)) if self.store.exists(BUILD, PLAN) else {}
        same = isinstance(was, dict) and was.get("plan") == json.loads(json.dumps(self.plan))
        if not same or was.get("order") != self.order:
            self._clear()
            return not intact(self.store), was.get(THREADS) if same else None
        return was.get("whole") is not False, was.get(THREADS)

    def _clear(self) -> None:
        """Remove what waits."""
        staged = Parts(self.stage)
        for number in list(staged.commits):
            staged.remove(number)
        self.stage.remove_tree()

    def _pack(self, numbers: set[int]) -> None:
        """Some parts are there: pack the shards that waited for nothing else, and remove parts that no shard waits for."""
        for shard, count in _parts_of(self.clips.filter(pl.col("part").is_in(list(numbers)))):
            self.waits[shard] -= count
        ready = sorted(shard for shard in self.left if not self.waits[shard])
        if not ready:
            return
        here = self.clips.filter(pl.col("shard").is_in(ready))
        parts = Parts(self.stage)
        of = sorted(here["part"].unique())
        rows = _located(parts, of).join(here.lazy().select("key", "shard"), on="key").collect()
        said = parts.rejected(of).select(REJECTED_SCHEMA.names()).collect()
        refused = {str(row["key"]): row for row in said.iter_rows(named=True)}
        without = self.wanted.filter(pl.col("shard").is_in(ready)).join(rows.lazy().select("key"), on="key", how="anti")
        rejects: dict[int, list[dict[str, Any]]] = {shard: [] for shard in ready}
        for row in without.sort("key").collect(engine="streaming").iter_rows(named=True):
            why = refused.get(row["key"]) or rejected_row(row, "filtered", "no bucket of the recipe takes it")
            rejects[row["shard"]].append(dict(why))
        for shard in ready:
            self._commit(shard, rows.filter(pl.col("shard") == shard).sort("key"), rejects[shard])
            self.left.discard(shard)
            self.say(f"shard {shard:06d} of field {self.name}")
        waiting = set(self.clips.filter(pl.col("shard").is_in(list(self.left)))["part"].unique())
        for number in of:
            if number not in waiting:
                parts.remove(number)

    def _commit(self, shard: int, rows: pl.DataFrame, rejects: Sequence[dict[str, Any]]) -> None:
        """Publish a shard of the field. rows: its latents' places in parts and what is said of them. rejects: its other clips."""
        frame = rows.select(
            "key", pl.col("shard").cast(pl.Int32), *(pl.col(name).cast(kind) for name, kind in COLUMNS.items())
        )
        at = (shard, self.writer.parents[shard])
        commit_field_shard(self.store, self.writer.schema, MEMBER, frame, self._contents(rows), *at, rejects)

    def _contents(self, rows: pl.DataFrame) -> Iterator[bytes]:
        """Members of parts, checked against their CRC-32, one at a time. Raises UserError."""
        places = [f"{MEMBER}_{part}" for part in PARTS]
        for part, *place in rows.select("encoded_part", *places).iter_rows():
            try:
                yield self.reader.read(shard_path(self.stage.root, part), [Member(MEMBER, *place)], None)[MEMBER]
            except CorruptSample as error:
                Parts(self.stage).remove(part)
                raise UserError(
                    f"{error}: run the same command again, it encodes that part anew", exit_code=1
                ) from error


def _located(parts: Parts, numbers: Sequence[int]) -> pl.LazyFrame:
    """The latents that some parts hold: key of the clip, place in the part, and what a field says of them."""
    places = [f"{MEMBER}_{part}" for part in PARTS]
    if not numbers:
        return pl.LazyFrame(schema={"key": pl.String(), **COLUMNS, **dict.fromkeys(places, pl.Int64())})
    said = (name for name in COLUMNS if name != "encoded_part")
    rows = parts.manifest(numbers)
    return rows.select(pl.col("clip_key").alias("key"), pl.col("shard").alias("encoded_part"), *said, *places)


def _parts_of(clips: pl.DataFrame) -> Iterator[tuple[int, int]]:
    """Of each shard of some clips, in how many parts they are."""
    yield from clips.group_by("shard").agg(pl.col("part").n_unique()).iter_rows()

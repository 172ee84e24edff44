"""Making a dataset of samples that are at hand: shards, indices, digests, tables, and going on after a kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import polars as pl

from javisc.compiler.store.commits import BUILD, Parts, publish_part
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.compiler.store.present import intact, refuse_strangers
from javisc.compiler.store.rows import placed, sample_json
from javisc.compiler.store.shard import Content, Packed, pack_shard
from javisc.compiler.store.tables import Merged, publish_tables
from javisc.manifests.entries import named
from javisc.manifests.errors import UserError
from javisc.manifests.kinds import MEMBERS, extensions, kind_of
from javisc.manifests.members import KEY
from javisc.manifests.schema import MANIFEST_SCHEMA, RECORD_ONLY, REJECTED_SCHEMA

#: What a dataset was begun with, in its working folder: a resumed run must ask for the same.
BEGUN = "writer.json"


def commit_shard(
    store: Store,
    shard: int,
    samples: Sequence[tuple[dict[str, Any], Mapping[str, Content]]],
    rejects: Sequence[dict[str, Any]] = (),
    *,
    revision: int = 0,
    schema: pl.Schema = MANIFEST_SCHEMA,
    header: Mapping[str, Any] | None = None,
) -> Packed | None:
    """Publish a shard whole: samples are (manifest row, members beside KEY.json), rejects rows of rejected.parquet.

    A row's RECORD_ONLY entries stand in KEY.json alone. header: what the commit shall say of how the part was made, as `part`.

    The commit comes last: a shard without one is made again. Returns what was packed, None where nothing but rejects is.
    Several processes may commit shards of one dataset side by side. Raises UserError if it cannot be published.
    """
    ordered = sorted(samples, key=lambda sample: str(sample[0]["key"]))
    made: dict[str, Any] = {}
    more: dict[str, Any] = {} if header is None else {"part": dict(header)}
    packed = None
    if ordered:
        records = ({name: row.get(name) for name in (*MANIFEST_SCHEMA, *RECORD_ONLY)} for row, _ in ordered)
        packed = pack_shard(
            store,
            shard,
            (
                (str(row["key"]), {"json": sample_json(record).encode(), **members})
                for (row, members), record in zip(ordered, records, strict=True)
            ),
        )
        for (row, _), members in zip(ordered, packed.samples, strict=True):
            placed(row, shard, [[m.extension, m.offset, m.size, m.crc32] for m in members])
        made = packed.made
    rows = [{name: value for name, value in row.items() if name not in RECORD_ONLY} for row, _ in ordered]
    publish_part(store, shard, revision, rows, list(rejects), {**made, **more}, schema)
    return packed


class DatasetWriter:
    """Writes samples into a dataset: `begin`, `add` as often as there are samples, `commit` a shard, `publish` the tables.

    As a context it begins, commits a shard every `shard_samples` samples and publishes at the end; an exception leaves what is
    committed, and the same run goes on from there: samples of committed shards are passed over, if they come in the same order.

    out: a folder or URL. settings: whatever shapes the bytes; a resumed run must have the same, and they stand in dataset.json.
    columns: types of manifest columns beside javisc's own. scratch: a local folder for the samples of the open shard.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        *,
        shard_samples: int = 1000,
        settings: Mapping[str, Any] | None = None,
        columns: Mapping[str, pl.DataType | type[pl.DataType]] | None = None,
        scratch: str | os.PathLike[str] | None = None,
    ) -> None:
        if shard_samples < 1:
            raise UserError(f"shard_samples {shard_samples}: 1 or more is allowed")
        self.scratch = Path(tempfile.mkdtemp(prefix="javisc-writer-", dir=scratch))
        self.store = Store(os.fspath(out), self.scratch / "uploads")
        self.shard_samples = shard_samples
        self.settings = {"shard_samples": shard_samples, **(settings or {})}
        more = {name: kind for member in MEMBERS if not member.base for name, kind in member.columns.items()}
        self.schema = pl.Schema({**MANIFEST_SCHEMA, **more, **(columns or {})})
        self._held = ExitStack()
        self._done: dict[int, int] = {}
        self._shard = 0
        self._samples: dict[str, tuple[dict[str, Any], dict[str, Content]]] = {}
        self._rejects: list[dict[str, Any]] = []
        self._keys: set[str] = set()

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.commit()
                self.publish()
        finally:
            self.close()

    def begin(self) -> None:
        """Take the dataset's lock and find what an earlier run committed.

        Raises UserError if the dataset is being written, was begun otherwise, or is of another kind.
        """
        self._held.enter_context(locked(self.store))
        wanted = json.loads(json.dumps(self.settings))
        if self.store.exists(BUILD, BEGUN):
            before = json.loads(self.store.read(BUILD, BEGUN))
            if before != wanted:
                name = next(name for name in {**before, **wanted} if before.get(name) != wanted.get(name))
                raise UserError(
                    f"{self.store.root} was begun with {name} {before.get(name)!r}, now it is {wanted.get(name)!r}: "
                    "set it back, or write to another folder"
                )
        elif self.store.exists("dataset.json"):
            raise UserError(f"{self.store.root} is a dataset that something else wrote: give another folder")
        else:
            refuse_strangers(self.store)
            self.store.write((json.dumps(wanted, indent=1, sort_keys=True) + "\n").encode(), BUILD, BEGUN)
        self._done = {number: commit["samples"] for number, commit in intact(self.store).items()}

    def add(self, key: str, members: Mapping[str, Content], columns: Mapping[str, Any] | None = None) -> None:
        """Add a sample: its members by extension, bytes or files, and what the manifest shall say of it.

        Sizes, rates and lengths that `columns` does not give are measured. Raises ValueError for a key, a member or a column that
        cannot be, for a key that was there before, and where the samples of a committed shard come in another order.
        """
        if not KEY.fullmatch(key):
            raise ValueError(f"key {key!r}: letters a-z, digits and _ are allowed, 255 of them at most")
        if key in self._keys:
            raise ValueError(f"key {key!r} was added before")
        if "json" in members:
            raise ValueError(f"{key}: KEY.json is made of the columns: leave it out of the members")
        if unknown := [end for end in members if kind_of(end) is None]:
            raise ValueError(f"{key}: member {unknown[0]!r}: known are {', '.join(extensions()[1:])}")
        if unknown := [name for name in columns or () if name not in self.schema]:
            near = get_close_matches(unknown[0], list(self.schema), 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{key}: column {unknown[0]!r} is not known: {hint}declare new ones with `columns`")
        self._keys.add(key)
        self._samples[key] = (dict(columns or {}), self._kept(key, members))
        if len(self._samples) == self.shard_samples:
            self.commit()

    def reject(self, relpath: str, reason: str, message: str) -> None:
        """Account for an input that gave no sample: a row of rejected.parquet. reason: a code of compiler.reasons."""
        row = dict.fromkeys(REJECTED_SCHEMA) | {
            "path": relpath,
            "relpath": relpath,
            "reason": reason,
            "message": message,
        }
        self._rejects.append({**row, "key": re.sub(r"[^a-z0-9_]", "_", relpath.lower())[:255]})

    def commit(self) -> None:
        """Publish the open shard, and open the next. Does nothing if no sample was added since the last."""
        if not self._samples and not self._rejects:
            return
        if self._shard in self._done:
            there = set(Parts(self.store).manifest([self._shard]).select("key").collect()["key"])
            if there != set(self._samples):
                raise ValueError(
                    f"shard {self._shard:06d} holds other samples than those added now: add them in the order of the "
                    "first run, or write to another folder"
                )
        else:
            samples = [(self._row(key), members) for key, (_, members) in self._samples.items()]
            commit_shard(self.store, self._shard, samples, self._rejects, schema=self.schema)
        shutil.rmtree(self.scratch / "open", ignore_errors=True)
        self._samples, self._rejects, self._shard = {}, [], self._shard + 1

    def publish(self) -> Merged:
        """Publish manifest.parquet, rejected.parquet, shards.parquet and, last, dataset.json. Raises UserError."""
        return publish_tables(self.store, range(self._shard), {"recipe": None, "settings": self.settings})

    def close(self) -> None:
        """Let go of the lock; what was added and not committed is forgotten."""
        self._held.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _kept(self, key: str, members: Mapping[str, Content]) -> dict[str, Content]:
        """Members as files: those of the open shard are longer than memory."""
        kept: dict[str, Content] = {}
        for end, content in members.items():
            if isinstance(content, Path):
                kept[end] = content
            elif self._shard not in self._done:
                path = self.scratch / "open" / f"{key}.{end}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                kept[end] = path
        return kept

    def _row(self, key: str) -> dict[str, Any]:
        given, members = self._samples[key]
        row: dict[str, Any] = dict.fromkeys(self.schema)
        row |= {"key": key, "id": key, "relpath": key, "path": key, "group": key}
        for name, value in _measured(members):
            row[name] = value
        row |= given
        if row["texts"] is None and row["text"] is not None:
            row["texts"] = [row["text"]]
        return row


def _measured(members: Mapping[str, Content]) -> Iterator[tuple[str, Any]]:
    """What the members themselves say of their sample, those of a later kind first: pictures know best how long it is."""
    for kind in MEMBERS:
        if kind.extension in members and kind.measure is not None:
            yield from named(kind.measure)(members[kind.extension]).items()

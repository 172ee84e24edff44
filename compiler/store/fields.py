"""Fields of a dataset: written beside its shards with the same writer, laid over its manifest, and taken out of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.store.annotations import commit_annotations
from javisc.compiler.store.commits import BUILD, publish_part
from javisc.compiler.store.files import Store
from javisc.compiler.store.lock import locked
from javisc.compiler.store.present import intact
from javisc.compiler.store.scratch import sweep_files
from javisc.compiler.store.shard import Content, pack_shard
from javisc.compiler.store.tables import Merged, publish_tables
from javisc.compiler.store.writer import BEGUN, DatasetWriter
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.errors import UserError
from javisc.manifests.fields import (
    FIELD_HEADER,
    FOLDER,
    Field,
    check_name,
    fields_of,
    folded,
    laid,
    names,
    open_field,
    unfolded,
)
from javisc.manifests.io import HEADER, read_header, write_header, write_table
from javisc.manifests.kinds import PARTS, kind_of
from javisc.manifests.laying import Stretch, stretched, stretches

OWN = (FOLDER, "own.parquet")
#: In a field's working folder: what waits there until shards of it are whole, as a dataset.
STAGE = "stage"
#: Of an annotation, the digest of its sample's source: it follows the sample into another shard, but not another source.
OF = "of_sha256"


def field_store(dataset: str, name: str, scratch: Path) -> Store:
    """Where a dataset's field is written."""
    return Store(Store(dataset, scratch).path(FOLDER, check_name(name, "field")), scratch, field=True)


def field_schema(member: str, columns: Mapping[str, pl.DataType | type[pl.DataType]]) -> pl.Schema:
    """The columns of a field's table."""
    places = {f"{member}_{part}": pl.Int64() for part in PARTS}
    follows = {OF: pl.String()} if member == "json" else {}
    return pl.Schema({"key": pl.String(), "shard": pl.Int32(), **places, **columns, **follows})


def base_shards(store: Store) -> dict[int, str]:
    """The shards of a dataset by their digests. Raises UserError where its table cannot be read."""
    try:
        return dict(pl.read_parquet(store.fetch("shards.parquet"), glob=False).select("shard", "sha256").iter_rows())
    except (FileNotFoundError, *POLARS_FAULTS) as error:
        raise UserError(
            f"{store.path('shards.parquet')} cannot be read ({error}): run `javisc repair {store.root}`"
        ) from error


def commit_field_shard(
    store: Store,
    schema: pl.Schema,
    member: str,
    frame: pl.DataFrame,
    contents: Iterable[Content],
    shard: int,
    parent: str,
    rejects: Sequence[dict[str, Any]] = (),
) -> None:
    """Publish a shard of a field, its tables and last its commit: `frame` has the rows in the order of their keys.

    parent: the digest of the base's shard. Several processes may do so side by side, each another shard. Raises UserError.
    """
    made: dict[str, Any] = {}
    places = [pl.Series(f"{member}_{part}", [], pl.Int64) for part in PARTS]
    if frame.height:
        pairs = ((key, {member: content}) for key, content in zip(frame["key"], contents, strict=True))
        packed = pack_shard(store, shard, pairs)
        at = [members[0] for members in packed.samples]
        places = [pl.Series(f"{member}_{part}", [getattr(m, part) for m in at], pl.Int64) for part in PARTS]
        made = packed.made
    rows = frame.with_columns(places).select(schema.names())
    publish_part(store, shard, 0, rows, list(rejects), made, schema, plan=parent)


class FieldWriter(DatasetWriter):
    """Writes a field as `DatasetWriter` writes a dataset: a shard for each of the base's, with all or some of its keys.

        with FieldWriter("DS", "flow", member="json", columns={"flow": pl.Float32}) as writer:
            writer.add(key, {}, {"flow": 0.3})          # in the order of the base's manifest; keys may be left out

    member: the one kind of its members. Of KEY.json the columns are the content; other members are given as bytes or files.
    made_by: what field.json says of its making. held: the dataset's lock is the caller's.
    """

    def __init__(
        self,
        dataset: str | os.PathLike[str],
        name: str,
        *,
        member: str = "json",
        columns: Mapping[str, pl.DataType | type[pl.DataType]] | None = None,
        settings: Mapping[str, Any] | None = None,
        made_by: Mapping[str, Any] | None = None,
        scratch: str | os.PathLike[str] | None = None,
        held: bool = False,
    ) -> None:
        check_name(name, "field")
        if kind_of(member) is None:
            raise UserError(f"member {member!r} is of no kind that manifests/kinds.py has")
        super().__init__(dataset, settings=settings, scratch=scratch)
        self.base, self.name, self.member = self.store, name, member
        self.store = field_store(self.base.root, name, self.scratch / "uploads")
        self.columns = {
            column: dtype if isinstance(dtype, pl.DataType) else dtype() for column, dtype in (columns or {}).items()
        }
        self.schema = field_schema(member, self.columns)
        self.settings = {
            "member": member,
            "columns": {column: str(dtype) for column, dtype in self.columns.items()},
            **(settings or {}),
        }
        self.made_by, self._lock = dict(made_by or {}), not held
        self._open_keys: frozenset[str] = frozenset()

    def begin(self) -> None:
        """Take the dataset's lock and find what an earlier run committed.

        Raises UserError if there is no dataset, if it is being written, or the field was begun otherwise.
        """
        header = read_header(self.base.path(HEADER))
        if "datasets" in header:
            raise UserError(f"{self.base.root} is a view: fields belong to datasets, give the one it was made of")
        if self._lock and self._held.enter_context(locked(self.base)).alone and not self.base.remote:
            sweep_files(Path(self.base.root))
        self.parents = base_shards(self.base)
        wanted = json.loads(json.dumps(self.settings))
        if self.store.exists(BUILD, BEGUN):
            before = json.loads(self.store.read(BUILD, BEGUN))
            if before != wanted and not self.store.exists(FIELD_HEADER) and not intact(self.store):
                self._write_begun(wanted)
            elif before != wanted:
                name = next(name for name in {**before, **wanted} if before.get(name) != wanted.get(name))
                raise UserError(
                    f"field {self.name} of {self.base.root} was made with {name} {before.get(name)!r}, now it is "
                    f"{wanted.get(name)!r}: give it another name, or undo it first "
                    f"(`javisc annotate {self.base.root} --undo {self.name}`)"
                )
        else:
            self._write_begun(wanted)
        self._commits = {
            shard: commit
            for shard, commit in intact(self.store).items()
            if shard in self.parents and commit.get("plan") == self.parents[shard]
        }
        self._done = {shard: commit["samples"] for shard, commit in self._commits.items()}

    @cached_property
    def keys(self) -> dict[int, pl.DataFrame]:
        """The base's samples by shard, with the digests of their sources: read when a first one is added."""
        rows = pl.scan_parquet(self.base.fetch("manifest.parquet"), glob=False)
        keys = rows.select("key", "shard", pl.col("source_sha256").alias(OF)).collect()
        return {int(shard): part for (shard,), part in keys.group_by("shard", maintain_order=True)}  # type: ignore[call-overload]

    @cached_property
    def _left(self) -> list[int]:
        return sorted(self.keys)

    def _write_begun(self, wanted: Mapping[str, Any]) -> None:
        self.store.write((json.dumps(wanted, indent=1, sort_keys=True) + "\n").encode(), BUILD, BEGUN)

    def _open(self, shard: int) -> None:
        self._shard, self._open_keys = shard, frozenset(self.keys[shard]["key"])

    def has(self, shard: int) -> bool:
        """True if that shard of the field is committed: an earlier run's samples of it stay as they are."""
        return shard in self._done

    def add(self, key: str, members: Mapping[str, Content], columns: Mapping[str, Any] | None = None) -> None:
        """Add the member and the columns of a sample of the base, in the order of its manifest.

        Raises ValueError for a key that the base does not have or that comes out of its order, another member than the
        field's, and a column that was not declared.
        """
        if unknown := [name for name in columns or () if name not in self.columns]:
            raise ValueError(f"{key}: column {unknown[0]!r} is not known: declare it with `columns`")
        wanted = set() if self.member == "json" else {self.member}
        if set(members) != wanted:
            raise ValueError(
                f"{key}: members {sorted(members)}: this field holds {self.member}"
                + ("" if wanted else ", made of the columns")
            )
        while key not in self._open_keys:
            if not self._left:
                raise ValueError(f"{key!r} is no sample of {self.base.root}, or comes after one that stands behind it")
            self.commit()
            self._open(self._left.pop(0))
        if key in self._samples:
            raise ValueError(f"key {key!r} was added before")
        self._samples[key] = (dict(columns or {}), self._kept(key, members))

    def commit(self) -> None:
        """Publish the open shard, if samples were added to it."""
        if self._samples and self._shard not in self._done:
            ordered = sorted(self._samples.items())
            rows = [
                {"key": key, "shard": self._shard, **{name: columns.get(name) for name in self.columns}}
                for key, (columns, _) in ordered
            ]
            frame = pl.DataFrame(rows, schema={name: self.schema[name] for name in rows[0]})
            if self.member == "json":
                of = self.keys[self._shard].select("key", OF)
                self.commit_rows(frame.join(of, on="key", how="left", maintain_order="left"))
            else:
                contents = [members[self.member] for _, (_, members) in ordered]
                at = (self._shard, self.parents[self._shard])
                commit_field_shard(self.store, self.schema, self.member, frame, contents, *at)
                self._done[self._shard] = frame.height
        shutil.rmtree(self.scratch / "open", ignore_errors=True)
        self._samples = {}

    def commit_rows(self, rows: pl.DataFrame) -> None:
        """Publish shards of annotations whole: rows have key, shard, OF and the field's columns, in the order of shard and key.

        Those of shards that are committed are passed over.
        """
        left = rows.filter(~pl.col("shard").is_in(list(self._done)))
        commit_annotations(self.store, self.schema, list(self.columns), left, self.parents)
        self._done |= dict(left.group_by("shard").len().iter_rows())

    def publish(self) -> Merged:
        """Publish the field's tables, field.json, and last the dataset's manifest with its columns. Raises UserError."""
        return publish_field(self.base, self.store, self.name, self.settings, self.made_by)


def publish_field(
    base: Store, store: Store, name: str, settings: Mapping[str, Any], made_by: Mapping[str, Any], *, lay: bool = True
) -> Merged:
    """Publish the tables of a field whose shards are committed, then lay it over the base's manifest.

    Shards that belong to another shard than the base has now are dropped. Raises UserError if none is left.
    """
    parents = base_shards(base)
    commits = intact(store)
    held = [
        shard
        for shard in sorted(commits)
        if commits[shard].get("plan") == parents.get(shard, "") and commits[shard]["samples"]
    ]
    if not held:
        raise UserError(f"field {name} of {base.root} has no sample: nothing was published")
    total = int(json.loads(base.read(HEADER))["counts"]["samples"])
    there = [field.order for field in fields_of(base.root) if field.name != name]
    order = open_field(base.root, name).order if store.exists(FIELD_HEADER) else max(there, default=0) + 1
    header = {
        "field": name,
        "member": settings["member"],
        "columns": settings["columns"],
        "settings": dict(settings),
        "made_by": dict(made_by),
        "order": order,
        "parents": {f"{shard:06d}": parents[shard] for shard in held},
        "of": total,
    }
    merged = publish_tables(store, held, header)
    if lay:
        fold(base)
    return merged


def own_rows(base: Store, manifest: pl.LazyFrame, header: Mapping[str, Any]) -> pl.LazyFrame:
    """A dataset's manifest without what its fields lay over it. header: the dataset's. Raises UserError."""
    return unfolded(manifest, header, _under(base, header))


def _under(base: Store, header: Mapping[str, Any]) -> str:
    """A local copy of the table of what fields lie over; empty where they lie over nothing."""
    return str(base.fetch(*OWN)) if folded(header) and base.exists(*OWN) else ""


def fold(base: Store, *, leave: Sequence[str] = ()) -> list[Field]:
    """Lay the fields over the manifest again, all but those to `leave`. Returns those that it shows now. Raises UserError.

    What a field lies over is kept in fields/own.parquet first; then the header says which columns are the fields'; the manifest
    is shown last. Killed anywhere in between, the same call comes to the same.
    """
    header = read_header(base.path(HEADER))
    fields = [field for field in fields_of(base.root) if field.name not in leave]
    before = folded(header)
    if not fields and not before:
        return []
    local = base.fetch("manifest.parquet")
    whole, kept = pl.scan_parquet(local, glob=False), _under(base, header)
    own = unfolded(whole, header, kept)
    schema = own.collect_schema()
    manifest, shown = laid(own, fields)
    wanted = {**before, **shown}
    under = sorted({column for columns in wanted.values() for column in columns if column in schema})
    parts = _stretches(base, whole, kept, fields)
    if parts is not None:  # the same, without holding a table

        def bare(part: Stretch) -> pl.LazyFrame:
            return unfolded(whole, header, kept, part)

        manifest = stretched(parts, lambda part: laid(bare(part), fields, part)[0], manifest.collect_schema())
        own = stretched(parts, bare, schema)
    with base.publish("manifest.parquet") as table:
        write_table(manifest, table)  # it reads own.parquet as it was: written whole before that is another
        if under:
            with base.publish(*OWN) as path:
                write_table(own.select("key", *under), path)
        with base.publish(HEADER) as path:
            write_header(path, {**header, "fields": wanted})
    if wanted != shown:
        rest = {name: value for name, value in header.items() if name != "fields"}
        with base.publish(HEADER) as path:
            write_header(path, {**rest, **({"fields": shown} if shown else {})})
    if not shown:
        base.remove(*OWN)
    return fields


def _stretches(base: Store, manifest: pl.LazyFrame, under: str, fields: Sequence[Field]) -> list[Stretch] | None:
    """A long manifest in stretches that fields are laid over one by one; None where one of them may have its rows elsewhere."""
    parents = base_shards(base)
    if any(parents.get(shard) != digest for field in fields for shard, digest in field.parents.items()):
        return None
    return stretches(manifest, [pl.scan_parquet(under, glob=False)] if under else [])


def undo(dataset: str, name: str, scratch: Path) -> None:
    """Take a field out of the manifest, then remove it: what stood under it is there again. Raises UserError."""
    base = Store(dataset, scratch)
    check_name(name, "--undo")
    with locked(base):
        if name not in names(base.root) and name not in folded(read_header(base.path(HEADER))):
            there = ", ".join(field.name for field in fields_of(base.root)) or "none"
            raise UserError(f"--undo {name}: {dataset} has no field of that name; it has {there}")
        drop(base, name)


def drop(base: Store, name: str) -> None:
    """`undo` of a field that is there, where the dataset's lock is the caller's. Raises UserError."""
    fold(base, leave=(name,))
    store = field_store(base.root, name, base.scratch)
    store.remove(FIELD_HEADER)
    staged = (BUILD, STAGE)
    below = ((*staged, BUILD, "parts"), (*staged, BUILD), (*staged, "shards"), (BUILD, "parts"), (BUILD,), ())
    for folder in below:
        for file in sorted(store.names(*folder)):
            if file not in ("parts", BUILD, STAGE):
                store.remove(*folder, file)
    store.remove_tree()
    if not base.remote and not base.names(FOLDER):
        base.remove_tree(FOLDER)

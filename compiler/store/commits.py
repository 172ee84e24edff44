"""Parts: what a published shard leaves for the merge. The commit file comes last and makes the shard count as done."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import polars as pl

from javisc.compiler.store.files import BUILD as BUILD
from javisc.compiler.store.files import Store
from javisc.manifests.damage import POLARS_FAULTS
from javisc.manifests.schema import MANIFEST_SCHEMA, REJECTED_SCHEMA

#: What stands on disk: where a key is, and the digest of its source or the reason of its refusal.
PUBLISHED_SCHEMA = pl.Schema(
    {
        "key": pl.String(),
        "shard": pl.Int32(),
        "sha256": pl.String(),
        "audio_sha256": pl.String(),
        "reason": pl.String(),
    }
)
#: Rows of parts that are held at a time.
ROWS = 200_000
_COMMIT = re.compile(r"(\d{6,})\.json")


def publish_part(
    store: Store,
    shard: int,
    revision: int,
    rows: list[dict[str, Any]] | pl.DataFrame,
    rejects: list[dict[str, Any]],
    made: Mapping[str, Any],
    schema: pl.Schema = MANIFEST_SCHEMA,
    plan: str | None = None,
) -> None:
    """Publish the tables of a shard, then its commit.

    made: bytes, sha256, idx_bytes and idx_sha256 of the shard, empty without one. plan: the digest of the plan it was made from;
    for a shard of a field, that of the base's shard.
    """
    tables, commit = part_files(shard, revision, rows, rejects, made, schema, plan)
    for place, content in tables.items():
        store.write(content, *place)
    store.write(commit, *commit_place(shard))


def part_files(
    shard: int,
    revision: int,
    rows: list[dict[str, Any]] | pl.DataFrame,
    rejects: list[dict[str, Any]],
    made: Mapping[str, Any],
    schema: pl.Schema,
    plan: str | None,
) -> tuple[dict[tuple[str, ...], bytes], bytes]:
    """What publish_part writes: the tables of a part by their places, and its commit."""
    made_of = [("manifest", _table(pl.DataFrame(rows, schema)))]
    made_of.append(("rejected", _table(pl.DataFrame(rejects, REJECTED_SCHEMA)) if rejects else _no_rejects()))
    written = {table: [len(content), hashlib.sha256(content).hexdigest()] for table, content in made_of}
    commit: dict[str, Any] = {"shard": shard, "revision": revision, "samples": len(rows), "rejected": len(rejects)}
    commit |= {**made, "plan": plan, "tables": written}
    places: dict[tuple[str, ...], bytes] = {
        (BUILD, "parts", f"{shard:06d}.{table}.parquet"): content for table, content in made_of
    }
    return places, json.dumps(commit, sort_keys=True).encode()


def commit_place(shard: int) -> tuple[str, ...]:
    """Where the commit of a shard lies."""
    return (BUILD, "parts", f"{shard:06d}.json")


def _table(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.sort("key").write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


@cache
def _no_rejects() -> bytes:
    return _table(pl.DataFrame(schema=REJECTED_SCHEMA))


def _commit(raw: bytes) -> dict[str, Any] | None:
    """A commit as it was written; None where it is damaged, which is as good as none."""
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    whole = isinstance(found, dict) and all(
        isinstance(found.get(name), int) for name in ("shard", "revision", "samples", "rejected")
    )
    return found if whole and (not found["samples"] or {"bytes", "sha256", "idx_sha256"} <= set(found)) else None


class Parts:
    """The parts of a dataset: which shards are committed, and their tables."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.commits: dict[int, dict[str, Any]] = {}
        names = sorted(name for name in store.names(BUILD, "parts") if _COMMIT.fullmatch(name))
        for name, local in zip(names, store.fetch_many((BUILD, "parts"), names), strict=True):
            if (commit := _commit(local.read_bytes())) is not None:
                self.commits[int(name.partition(".")[0])] = commit

    def done(self, shard: int, revision: int) -> bool:
        """True if the shard is published in this revision."""
        return self.commits.get(shard, {}).get("revision") == revision

    def manifest(self, shards: Iterable[int]) -> pl.LazyFrame:
        """The manifest rows of the parts of some shards, in the order given."""
        schema = pl.Schema() if self.store.field else MANIFEST_SCHEMA
        return self._scan("manifest", list(shards), schema).drop("part")

    def rejected(self, shards: Iterable[int]) -> pl.LazyFrame:
        """The rejects of some shards, in the order given, and the shard that each belongs to."""
        rows = self._scan(
            "rejected", [number for number in shards if self.commits[number]["rejected"]], REJECTED_SCHEMA
        )
        number = pl.col("part").str.extract(r"(\d+)\.rejected\.parquet$").cast(pl.Int32)
        return rows.with_columns(shard=number).drop("part")

    def _scan(self, table: str, shards: list[int], schema: pl.Schema) -> pl.LazyFrame:
        files = self.store.fetch_many((BUILD, "parts"), [f"{shard:06d}.{table}.parquet" for shard in shards])
        if not files:
            return pl.LazyFrame(schema={**schema, "part": pl.String()})
        # Parts of an older javisc lack columns that came later; those of latents have some of their own.
        types = {**schema, **pl.scan_parquet(files[0], glob=False).collect_schema()}
        return pl.scan_parquet(
            files, glob=False, include_file_paths="part", schema=types, missing_columns="insert"
        ).select(*types, "part")

    def groups(self, shards: Iterable[int], rows: int | None = None) -> Iterator[list[int]]:
        """The shards in lists of about so many rows each, for what is longer than memory."""
        group: list[int] = []
        held, rows = 0, ROWS if rows is None else rows
        for shard in shards:
            group.append(shard)
            held += self.commits[shard]["samples"] + self.commits[shard]["rejected"]
            if held >= rows or len(group) >= rows:
                yield group
                group, held = [], 0
        if group:
            yield group

    @property
    def shards(self) -> Collection[int]:
        """Those that are committed."""
        return self.commits.keys()

    def of(self, shards: Collection[int], plan: pl.DataFrame) -> pl.DataFrame:
        """Key, shard, digest of the source or reason of the refusal, of everything in some committed shards.

        Of shards whose part is lost or damaged, what their rows of the plan say: the keys, without digests.
        """
        try:
            return self._published(sorted(shards))
        except (FileNotFoundError, *POLARS_FAULTS):  # which one it is, is found below
            frames = [pl.DataFrame(schema=PUBLISHED_SCHEMA)]
        for shard in sorted(shards):
            try:
                frames.append(self._published([shard]))
            except (FileNotFoundError, *POLARS_FAULTS):
                known = plan.filter(pl.col("shard") == shard).select("key", "shard")
                blank = [
                    pl.lit(None, dtype).alias(name) for name, dtype in PUBLISHED_SCHEMA.items() if name not in known
                ]
                frames.append(known.with_columns(blank).select(PUBLISHED_SCHEMA.names()))
        return pl.concat(frames)

    def _published(self, shards: list[int]) -> pl.DataFrame:
        nothing = pl.lit(None, pl.String)
        made = self.manifest(shards).select("key", "shard", "audio_sha256", sha256="source_sha256", reason=nothing)
        refused = self.rejected(shards).select("key", "shard", audio_sha256=nothing, sha256=nothing, reason="reason")
        made, refused = made.select(PUBLISHED_SCHEMA.names()), refused.select(PUBLISHED_SCHEMA.names())
        whole = pl.concat([pl.LazyFrame(schema=PUBLISHED_SCHEMA), made, refused])
        return whole.collect(engine="streaming")

    def remove(self, shard: int) -> None:
        """Forget a shard that no longer has inputs: commit first, so that it is never half there."""
        name = f"{shard:06d}"
        self.store.remove(BUILD, "parts", f"{name}.json")
        for rest in ((BUILD, "parts", f"{name}.manifest.parquet"), (BUILD, "parts", f"{name}.rejected.parquet")):
            self.store.remove(*rest)
        self.store.remove(*self.store.packs, f"{name}.idx")
        self.store.remove(*self.store.packs, f"{name}.tar")

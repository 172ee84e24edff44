"""The rule by which a plan is made, with every table in memory: what `javisc.compiler.plan.layout` has to give, byte for byte.

Whatever shares a name is looked at row by row: it knows no shorter way for a corpus that moved.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.inputs.table import LABELS
from javisc.compiler.plan.before import PLAN_SCHEMA, as_now
from javisc.compiler.plan.keys import draw, key_of
from javisc.compiler.plan.layout import Layout
from javisc.compiler.plan.matching import KEYED_SCHEMA, MADE_OF
from javisc.compiler.store.commits import PUBLISHED_SCHEMA
from javisc.manifests.absent import without
from javisc.manifests.files import sha256_of
from javisc.manifests.spool import spool
from javisc.manifests.urls import is_url

_BATCH = 100_000
_COMPARED = ("source_bytes", "audio_path", "audio_bytes", *(column.name for column in LABELS), "boxes", "refused")


@dataclass
class Changes:
    """What a plan has beside the one before it."""

    new: int = 0
    kept: int = 0
    twice: int = 0
    twins: int = 0
    nameless: int = 0
    changed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    #: Inputs that were planned, are not published and cannot be found any more: (path, its bytes if they are no text).
    lost: list[tuple[str, bytes | None]] = field(default_factory=list)
    pruned: set[int] = field(default_factory=set)


def lay_out(
    inputs: pl.LazyFrame,
    layout: Layout,
    folder: Path,
    *,
    old: pl.DataFrame | None = None,
    published: pl.DataFrame | None = None,
    prune: bool = False,
    retry: Iterable[str] = (),
) -> tuple[pl.LazyFrame, Changes]:
    """Give every input its key and shard, keeping what an older plan says.

    inputs: INPUT_SCHEMA. old: the plan before (PLAN_SCHEMA). published: key, shard, sha256, reason of what stands on disk.
    retry: reasons for which a published reject is planned again. folder: scratch for what is longer than memory.
    Returns the plan (PLAN_SCHEMA, sorted by shard and key) and what changed. The result does not depend on the order of
    the inputs. New inputs always get new shards; a shard whose inputs change gets its revision raised, which makes what is
    published of it stale.
    """
    changes = Changes()
    rows = spool(
        (_keyed(batch) for batch in inputs.collect_batches(chunk_size=_BATCH)), folder / "inputs", KEYED_SCHEMA
    )
    rows = rows.with_row_index("row")
    narrow = rows.select("row", *MADE_OF, "relpath", "key0", "refused").collect(engine="streaming")
    narrow = _once(narrow, changes)
    # Before groups, splits were drawn into the plan: what such a plan says stays.
    drawn = old.select("key", drawn="split") if old is not None and "group" not in old.columns else None
    old = as_now(old) if old is not None else pl.DataFrame(schema=PLAN_SCHEMA)
    published = published if published is not None else pl.DataFrame(schema=PUBLISHED_SCHEMA)
    assigned = _match(narrow, old, changes)
    assigned, kept = _compare(rows, assigned, old, published, changes, prune, frozenset(retry))
    assigned = _spread(assigned, layout, 1 + max(_highest(old), _highest(published)))
    changes.new = int(assigned["fresh"].sum())
    changes.kept = assigned.height - changes.new + kept.height
    raised = pl.col("shard").is_in(sorted(changes.pruned)).cast(pl.Int32)
    fresh = rows.drop("relpath", "refused", "key0", *MADE_OF).join(assigned.lazy(), on="row", how="inner")
    if drawn is not None:
        fresh = fresh.join(without(drawn.lazy()), on="key", how="left").with_columns(
            split=pl.coalesce("split", "drawn")
        )
    fresh = fresh.select(PLAN_SCHEMA.names())
    plan = pl.concat([fresh, kept.lazy()]).with_columns(revision=pl.col("revision") + raised).sort("shard", "key")
    return plan, changes


def _keyed(batch: pl.DataFrame) -> pl.DataFrame:
    windows = zip(batch["window_start"], batch["window_end"], strict=True)
    keys = [key_of(relpath, window) for relpath, window in zip(batch["relpath"], windows, strict=True)]
    return batch.with_columns(pl.Series("key0", keys, dtype=pl.String))


def _once(narrow: pl.DataFrame, changes: Changes) -> pl.DataFrame:
    """Drop inputs that were named twice, as with overlapping roots: the one seen from the outermost root stays."""
    twice = narrow.filter(pl.struct(*MADE_OF).is_duplicated())
    if twice.is_empty():
        return narrow
    order = [pl.col("relpath").str.len_bytes(), pl.col("relpath")]
    first = twice.sort(order, descending=[True, False]).unique(MADE_OF, keep="first", maintain_order=True)
    changes.twice = twice.height - first.height
    return narrow.join(twice.join(first, on="row", how="anti"), on="row", how="anti")


def _match(narrow: pl.DataFrame, old: pl.DataFrame, changes: Changes) -> pl.DataFrame:
    """Find each input in the older plan: by path, else by relpath if the older path is gone (the media moved).

    Returns row, what it is made of, relpath, refused, key0, key, twin, and shard and revision, null for new inputs.
    """
    before = old.select(*MADE_OF, "relpath", "key", "twin", "shard", "revision")
    by_path = before.rename({"relpath": "relpath_old"})
    found = narrow.join(by_path, on=MADE_OF, how="left", nulls_equal=True)
    found = found.with_columns(relpath=pl.coalesce("relpath_old", "relpath")).drop("relpath_old")
    lone = found.filter(pl.col("key").is_null())
    left = before.join(found.drop_nulls("key"), on="key", how="anti")
    clashing = lone.filter(pl.col("key0").is_duplicated() | pl.col("key0").is_in(_plain_keys(before).implode()))
    settled = [found.drop_nulls("key"), lone.join(clashing, on="row", how="anti").with_columns(key="key0", twin=0)]
    slow: list[dict[str, Any]] = []
    by_relpath: dict[str, list[dict[str, Any]]] = {}
    for row in left.filter(_plain_keys(left).is_in(clashing["key0"].implode())).iter_rows(named=True):
        by_relpath.setdefault(_plain_key(row), []).append(row)
    used: dict[str, set[int]] = {}
    if clashing.height:
        for row in before.filter(_plain_keys(before).is_in(clashing["key0"].implode())).iter_rows(named=True):
            used.setdefault(_plain_key(row), set()).add(row["twin"])
    order = clashing.sort("key0", "path", "audio_path", maintain_order=True).iter_rows(named=True)
    for key0, group in groupby(order, key=lambda row: row["key0"]):
        before_it = sorted(by_relpath.get(key0, []), key=lambda row: row["twin"])
        taken = used.get(key0, set())
        for row in group:
            # The same picture with another sound has changed; a picture that is gone from its old place has moved.
            fits = [old for old in before_it if old["path"] == row["path"]] or [
                old for old in before_it if not is_url(old["path"]) and not os.path.lexists(old["path"])
            ]
            if fits:
                same = fits[0]
                before_it.remove(same)
                row.update({name: same[name] for name in ("key", "twin", "shard", "revision")})
            else:
                twin = next(number for number in range(len(taken) + 1) if number not in taken)
                taken.add(twin)
                changes.twins += twin > 0
                row.update(key=key_of(row["relpath"], (row["window_start"], row["window_end"]), twin), twin=twin)
            slow.append(row)
    settled.append(pl.DataFrame(slow, schema=found.schema))
    return pl.concat([frame.select(found.columns).cast(found.schema) for frame in settled], rechunk=True)


def _plain_key(row: Mapping[str, Any]) -> str:
    return row["key"] if row["twin"] == 0 else key_of(row["relpath"], (row["window_start"], row["window_end"]))


def _plain_keys(frame: pl.DataFrame) -> pl.Series:
    """The keys that rows would have without a twin."""
    if (frame["twin"] == 0).all():
        return frame["key"]
    return pl.Series("key", [_plain_key(row) for row in frame.iter_rows(named=True)], dtype=pl.String)


def _compare(
    rows: pl.LazyFrame,
    assigned: pl.DataFrame,
    old: pl.DataFrame,
    published: pl.DataFrame,
    changes: Changes,
    prune: bool,
    retry: frozenset[str],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Compare with what is published. Returns the inputs to plan from the new table, and the old rows that stay as they are."""
    state = old.select("key", "shard").join(published, on=["key", "shard"], how="inner")
    deleted = old.join(assigned.drop_nulls("shard"), on="key", how="anti")
    changes.deleted = deleted["path"].to_list()
    refused = assigned.filter(pl.col("refused").is_in(["unreadable", "vanished"])).drop_nulls("shard")
    missing = pl.concat([deleted, old.join(refused, on="key", how="semi")]).filter(pl.col("refused").is_null())
    changes.lost = missing.join(state, on="key", how="anti").select("path", "raw_path").rows()
    gone = deleted.join(state, on="key", how="semi")
    if prune:
        made = state.filter(pl.col("reason").is_null())
        changes.pruned |= set(gone.join(made, on="key", how="semi")["shard"])
        gone = gone.clear()
    if state.is_empty():
        return assigned, gone
    times = ("mtime_ns", "audio_mtime_ns")
    now = rows.select("row", "raw_path", *_COMPARED[:-1], *times).join(
        assigned.lazy().drop("path", "audio_path"), on="row"
    )
    both = now.join(old.lazy().select("key", *times, *_COMPARED), on="key", suffix="_old").join(state.lazy(), on="key")

    def other(name: str) -> pl.Expr:
        return pl.col(name).ne_missing(pl.col(f"{name}_old"))

    differs = pl.any_horizontal(other(name) for name in _COMPARED if name not in ("split", "group"))
    touched = pl.any_horizontal(other(name) for name in times)
    again = pl.col("reason").is_in(sorted(retry))
    nameless = pl.col("reason").is_null() & pl.col("sha256").is_null()
    suspects = (
        both.with_columns(differs=differs, again=again, nameless=nameless)
        .filter(differs | touched | again | nameless)
        .select("row", "raw_path", "audio_path", "shard", "sha256", "audio_sha256", "reason", "differs", "nameless")
        .collect(engine="streaming")
        .join(assigned.select("row", "path"), on="row")
    )
    anew: list[int] = []
    stale: list[int] = []
    for row in suspects.sort("path").iter_rows(named=True):
        if row["reason"] is not None:
            anew.append(row["row"])
        elif row["nameless"] and not row["differs"]:
            changes.nameless += 1
            if prune:
                changes.pruned.add(row["shard"])
            else:
                stale.append(row["row"])
        elif row["differs"] or not (
            _same_content(row["path"], row["raw_path"], row["sha256"])
            and (row["audio_path"] is None or _same_content(row["audio_path"], None, row["audio_sha256"]))
        ):
            changes.changed.append(row["path"])
            if prune:
                changes.pruned.add(row["shard"])
            else:
                stale.append(row["row"])
    # A refused input that changed is in no shard: it is planned as if it were new.
    reset = pl.col("row").is_in(anew)
    assigned = assigned.with_columns(shard=pl.when(~reset).then("shard"), revision=pl.when(~reset).then("revision"))
    stays = assigned.filter(pl.col("row").is_in(stale))
    kept = pl.concat([gone, old.join(stays, on="key", how="semi")])
    return assigned.join(stays, on="row", how="anti"), kept


def _same_content(path: str, raw_path: bytes | None, sha256: str | None) -> bool:
    """True if a file whose time changed still has the content that was compiled."""
    if sha256 is None or is_url(path):
        return False
    try:
        return sha256_of(Path(path if raw_path is None else os.fsdecode(raw_path))) == sha256
    except OSError:
        return False


def _highest(frame: pl.DataFrame) -> int:
    return int(frame["shard"].max()) if frame.height else -1  # type: ignore[arg-type]


def _spread(assigned: pl.DataFrame, layout: Layout, first: int) -> pl.DataFrame:
    """Deal new inputs to shards from `first` on, in the order of their draw, so that every shard is a fair sample."""
    fresh = assigned.filter(pl.col("shard").is_null())
    draws = pl.Series("draw", [draw(layout.seed, key) for key in fresh["key"]], dtype=pl.UInt64)
    fresh = fresh.with_columns(draws, bad=pl.col("refused").is_not_null()).sort("bad", "draw", "key")
    good = fresh.filter(~pl.col("bad")).height
    shards = max(1, -(-good // layout.per_shard))
    place = pl.int_range(pl.len(), dtype=pl.Int64)
    fresh = fresh.with_columns(place=place.over("bad"), among=pl.len().over("bad"))
    fresh = fresh.with_columns(
        shard=(pl.col("place") * shards // pl.col("among") + first).cast(pl.Int32),
        revision=pl.lit(0, pl.Int32),
        fresh=True,
    )
    both = [fresh.drop("draw", "bad", "place", "among"), assigned.drop_nulls("shard").with_columns(fresh=False)]
    return pl.concat([frame.select(sorted(frame.columns)) for frame in both])

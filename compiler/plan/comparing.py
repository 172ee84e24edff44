"""Inputs beside what is published of them: what changed, what went, and what is planned again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from javisc.compiler.inputs.table import LABELS
from javisc.compiler.plan.before import PLAN_SCHEMA
from javisc.compiler.plan.changes import LOST_SCHEMA, Changes
from javisc.manifests.files import sha256_of
from javisc.manifests.urls import is_url

_COMPARED = ("source_bytes", "audio_path", "audio_bytes", *(column.name for column in LABELS), "boxes", "refused")
_TIMES = ("mtime_ns", "audio_mtime_ns")
#: Local paths → the SHA-256 of each; None for what cannot be read.
Digests = Callable[[Sequence[Path]], Sequence[str | None]]


def one_by_one(paths: Sequence[Path]) -> list[str | None]:
    """Digests, made here one after the other."""

    def digest(path: Path) -> str | None:
        try:
            return sha256_of(path)
        except OSError:
            return None

    return [digest(path) for path in paths]


def compare(
    rows: pl.DataFrame,
    old: pl.DataFrame,
    changes: Changes,
    *,
    prune: bool,
    retry: frozenset[str],
    digests: Digests,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Compare some inputs (MATCHED_SCHEMA, settled) with the older ones of the same keys (BEFORE_SCHEMA).

    Returns the inputs to plan from the new table, the old rows that stay as they are (PLAN_SCHEMA), and what is lost.
    """
    rows = rows.with_row_index("row")
    deleted = old.join(rows.filter(pl.col("shard").is_not_null()), on="key", how="anti")
    changes.deleted.add(deleted["path"])
    refused = rows.filter(pl.col("refused").is_in(["unreadable", "vanished"]) & pl.col("shard").is_not_null())
    missing = pl.concat([deleted, old.join(refused, on="key", how="semi")]).filter(pl.col("refused").is_null())
    lost = missing.filter(~pl.col("done")).select(LOST_SCHEMA.names())
    gone = deleted.filter("done")
    if prune:
        changes.pruned |= set(gone.filter(pl.col("reason").is_null())["shard"])
        gone = gone.clear()
    stands = old.filter("done")
    if stands.is_empty():
        return rows.drop("row"), gone.select(PLAN_SCHEMA.names()), lost
    both = rows.join(
        stands.select("key", *_TIMES, *_COMPARED, "sha256", "audio_sha256", "reason"), on="key", suffix="_old"
    )

    def other(name: str) -> pl.Expr:
        return pl.col(name).ne_missing(pl.col(f"{name}_old"))

    differs = pl.any_horizontal(other(name) for name in _COMPARED if name not in ("split", "group"))
    touched = pl.any_horizontal(other(name) for name in _TIMES)
    again = pl.col("reason").is_in(sorted(retry)).fill_null(False)
    nameless = pl.col("reason").is_null() & pl.col("sha256").is_null()
    suspects = both.with_columns(differs=differs, nameless=nameless).filter(differs | touched | again | nameless)
    # A refused input that changed is in no shard: it is planned as if it were new.
    anew = suspects.filter(pl.col("reason").is_not_null())["row"]
    made = suspects.filter(pl.col("reason").is_null())
    without_digest = made.filter(pl.col("nameless") & ~pl.col("differs"))
    changes.nameless += without_digest.height
    rest = made.filter(pl.col("differs") | ~pl.col("nameless"))
    changed = pl.concat([rest.filter("differs"), _other_content(rest.filter(~pl.col("differs")), digests)])
    changes.changed.add(changed["path"])
    old_ones = pl.concat([without_digest, changed])
    stale = old_ones["row"]
    if prune:
        changes.pruned |= set(old_ones["shard"])
        stale = stale.clear()
    reset = pl.col("row").is_in(anew.implode())
    rows = rows.with_columns(shard=pl.when(~reset).then("shard"), revision=pl.when(~reset).then("revision"))
    stays = rows.filter(pl.col("row").is_in(stale.implode()))
    kept = pl.concat([gone, old.join(stays, on="key", how="semi")]).select(PLAN_SCHEMA.names())
    return rows.join(stays, on="row", how="anti").drop("row"), kept, lost


def _other_content(touched: pl.DataFrame, digests: Digests) -> pl.DataFrame:
    """Of inputs whose time alone changed, those whose content is not what was compiled, or not known to be."""
    columns = ("path", "raw_path", "sha256", "audio_path", "audio_sha256")
    wanted: dict[Path, str | None] = {}
    asked: list[list[tuple[Path, str]] | None] = []
    for path, raw, sha256, audio, audio_sha256 in touched.select(columns).iter_rows():
        sources = [(path, raw, sha256), *([(audio, None, audio_sha256)] if audio is not None else [])]
        if any(digest is None or is_url(name) for name, _, digest in sources):
            asked.append(None)
            continue
        here = [(Path(name if raw is None else os.fsdecode(raw)), digest) for name, raw, digest in sources]
        wanted.update((file, None) for file, _ in here)
        asked.append(here)
    if wanted:
        wanted = dict(zip(wanted, digests(list(wanted)), strict=True))
    other = [here is None or any(wanted[file] != digest for file, digest in here) for here in asked]
    return touched.filter(pl.Series(other, dtype=pl.Boolean))

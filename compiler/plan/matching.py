"""Which input of the plan before an input is: by what it is made of, else by its name where the older one is gone."""

from __future__ import annotations

import os
from itertools import groupby
from typing import Any

import polars as pl

from javisc.compiler.inputs.table import INPUT_SCHEMA
from javisc.compiler.plan.before import BEFORE_SCHEMA
from javisc.compiler.plan.changes import Changes
from javisc.compiler.plan.keys import key_of
from javisc.manifests.urls import is_url

WINDOW = ("window_start", "window_end")
#: What an input is made of: two rows that agree here are the same input.
MADE_OF = ("path", "audio_path", *WINDOW)
#: A place in the plan before: what an input that has it takes over.
PLACE = ("key", "twin", "shard", "revision")
#: What of the plan before is looked at to find inputs by what they are made of.
PATHS_SCHEMA = pl.Schema({name: BEFORE_SCHEMA[name] for name in (*MADE_OF, "relpath", *PLACE, "plain")})
KEYED_SCHEMA = pl.Schema({**INPUT_SCHEMA, "key0": pl.String()})
#: Inputs and their places as far as they are known. plain: the key without a twin, of the older input where it was found.
MATCHED_SCHEMA = pl.Schema({**KEYED_SCHEMA, **{name: BEFORE_SCHEMA[name] for name in PLACE}, "plain": pl.String()})


def keyed(batch: pl.DataFrame) -> pl.DataFrame:
    """Inputs with the key that they have as the only ones of their name."""
    windows = zip(batch["window_start"], batch["window_end"], strict=True)
    keys = [key_of(relpath, window) for relpath, window in zip(batch["relpath"], windows, strict=True)]
    return batch.with_columns(pl.Series("key0", keys, dtype=pl.String))


def once(rows: pl.DataFrame, changes: Changes) -> pl.DataFrame:
    """Drop inputs that were named twice, as with overlapping roots: the one seen from the outermost root stays."""
    several = pl.struct(*MADE_OF).is_duplicated()
    twice = rows.filter(several)
    if twice.is_empty():
        return rows
    order = [pl.col("relpath").str.len_bytes(), pl.col("relpath")]
    first = twice.sort(order, descending=[True, False], maintain_order=True).unique(
        MADE_OF, keep="first", maintain_order=True
    )
    changes.twice += twice.height - first.height
    return pl.concat([rows.filter(~several), first])


def by_path(rows: pl.DataFrame, old: pl.DataFrame) -> pl.DataFrame:
    """MATCHED_SCHEMA of inputs (KEYED_SCHEMA, all of some paths), with the places of the older ones (PATHS_SCHEMA)."""
    found = rows.join(old.rename({"relpath": "relpath_old"}), on=MADE_OF, how="left", nulls_equal=True)
    found = found.with_columns(relpath=pl.coalesce("relpath_old", "relpath"), plain=pl.coalesce("plain", "key0"))
    return found.select(MATCHED_SCHEMA.names())


def by_name(rows: pl.DataFrame, before: pl.DataFrame, changes: Changes) -> pl.DataFrame:
    """Give every input (MATCHED_SCHEMA, all of some plain keys) a key; those that moved get their place.

    before: BEFORE_SCHEMA of these plain keys. New inputs have no shard and no revision.
    """
    known, lone = rows.filter(pl.col("key").is_not_null()), rows.filter(pl.col("key").is_null())
    left = before.join(known, on="key", how="anti")
    clashes = pl.col("key0").is_duplicated() | pl.col("key0").is_in(before["plain"].implode())
    lone = lone.with_columns(clashes=clashes)
    clashing = lone.filter("clashes").drop("clashes")
    alone = lone.filter(~pl.col("clashes")).drop("clashes").with_columns(key="key0", twin=pl.lit(0, pl.Int32))
    moved = _moved(clashing, left)
    rest = clashing.join(moved, on="key0", how="anti")
    return pl.concat([known, alone, moved, _one_by_one(rest, left, before, changes)])


def _moved(clashing: pl.DataFrame, left: pl.DataFrame) -> pl.DataFrame:
    """Of inputs whose key is an older input's, those that alone have it, as does the older one, which is gone: they have moved.

    A whole corpus may have, under another mount. Returns them with the older place.
    """
    one = clashing.filter(~pl.col("key0").is_duplicated()).drop(PLACE)
    before = left.select(*PLACE, path_old="path", key0="plain").filter(~pl.col("key0").is_duplicated())
    both = one.join(before, on="key0", how="inner")
    gone = [
        old == new or not (is_url(old) or os.path.lexists(old))
        for old, new in both.select("path_old", "path").iter_rows()
    ]
    return both.filter(pl.Series(gone, dtype=pl.Boolean)).select(clashing.columns)


def _one_by_one(clashing: pl.DataFrame, left: pl.DataFrame, before: pl.DataFrame, changes: Changes) -> pl.DataFrame:
    """The same for inputs that share a name with others, which are told apart by twins."""
    if clashing.is_empty():
        return clashing
    settled: list[dict[str, Any]] = []
    by_plain: dict[str, list[dict[str, Any]]] = {}
    names = clashing["key0"].implode()
    for row in left.filter(pl.col("plain").is_in(names)).select("plain", "path", *PLACE).iter_rows(named=True):
        by_plain.setdefault(row["plain"], []).append(row)
    used: dict[str, set[int]] = {}
    for plain, twin in before.filter(pl.col("plain").is_in(names)).select("plain", "twin").iter_rows():
        used.setdefault(plain, set()).add(twin)
    order = clashing.sort("key0", "path", "audio_path", maintain_order=True).iter_rows(named=True)
    for key0, group in groupby(order, key=lambda row: row["key0"]):
        before_it = sorted(by_plain.get(key0, []), key=lambda row: row["twin"])
        taken = used.get(key0, set())
        for row in group:
            # The same picture with another sound has changed; a picture that is gone from its old place has moved.
            fits = [old for old in before_it if old["path"] == row["path"]] or [
                old for old in before_it if not is_url(old["path"]) and not os.path.lexists(old["path"])
            ]
            if fits:
                same = fits[0]
                before_it.remove(same)
                row.update({name: same[name] for name in PLACE})
            else:
                twin = next(number for number in range(len(taken) + 1) if number not in taken)
                taken.add(twin)
                changes.twins += twin > 0
                row.update(key=key_of(row["relpath"], (row["window_start"], row["window_end"]), twin), twin=twin)
            settled.append(row)
    return pl.DataFrame(settled, schema=clashing.schema)

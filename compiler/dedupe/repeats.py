"""`javisc dedupe`: exact and near duplicates of datasets, views and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from javisc.compiler.dedupe.near import default_workers, near_pairs
from javisc.manifests.dedupe import choose, drop, exact_pairs, group
from javisc.manifests.io import scan_many, write_table, write_view


@dataclass(frozen=True)
class Deduped:
    rows: int
    kept: int
    lines: Sequence[str]  #: what was found, in words


def dedupe(
    inputs: Sequence[str],
    out: str | None,
    *,
    near: str | None = None,
    match: str = "either",
    rule: str = "one",
    groups: str | None = None,
    workers: int | None = None,
    relative: bool = False,
) -> Deduped:
    """Group the rows of several datasets by what they repeat, and write a view of those that stay (or only count).

    `near` names the folder of fingerprints and turns near-duplicates on. Raises UserError for what cannot be read or
    written.
    """
    _, frame = scan_many(inputs)
    rows = int(frame.select(pl.len()).collect(engine="streaming").item())
    pairs = exact_pairs(frame)
    lines = [f"{len(pairs)} samples have the bytes of an earlier one"]
    if near is not None:
        found = near_pairs(frame, Path(near), match=match, workers=workers or default_workers())
        pairs = np.concatenate([pairs, found.pairs])
        lines.append(f"{len(found.pairs)} pairs are alike, of {found.compared} that share a fingerprint")
        if found.unread:
            lines.append(f"{found.unread} samples gave no fingerprint: run `javisc verify`")
    chosen = choose(frame, group(pairs), rule)
    dropped = len(chosen.dropped)
    lines.append(
        f"{chosen.groups} groups, {chosen.across} of them across splits; {dropped} samples are dropped by the rule `{rule}`"
    )
    if groups is not None:
        write_table(chosen.members, groups)
    if out is not None:
        made_by = {
            "command": "dedupe",
            "inputs": list(inputs),
            "rule": rule,
            "match": match if near is not None else "exact",
        }
        write_view(drop(frame, chosen), out, made_by=made_by, relative=relative)
    return Deduped(rows, rows - dropped, lines)

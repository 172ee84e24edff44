"""`javisc dedupe`: exact and near duplicates of datasets, views and tables."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from javisc.compiler.dedupe.near import default_workers, near_pairs
from javisc.manifests.dedupe import GROUP, choose, drop, exact_pairs, group, member_pairs
from javisc.manifests.errors import UserError
from javisc.manifests.io import scan_many, write_table, write_view
from javisc.manifests.kinds import MEDIA
from javisc.manifests.members import MemberReader
from javisc.manifests.merge import ROW
from javisc.manifests.outputs import check_table
from javisc.manifests.schema import DATASET_COLUMN

#: Keys that a line shows.
_SHOWN = 5


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
    if groups is not None:
        check_table(groups, "--groups", ("row", GROUP, DATASET_COLUMN, "key", "split", "kept"))
    _, frame = scan_many(inputs)
    rows = int(frame.select(pl.len()).collect(engine="streaming").item())
    sources = exact_pairs(frame)
    members, unsure = _same_members(frame, _unless_joined(member_pairs(frame), sources))
    pairs = np.concatenate([sources, members])
    lines = [f"{len(np.unique(pairs[:, 1]))} samples have the bytes of an earlier one, of its source or its members"]
    lines += unsure
    if near is not None:
        found = near_pairs(frame, Path(near), match=match, workers=workers or default_workers())
        pairs = np.concatenate([pairs, found.pairs])
        lines.append(f"{len(found.pairs)} pairs are alike, of {found.compared} that share a fingerprint")
        for what, poor in (("pictures", found.poor_pictures), ("sounds", found.poor_sounds)):
            if len(poor):
                lines.append(_poor(frame, what, poor))
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


def _poor(frame: pl.LazyFrame, what: str, rows: np.ndarray) -> str:
    named = pl.col(ROW).is_in(pl.Series(rows[:_SHOWN].astype(np.uint32)).implode())
    keys = frame.select("key").with_row_index(ROW).filter(named).collect(engine="streaming")["key"].to_list()
    more = ", …" if len(rows) > len(keys) else ""
    why = "flat" if what == "pictures" else "short or silent"
    return (
        f"{len(rows)} {what} are too {why} to be told from others by a fingerprint ({', '.join(keys)}{more}): only what is "
        "equal to the bit counts as their repeat"
    )


def _unless_joined(pairs: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """The pairs whose rows are not joined by other pairs already."""
    groups = group(joined)
    apart = [groups.get(a, -1 - a) != groups.get(b, -1 - b) for a, b in pairs.tolist()]
    return pairs[np.array(apart, bool)]


def _same_members(frame: pl.LazyFrame, pairs: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Of pairs with equal sizes and checksums those whose members are equal to the bit, and a line where they cannot be read."""
    if not len(pairs):
        return pairs, []
    rows = pl.Series(np.unique(pairs).astype(np.uint32))
    places = frame.select(
        DATASET_COLUMN, "key", "shard", *(f"{kind}_{part}" for kind in MEDIA for part in ("offset", "size"))
    )
    wanted = places.with_row_index(ROW).filter(pl.col(ROW).is_in(rows.implode())).collect(engine="streaming")
    digests: dict[int, bytes | None] = {}
    why = ""
    with MemberReader() as reader:
        for row in wanted.sort(DATASET_COLUMN, "shard").iter_rows(named=True):
            try:
                contents = [reader.read(row, kind) for kind in MEDIA]
            except UserError as error:
                digests[row[ROW]], why = None, str(error)
                continue
            parts = (b"none" if content is None else hashlib.sha256(content).digest() for content in contents)
            digests[row[ROW]] = hashlib.sha256(b"".join(parts)).digest()
    kept = [digests[a] is not None and digests[a] == digests[b] for a, b in pairs.tolist()]
    lost = sum(digests[a] is None or digests[b] is None for a, b in pairs.tolist())
    said = [f"{lost} samples have the checksums of an earlier one and could not be read, so they stay: {why}"] * bool(
        lost
    )
    return pairs[np.array(kept, bool)], said

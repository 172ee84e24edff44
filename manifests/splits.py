"""Train, validation and test by hash: a sample's split depends on its group and the seed alone, never on the other samples."""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import polars as pl

from javisc.manifests.errors import UserError
from javisc.manifests.io import ROW_GROUP, scan_many, write_view
from javisc.manifests.spool import in_slices, regrouped, spool


def parse_ratios(text: str, option: str = "--ratios") -> dict[str, float]:
    """`train=0.98,val=0.02` → {"train": 0.98, "val": 0.02}, in the order given, which decides too.

    Raises UserError unless the names are different, of letters, digits, - and _, and the shares are positive and sum to 1.
    """
    ratios: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z0-9_-]{1,64})\s*=\s*(\d{0,3}(?:\.\d{1,12})?)\s*", part)
        if match is None or not match[2] or not 0 < float(match[2]) <= 1:
            raise UserError(
                f"{option} {text!r}: {part.strip()!r} is not NAME=SHARE with a share in (0, 1]; write e.g. train=0.98,val=0.02"
            )
        if match[1] in ratios:
            raise UserError(f"{option} {text!r}: {match[1]} is there twice; name every split once")
        ratios[match[1]] = float(match[2])
    if not math.isclose(sum(ratios.values()), 1, abs_tol=1e-6):
        raise UserError(f"{option} {text!r}: the shares sum to {sum(ratios.values()):g}, they must sum to 1")
    return ratios


def split_of(group: str, ratios: Mapping[str, float], seed: int = 0) -> str:
    """The split of a group: BLAKE2b of seed and name as a number in [0, 1), cut at the cumulated shares in the order given.

    The same group lands in the same split whatever else is in the table, on every machine and version.
    """
    digest = hashlib.blake2b(f"{seed}/{group}".encode(), digest_size=8).digest()
    place = int.from_bytes(digest, "big") / 2**64
    cuts = list(accumulate(ratios.values()))
    return list(ratios)[min(bisect_right(cuts, place), len(cuts) - 1)]


def assign(frame: pl.LazyFrame, ratios: Mapping[str, float], *, by: str = "group", seed: int = 0) -> pl.LazyFrame:
    """`frame` with the column `split` filled by `split_of` the column `by`; rows without a value there go by their key.

    Rows of an older javisc have no group: the digest of their source is it, if they have that.

    By `group`, the default, whatever was cut out of one film lands in one split, as `javisc build --split` has it. Raises
    UserError if there is no such column.
    """
    names = frame.collect_schema().names()
    if by not in names:
        raise UserError(f"--by {by}: there is no such column; columns are {', '.join(names)}")

    def place(groups: pl.Series) -> pl.Series:
        return pl.Series([split_of(group, ratios, seed) for group in groups.to_list()], dtype=pl.String)

    source = [pl.col("source_sha256")] if by == "group" and "source_sha256" in names else []
    group = pl.coalesce(pl.col(by).cast(pl.String), *source, pl.col("key"))
    return frame.with_columns(group.map_batches(place, return_dtype=pl.String, is_elementwise=True).alias("split"))


def split_view(
    inputs: Sequence[str],
    out: str,
    ratios: Mapping[str, float],
    *,
    by: str = "group",
    seed: int = 0,
    relative: bool = False,
) -> None:
    """Write the rows of datasets, views and tables as the view `out`, with `split` as `assign` fills it. Raises UserError.

    Some rows at a time: polars reads on ahead of `assign`, up to the whole table.
    """
    _, frame = scan_many(inputs)
    schema = assign(frame, ratios, by=by, seed=seed).collect_schema()
    made = (assign(some.lazy(), ratios, by=by, seed=seed).collect() for some in in_slices(frame, ROW_GROUP))
    made_by = {"command": "split", "inputs": list(inputs), "ratios": dict(ratios), "by": by, "seed": seed}
    with tempfile.TemporaryDirectory(prefix="javisc-split-") as folder:
        table = spool(regrouped(made, ROW_GROUP), Path(folder), schema)
        write_view(table, out, made_by=made_by, relative=relative)


def unused(frame: pl.LazyFrame, ratios: Mapping[str, float]) -> list[str]:
    """A line for the splits that no row of a table fell into: its groups may be too few for their shares."""
    used = set(frame.select(pl.col("split").unique()).collect(engine="streaming")["split"])
    empty = [name for name in ratios if name not in used]
    if not empty:
        return []
    return [
        f"no sample fell into {', '.join(empty)}: splits are drawn by group (a film), and these are few; --seed draws others"
    ]

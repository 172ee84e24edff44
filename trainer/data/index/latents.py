"""The catalog of latents that lie in fields of their datasets, a field for each pass: `javisc encode` without `--out`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import polars as pl

from javisc.manifests.errors import UserError
from javisc.manifests.fields import check_name, field_shard, open_field
from javisc.manifests.io import Dataset, scan_table
from javisc.manifests.kinds import PARTS
from javisc.manifests.schema import DATASET_COLUMN, FIELD_LATENTS
from javisc.manifests.urls import join
from javisc.trainer.data.index.catalog import Catalog, Member, Split

MEMBER = "safetensors"
COLUMNS = {column.name: column.dtype for column in FIELD_LATENTS}


def field_name(name: str, turn: int) -> str:
    """The field of a pass over the clips: the first has the name itself, later ones NAME_p1, NAME_p2 …"""
    return check_name(name if turn == 0 else f"{name}_p{turn}")


@dataclass(frozen=True)
class LatentCatalog(Catalog):
    """A row for each clip and pass, with the keys, columns and order of a dataset of latents: so are its batches.

    `fields`: the field of each pass. `field_digests`: of shards, by pass, dataset and shard.
    """

    fields: tuple[str, ...] = ()
    field_digests: dict[tuple[int, int, int], str] = field(default_factory=dict)

    @classmethod
    def of_fields(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        name: str,
        where: Mapping[str, pl.Expr] | None = None,
        *,
        split: Split | None = None,
    ) -> Self:
        """Read the manifests of datasets or views whose latents are the fields `name`, see `Catalog.open`. Raises UserError."""
        check_name(name, "data.latents")
        frames = [frame for number, path in enumerate(paths) for frame in _passes(number, path, name)]
        whole = pl.concat(frames).sort("path", DATASET_COLUMN, "encoded_pass", "encoded_part", "key").drop("path")
        told = f"{', '.join(os.fspath(path) for path in paths)}, field {name}"
        made = cls._of(whole, told, where, split, ("key",))
        turns = made.numbers["encoded_pass"]
        fields = tuple(field_name(name, turn) for turn in range(int(turns.max()) + 1))
        digests = {}
        for turn, root in {*zip(turns.tolist(), made.dataset.tolist(), strict=True)}:
            shards = scan_table(join(open_field(made.roots[root], fields[turn]).path, "shards.parquet"))
            for shard, digest in shards.select("shard", "sha256").collect().iter_rows():
                digests[turn, root, int(shard)] = str(digest)
        return replace(made, fields=fields, field_digests=digests)

    def place(self, row: int, exts: Sequence[str]) -> tuple[str, list[Member], str | None]:
        """The path or URL of the field's shard, the latents in it if they are wanted, and the shard's digest."""
        _, members, _ = super().place(row, exts)
        turn, root, shard = (int(of[row]) for of in (self.numbers["encoded_pass"], self.dataset, self.numbers["shard"]))
        return (
            field_shard(self.roots[root], self.fields[turn], shard),
            members,
            self.field_digests.get((turn, root, shard)),
        )


def _passes(number: int, path: str | os.PathLike[str], name: str) -> Iterator[pl.LazyFrame]:
    """The latents of each pass over a dataset's clips. Raises UserError if there are none."""
    rows = Dataset.open(path).located()
    have, turn = set(rows.collect_schema()), 0
    if f"{MEMBER}_offset" in have:
        raise UserError(f"data.latents={name}: {path} is a dataset of latents itself: leave data.latents out")
    while f"{(of := field_name(name, turn))}_{MEMBER}_offset" in have:
        if missing := [column for column in COLUMNS if f"{of}_{column}" not in have]:
            raise UserError(
                f"data.latents={name}: the field {of} of {path} is not of `javisc encode`: it says no {missing[0]} of its members"
            )
        yield rows.filter(pl.col(f"{of}_{MEMBER}_size") > 0).select(
            "shard",
            "split",
            "audio_fps",
            DATASET_COLUMN,
            *(pl.col(f"{of}_{column}").alias(column) for column in COLUMNS),
            *(pl.col(f"{of}_{MEMBER}_{part}").alias(f"{MEMBER}_{part}") for part in PARTS),
            key=pl.format("{}_p{}", "key", pl.lit(turn)),
            encoded_pass=pl.lit(turn, pl.Int64),
            path=pl.lit(number, pl.Int64),
        )
        turn += 1
    if turn == 0:
        there = sorted(column.removesuffix(end) for column in have if column.endswith(end := f"_{MEMBER}_offset"))
        raise UserError(
            f"data.latents={name}: {path} has no such field (it has {', '.join(there) or 'none of latents'}): make it with "
            f"`javisc encode {path} --recipe …`, or make a view anew that was made before it"
        )

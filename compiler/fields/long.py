"""A table of annotations longer than memory: dealt to files by where in the dataset its rows belong, and joined file by file.

What is said of a row by itself is `table.shaped`'s, what a part is joined by is `table`'s, too: here is only what a part cannot
know of the others. Of every row and sample a hash of its name is held, of everything else a part at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from javisc.compiler.fields.sources import Source
from javisc.compiler.fields.table import (
    as_type,
    candidates,
    gathered,
    named,
    narrower,
    nothing,
    several,
    told,
)
from javisc.compiler.inputs.joining import joinable
from javisc.compiler.store.fields import OF
from javisc.manifests.partitions import Partitions

Number = TypeVar("Number", np.int64, np.uint64)
#: Samples of a part.
PART = 250_000


@dataclass
class Places:
    """Where samples are, by the hash of a name: hashes in order, the part of each sample, and the shards of each part."""

    hashes: NDArray[np.uint64]
    parts: NDArray[np.uint32]
    shards: list[tuple[int, int]]
    #: Hashes that several samples have.
    twice: NDArray[np.uint64] = field(init=False)

    def __post_init__(self) -> None:
        self.twice = np.unique(self.hashes[1:][self.hashes[1:] == self.hashes[:-1]])

    def has(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of some hashes, in order, samples have."""
        if not len(self.hashes):
            return np.zeros(len(hashes), np.bool_)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        found: NDArray[np.bool_] = self.hashes[at] == hashes
        return found

    def deal(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """(row, part) for every part that a row belongs to, in the order of the rows; a row of no sample is in any one."""
        order = np.argsort(hashes)
        ordered = hashes[order]
        first = np.searchsorted(self.hashes, ordered, "left")
        many = np.searchsorted(self.hashes, ordered, "right") - first if len(self.twice) else self._one(ordered, first)
        width = np.maximum(many, 1)
        row = np.repeat(np.arange(len(hashes)), width)
        step = np.arange(len(row)) - np.repeat(np.cumsum(width) - width, width)
        at = np.minimum(np.repeat(first, width) + step, max(len(self.parts) - 1, 0))
        any_one = (ordered[row] % np.uint64(len(self.shards))).astype(np.uint32)
        part = np.where(many[row] > 0, self.parts[at], any_one) if len(self.parts) else any_one
        pairs = distinct(order[row].astype(np.int64) * len(self.shards) + part)
        return pairs // len(self.shards), (pairs % len(self.shards)).astype(np.uint32)

    def _one(self, ordered: NDArray[np.uint64], first: NDArray[np.int64]) -> NDArray[np.int64]:
        if not len(self.hashes):
            return np.zeros(len(ordered), np.int64)
        return (self.hashes[np.minimum(first, len(self.hashes) - 1)] == ordered).astype(np.int64)


def places(manifest: pl.LazyFrame, by: str) -> Places:
    """Where the samples of a dataset are that have that name."""
    found = manifest.select(joinable(by).alias("on"), "shard").filter(pl.col("on").is_not_null())
    frame = found.select(pl.col("on").hash(), "shard").collect(engine="streaming")
    shards = manifest.select("shard").group_by("shard").len().sort("shard").collect(engine="streaming")
    number = ((shards["len"].cum_sum() - 1) // PART).to_numpy()
    number = np.unique(number, return_inverse=True)[1].astype(np.uint32)
    hashes = frame["on"].to_numpy()
    order = np.argsort(hashes)
    numbers = shards["shard"].to_numpy()
    part = number[np.searchsorted(numbers, frame["shard"].to_numpy())]
    bounds = [
        (int(numbers[number == one][0]), int(numbers[number == one][-1]))
        for one in range(int(number.max(initial=0)) + 1)
    ]
    return Places(hashes[order], part[order], bounds)


class LongTable:
    """The rows of a table as `table.joined` gives them, in parts in the order of their shards. Raises UserError."""

    def __init__(self, source: Source, manifest: pl.LazyFrame, by: str | None, folder: Path) -> None:
        self.source, self.manifest = source, manifest
        names = candidates(source.columns, by, source.path, source.option)
        self.by = names[0] if len(names) == 1 else max(names, key=self._matches)
        self.places = places(manifest, self.by)
        self.narrow: dict[str, list[pl.DataType]] = {}
        self._said: set[str] = set()
        self._example: list[str] = []
        self._height = 0
        hashes = self._deal(folder)
        told = distinct(hashes)
        known = told[self.places.has(told)]
        if not len(known):
            raise nothing(self._example, self._height, manifest, self.by, source.path, source.option)
        self.unused = len(told) - len(known)
        self.repeated = len(told) < len(hashes)
        self._one_sample_each(known)

    def _matches(self, name: str) -> int:
        on = joinable(name).alias("on")
        given = [batch.select(on).drop_nulls()["on"].hash().to_numpy() for batch in self.source.names()]
        held = distinct(np.concatenate(given))
        samples = self.manifest.select(on).drop_nulls().select(pl.col("on").hash()).collect(engine="streaming")["on"]
        found = np.sort(samples.to_numpy())
        at = np.minimum(np.searchsorted(held, found), max(len(held) - 1, 0))
        return int((held[at] == found).sum()) if len(held) else 0

    def _deal(self, folder: Path) -> NDArray[np.uint64]:
        """Deal the rows; returns the hashes of their names."""
        hashes: list[NDArray[np.uint64]] = []
        for batch in self.source.batches():
            rows = named(batch, self.by)
            if not hashes:
                self.dealt = Partitions(folder / "dealt", len(self.places.shards), rows.schema)
            self._height += batch.height
            self._example = self._example or rows_example(batch, self.by)
            for name in self.source.texts:
                self._narrow(name, rows[name])
            one = rows["on"].hash().to_numpy()
            hashes.append(one)
            row, part = self.places.deal(one)
            whole = len(row) == rows.height
            self.dealt.add(rows if whole else rows[row], pl.lit(pl.Series(part)))
        return np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)

    def _narrow(self, name: str, texts: pl.Series) -> None:
        if texts.count():
            types = narrower(texts)
            self.narrow[name] = [one for one in self.narrow.get(name, types) if one in types]

    def _one_sample_each(self, known: NDArray[np.uint64]) -> None:
        """Raise UserError if the table names a sample by what several have, where that names one."""
        if self.by not in ("id", "relpath"):
            return
        asked = pl.Series(np.intersect1d(self.places.twice, known, assume_unique=True))
        if not len(asked):
            return
        found = (
            self.manifest.select("key", joinable(self.by).alias("on")).drop_nulls("on")
            .filter(pl.col("on").hash().is_in(asked.implode())).collect(engine="streaming")
        )  # fmt: skip
        twice = found.filter(pl.col("on").is_duplicated())
        if twice.height:
            name = twice["on"][0]
            keys = twice.filter(pl.col("on") == name)["key"].head(2).to_list()
            raise several(name, self.by, keys, self.manifest, self.source.path, self.source.option)

    def __len__(self) -> int:
        return len(self.places.shards)

    def part(self, number: int) -> pl.DataFrame:
        """The samples of a part of which the table says something. Raises UserError where it contradicts itself."""
        rows = self.dealt.part(number)
        types = {name: types[0] for name, types in self.narrow.items() if types}
        rows = rows.with_columns(as_type(rows[name], dtype) for name, dtype in types.items())
        columns = [name for name in rows.columns if name not in ("on", "line")]
        if self.repeated and rows["on"].n_unique() < rows.height:
            rows = gathered(rows, self.by, self.source.path, self.source.option)
        first, last = self.places.shards[number]
        samples = self.manifest.filter(pl.col("shard").is_between(first, last)).select(
            "key", "shard", pl.col("source_sha256").alias(OF), joinable(self.by).alias("on")
        )
        made = samples.collect(engine="streaming").join(rows.drop("line"), on="on", how="inner", maintain_order="left")
        return told(made, columns)


def distinct(numbers: NDArray[Number]) -> NDArray[Number]:
    """Each number once, in order. numpy's unique makes a hash table of them first: many times slower."""
    ordered = np.sort(numbers)
    new = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return ordered[new]


def rows_example(batch: pl.DataFrame, by: str) -> list[str]:
    """The first name in a batch, if there is one."""
    found: list[str] = batch[by].drop_nulls().head(1).to_list()
    return found

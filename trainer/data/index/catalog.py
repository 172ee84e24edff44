"""What the sampler and the reader need to know of the samples: columns of one or several manifests, in memory as arrays.

Numbers lie in numpy arrays (about 100 bytes a row, so ten million rows take 1 GB); strings stay in polars' compact columns and
are looked up for the rows of a batch only.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from javisc.manifests import places
from javisc.manifests.errors import UserError
from javisc.manifests.fields import field_shard
from javisc.manifests.io import Dataset, scan_many, shard_path
from javisc.manifests.kinds import MEMBERS
from javisc.manifests.schema import DATASET_COLUMN

_NUMBERS = (
    "num_frames",
    "height",
    "width",
    "num_samples",
    "audio_fps",
    "shard",
    "encoded_pass",
    "clip_seed",
    *(column for kind in MEMBERS for column in kind.columns),
)
_log = logging.getLogger(__name__)
#: The strings of a row that a catalog holds unless it is told otherwise.
STRINGS = ("key", "text", "texts", "audio_text", "label", "unpaired_audio_path")
_REALS = ("fps", "offset_sec", "vstart_sec")


@dataclass(frozen=True)
class Member:
    """One member of a sample: its extension, and where its content lies in the shard, in bytes; `crc32` if known."""

    ext: str
    offset: int
    size: int
    crc32: int | None = None


@dataclass(frozen=True)
class Split:
    """The rows of a split of the manifest. Rows without any are training rows: `train` takes them, too, and says so with `say`.

    `option`: the setting that chose it.
    """

    name: str
    train: bool = False
    option: str = "the split"
    say: bool = False

    def rows(self, have: Sequence[str]) -> pl.Expr:
        """The condition, for a table of these columns."""
        if "split" not in have:
            return pl.lit(self.train)
        mine = pl.col("split") == self.name
        return mine | pl.col("split").is_null() if self.train else mine


def split_of(name: str | None, train: bool, rank: int) -> Split | None:
    """A split by the setting that chose it; None takes all rows."""
    option = "data.train_split" if train else "data.valid_split"
    return None if name is None else Split(name, train, option, say=rank == 0)


#: The option of a command that comes to a setting.
_OF_EVAL = {"data.valid_split": " (`javisc eval`: --split, or all)"}


def _why(whole: pl.LazyFrame, conditions: Mapping[str, pl.Expr], split: Split | None) -> str:
    """Which condition removed how many rows, and what to do."""

    def height(frame: pl.LazyFrame) -> int:
        return int(frame.select(pl.len()).collect(engine="streaming").item())

    frame, before = whole, height(whole)
    words = [f"of {before}: " + ("the dataset is empty" if not before else "")]
    for name, condition in conditions.items():
        frame = frame.filter(condition)
        after = height(frame)
        if after < before:
            words.append(f"{before - after} {'not in' if name.startswith('the split') else 'without'} {name}")
        before = after
    told = words[0] + ", ".join(words[1:])
    if split is None or f"the split {split.name!r}" not in words[-1]:
        return f"{told}; take a dataset whose rows have {'that' if words[1:] else 'some'}"
    if "split" not in whole.collect_schema().names():
        return f"{told}; the manifest has no splits: make some with `javisc split`, or set {split.option}=null"
    counts = whole.group_by("split").agg(pl.len()).sort("split", nulls_last=True).collect(engine="streaming")
    there = ", ".join(f"{name or 'without a split'} {count}" for name, count in counts.iter_rows())
    remedy = f"set {split.option}{_OF_EVAL.get(split.option, '')} to one that is there or to null"
    return f"{told} (there are {there}); {remedy}, or make it with `javisc split`"


def _tell_unsplit(frame: pl.LazyFrame, have: Sequence[str], split: Split) -> None:
    """Say in one line how many training rows have no split."""
    missing = pl.col("split").is_null().sum() if "split" in have else pl.len()
    none, every = frame.select(missing.alias("none"), pl.len()).collect(engine="streaming").row(0)
    if none:
        _log.warning("%d of the %d training rows have no split: they count as %r", none, every, split.name)


@dataclass(frozen=True)
class Rendition:
    """Smaller pictures of the rows, a field of their datasets: sizes, and places of members; -1 where there is none."""

    name: str
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    crc32: NDArray[np.int64]

    def fits(self, rows: NDArray[np.int64] | int, height: int, width: int) -> NDArray[np.bool_]:
        """Where a crop of height x width is taken from the pictures without making them larger."""
        fits: NDArray[np.bool_] = (self.offset[rows] >= 0) & (self.height[rows] >= height) & (self.width[rows] >= width)
        return fits


_PLACED = re.compile(r"([a-z][a-z0-9_]*)_mp4_offset")


def _renditions(rows: pl.DataFrame) -> tuple[Rendition, ...]:
    """The renditions that a manifest tells of, smaller ones first."""
    found = []
    for name in (match[1] for column in rows.columns if (match := _PLACED.fullmatch(column))):
        columns = [f"{name}_{part}" for part in ("height", "width", "mp4_offset", "mp4_size", "mp4_crc32")]
        if set(columns) <= set(rows.columns):
            arrays = [rows[column].cast(pl.Int64).fill_null(-1).to_numpy() for column in columns]
            found.append(Rendition(name, *arrays))
    pixels = {
        one.name: float((one.height * one.width)[one.offset >= 0].mean()) if (one.offset >= 0).any() else 0.0
        for one in found
    }
    return tuple(sorted(found, key=lambda one: pixels[one.name]))


@dataclass(frozen=True)
class Catalog:
    """The rows of one or several manifests, in the manifests' order. Absent whole numbers are -1, absent reals NaN."""

    numbers: dict[str, NDArray[np.int64]]
    reals: dict[str, NDArray[np.float64]]
    strings: pl.DataFrame
    dataset: NDArray[np.int32]
    roots: list[str]
    shard_digests: dict[tuple[int, int], str]
    renditions: tuple[Rendition, ...] = ()

    @classmethod
    def open(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        where: Mapping[str, pl.Expr] | None = None,
        *,
        split: Split | None = None,
        strings: Sequence[str] = STRINGS,
    ) -> Self:
        """Read the manifests of datasets, views or tables; keep rows of the split for which every expression of `where` is true.

        `where`: expressions by what they ask of a row ("a sound"). `strings`: the text columns that `labels` gives; `key` must be
        one. Raises UserError if a path is no dataset, or if no row is left: which condition removed how many, which splits are
        there.
        """
        _, whole = scan_many(paths)
        return cls._of(whole, ", ".join(os.fspath(path) for path in paths), where, split, strings)

    @classmethod
    def _of(
        cls,
        whole: pl.LazyFrame,
        told: str,
        where: Mapping[str, pl.Expr] | None,
        split: Split | None,
        strings: Sequence[str],
    ) -> Self:
        """The same of located rows. told: what they are of, for messages."""
        have = whole.collect_schema().names()
        conditions = dict(where or {})
        if split is not None:
            conditions[f"the split {split.name!r}"] = split.rows(have)
        frame = whole
        for condition in conditions.values():
            frame = frame.filter(condition)
        wanted = [name for name in (*_NUMBERS, *_REALS, *strings, DATASET_COLUMN) if name in have]
        beside = [match[1] for name in have if (match := _PLACED.fullmatch(name))]
        parts = ("height", "width", "mp4_offset", "mp4_size", "mp4_crc32")
        wanted += [column for name in beside for part in parts if (column := f"{name}_{part}") in have]
        rows = frame.select(wanted).collect(engine="streaming")
        if rows.height == 0:
            raise UserError(f"{told}: no sample is left {_why(whole, conditions, split)}")
        if split is not None and split.train and split.say:
            _tell_unsplit(frame, have, split)
        roots = sorted(rows[DATASET_COLUMN].unique().to_list())
        order = {root: number for number, root in enumerate(roots)}
        digests = {
            (number, int(shard)): str(digest)
            for number, root in enumerate(roots)
            for shard, digest in Dataset.open(places.check(root))
            .shards()
            .select("shard", "sha256")
            .collect()
            .iter_rows()
        }
        return cls(
            numbers={name: rows[name].cast(pl.Int64).fill_null(-1).to_numpy() for name in _NUMBERS if name in have},
            reals={
                name: rows[name].cast(pl.Float64).fill_null(float("nan")).to_numpy() for name in _REALS if name in have
            },
            strings=rows.select([name for name in strings if name in have]),
            dataset=rows[DATASET_COLUMN].replace_strict(order, return_dtype=pl.Int32).to_numpy(),
            roots=roots,
            shard_digests=digests,
            renditions=_renditions(rows),
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def place(self, row: int, exts: Sequence[str]) -> tuple[str, list[Member], str | None]:
        """The shard's path or URL, the wanted members that the sample has, and the shard's digest."""
        root, shard = int(self.dataset[row]), int(self.numbers["shard"][row])
        members = [
            Member(ext, self._number(row, ext, "offset"), self._number(row, ext, "size"), self._crc(row, ext))
            for ext in exts
            if f"{ext}_offset" in self.numbers and self.numbers[f"{ext}_offset"][row] >= 0
        ]
        return shard_path(self.roots[root], shard), members, self.shard_digests.get((root, shard))

    def rendition(self, row: int, height: int, width: int) -> Rendition | None:
        """The smallest pictures of a row that lose nothing in a crop of height x width; None: the row's own."""
        return next((one for one in self.renditions if bool(one.fits(row, height, width))), None)

    def drawn_from(self, rows: NDArray[np.int64], height: int, width: int) -> dict[str, int]:
        """How many of some rows a crop of height x width reads from which rendition, "base" for their own pictures."""
        left = np.asarray(rows, np.int64)
        found: dict[str, int] = {}
        for one in self.renditions:
            fits = one.fits(left, height, width)
            if fits.any():
                found[one.name] = int(fits.sum())
            left = left[~fits]
        return {**found, **({"base": len(left)} if len(left) else {})}

    def beside(self, row: int, rendition: Rendition) -> tuple[str, list[Member]]:
        """The tar of a rendition that holds a row's pictures, and their place in it."""
        crc = int(rendition.crc32[row])
        member = Member("mp4", int(rendition.offset[row]), int(rendition.size[row]), None if crc < 0 else crc)
        root, shard = self.roots[int(self.dataset[row])], int(self.numbers["shard"][row])
        return field_shard(root, rendition.name, shard), [member]

    def _number(self, row: int, ext: str, what: str) -> int:
        return int(self.numbers[f"{ext}_{what}"][row])

    def _crc(self, row: int, ext: str) -> int | None:
        value = self._number(row, ext, "crc32")
        return None if value < 0 else value

    def labels(self, rows: Sequence[int]) -> list[dict[str, object]]:
        """Keys and captions of some rows."""
        return self.strings[np.asarray(rows, dtype=np.int64)].to_dicts()

    def fingerprint(self) -> str:
        """A digest of all that decides an epoch's order: a resumed run must find the same rows in the same order."""
        digest = hashlib.sha256(str(len(self)).encode())
        for name in ("num_frames", "height", "width", "num_samples"):
            digest.update(np.ascontiguousarray(self.numbers[name]).data)
        keys = self.strings["key"]
        for first in range(0, len(keys), 1 << 20):
            digest.update("\0".join(key or "" for key in keys[first : first + (1 << 20)]).encode())
        return digest.hexdigest()

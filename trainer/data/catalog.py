"""What the sampler and the reader need to know of the samples: columns of one or several manifests, in memory as arrays.

Numbers lie in numpy arrays (about 100 bytes a row, so ten million rows take 1 GB); strings stay in polars' compact columns and
are looked up for the rows of a batch only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from javisc.manifests import places
from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset, scan_many, shard_path
from javisc.manifests.kinds import MEMBERS
from javisc.manifests.schema import DATASET_COLUMN
from javisc.trainer.data.reader import Member

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
#: The strings of a row that a catalog holds unless it is told otherwise.
STRINGS = ("key", "text", "texts", "audio_text", "label", "unpaired_audio_path")
_REALS = ("fps", "offset_sec", "vstart_sec")


@dataclass(frozen=True)
class Catalog:
    """The rows of one or several manifests, in the manifests' order. Absent whole numbers are -1, absent reals NaN."""

    numbers: dict[str, NDArray[np.int64]]
    reals: dict[str, NDArray[np.float64]]
    strings: pl.DataFrame
    dataset: NDArray[np.int32]
    roots: list[str]
    shard_digests: dict[tuple[int, int], str]

    @classmethod
    def open(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        where: Iterable[pl.Expr] = (),
        *,
        strings: Sequence[str] = STRINGS,
    ) -> Catalog:
        """Read the manifests of datasets, views or tables; keep rows for which every expression of `where` is true.

        `strings`: the text columns that `labels` gives; `key` must be one.
        Raises UserError if a path is no dataset or no row is left.
        """
        _, frame = scan_many(paths)
        for condition in where:
            frame = frame.filter(condition)
        have = frame.collect_schema().names()
        wanted = [name for name in (*_NUMBERS, *_REALS, *strings, DATASET_COLUMN) if name in have]
        rows = frame.select(wanted).collect(engine="streaming")
        if rows.height == 0:
            raise UserError(
                f"{', '.join(os.fspath(path) for path in paths)}: no sample is left; check the dataset and the split or filter"
            )
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

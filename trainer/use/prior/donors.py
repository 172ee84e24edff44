"""Whose sound each clip gets where sounds are exchanged: a shuffle of keys and captions, however many there are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import polars as pl

#: Bytes of a mark: enough that two of ten million are alike once in 10^15 datasets.
_MARK = 12
_BATCH = 100_000


def deranged(clips: Iterable[tuple[str, str]], seed: int) -> np.ndarray:
    """For each (key, caption) the place of a clip with another caption, by a keyed shuffle [n] int64: -1 where there is none.

    Clips are laid in a circle, those of one caption side by side, captions and clips in the order of hashes; each takes from
    the one that is as far ahead as the largest caption has clips. So it is a permutation, unless one caption has more than half
    of all clips; then what is not of that caption is used several times. Of a clip its marks alone are held, 24 bytes.
    """
    marks = pl.concat(list(_marks(clips, seed)), rechunk=True).with_row_index("clip")
    order = marks.sort("caption", "key")
    counts = order.group_by("caption", maintain_order=True).len()
    if counts.height < 2:
        return np.full(marks.height, -1, np.int64)
    largest = counts.row(int(counts["len"].arg_max() or 0), named=True)
    circle = order["clip"].to_numpy().astype(np.int64)
    donors = np.empty(len(circle), np.int64)
    donors[circle] = np.roll(circle, -int(largest["len"]))
    if 2 * largest["len"] > len(circle):
        of_it = order.select(pl.col("caption") == pl.lit(largest["caption"])).to_series().to_numpy()
        many, others = circle[of_it], circle[~of_it]
        donors[many] = others[np.arange(len(many)) % len(others)]
        donors[others] = many[np.arange(len(others)) % len(many)]
    return donors


def _marks(clips: Iterable[tuple[str, str]], seed: int) -> Iterator[pl.DataFrame]:
    """The hashes by which captions and clips stand in the circle."""

    def mark(what: str, text: str) -> bytes:
        return hashlib.sha256(f"other\0{seed}\0{what}\0{text}".encode()).digest()[:_MARK]

    schema = pl.Schema({"caption": pl.Binary(), "key": pl.Binary()})
    yield pl.DataFrame(schema=schema)
    coming = iter(clips)
    while some := list(islice(coming, _BATCH)):
        plain = [" ".join(caption.casefold().split()) for _, caption in some]
        rows = {"caption": [mark("caption", text) for text in plain], "key": [mark("clip", key) for key, _ in some]}
        yield pl.DataFrame(rows, schema=schema)

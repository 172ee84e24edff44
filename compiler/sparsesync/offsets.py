"""Fixed evaluation offsets: columns that a build's merge gives its manifest, so that another grid costs no new clips."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.inputs.corpora import corpus_of
from javisc.compiler.inputs.identity import without_extension
from javisc.compiler.sparsesync.rules import Grid
from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store
from javisc.manifests.errors import UserError
from javisc.manifests.io import ROW_GROUP
from javisc.manifests.schema import MANIFEST_SCHEMA
from javisc.manifests.spool import regrouped, spool

#: The splits that are evaluated.
EVALUATED = ("val", "test")
_COLUMNS = ("offset_sec", "vstart_sec")
#: How a dataset's offsets were chosen: every later merge of it chooses them so, too.
SAVED = (BUILD, "offsets.json")


@dataclass(frozen=True)
class OffsetsReport:
    """How many clips got an offset of the lists, a drawn one, or none because they are too short; entries that name no clip."""

    listed: int
    drawn: int
    short: int
    unused: int

    def line(self) -> str:
        said = f"evaluation offsets: {self.listed} from the lists, {self.drawn} drawn"
        said += f", {self.short} clips are too short for theirs" * bool(self.short)
        return said + f"; {self.unused} list entries name no clip of this dataset" * bool(self.unused)


def clip_namer(corpus: str | None) -> Callable[[str], str]:
    """What turns a sample's relpath into its clip's name in SparseSync's lists. corpus: None for a plain folder."""
    if corpus is None:
        return without_extension
    known = corpus_of(corpus, "sync")
    prefix = f"{known.folders[0]}/"

    def name(relpath: str) -> str:
        inside = relpath.removeprefix(prefix)
        return known.identity(inside) or without_extension(inside)

    return name


@dataclass(frozen=True)
class Offsets:
    """How offset_sec and vstart_sec are chosen.

    grid: what is drawn from. corpus: whose names the clips have, None for a plain folder. fixed: see rules.read_fixed_offsets;
    what it names gets its offset, whatever its split. Other clips of the evaluated splits get drawn ones, all others none.
    """

    grid: Grid
    corpus: str | None = None
    fixed: pl.DataFrame | None = None

    def choose(self, manifest: pl.LazyFrame, folder: Path) -> tuple[pl.LazyFrame, OffsetsReport]:
        """The manifest with both columns, chosen anew for every clip, some rows at a time. folder: scratch for it."""
        clip_of = clip_namer(self.corpus)
        schema = pl.Schema({"clip": pl.String, **dict.fromkeys(_COLUMNS, pl.Float64)})
        fixed = (pl.DataFrame(schema=schema) if self.fixed is None else self.fixed).with_row_index("place")
        import numpy as np  # every build imports this module, few come here

        used = np.zeros(fixed.height, bool)
        listed = drawn = short = 0

        def chosen(frame: pl.DataFrame) -> pl.DataFrame:
            nonlocal listed, drawn, short
            clips = pl.DataFrame(
                {"clip": [clip_of(relpath) for relpath in frame["relpath"]]}, schema={"clip": pl.String}
            )
            said = clips.join(fixed, on="clip", how="left", maintain_order="left")
            pairs: list[tuple[float, float] | None] = []
            for row, split, seconds in zip(said.iter_rows(), frame["split"], frame["duration"], strict=True):
                clip, place, *values = row
                pair = None if place is None else (values[0], values[1])
                if pair is not None:
                    used[place] = True
                    listed += 1
                elif split in EVALUATED:
                    pair = self.grid.draw(clip, seconds)
                    drawn, short = drawn + (pair is not None), short + (pair is None)
                pairs.append(pair)
            return frame.with_columns(
                pl.Series(name, [None if pair is None else pair[number] for pair in pairs], dtype=MANIFEST_SCHEMA[name])
                for number, name in enumerate(_COLUMNS)
            )

        frames = map(chosen, manifest.collect_batches(chunk_size=ROW_GROUP, maintain_order=True))
        table = spool(regrouped(frames, ROW_GROUP), folder / "offsets", manifest.collect_schema())
        return table, OffsetsReport(listed, drawn, short, int((~used).sum()))

    def save(self, store: Store) -> None:
        """Keep them beside the plan. Raises UserError."""
        told = {
            "corpus": self.corpus,
            "grid": [self.grid.size, self.grid.largest, self.grid.crop],
            "fixed": None if self.fixed is None else [list(row) for row in self.fixed.iter_rows()],
        }
        store.write((json.dumps(told) + "\n").encode(), *SAVED)


def saved_offsets(store: Store) -> Offsets | None:
    """The offsets that a dataset was last given; None if it never was. Raises UserError where they are damaged."""
    if not store.exists(*SAVED):
        return None
    try:
        told: dict[str, Any] = json.loads(store.read(*SAVED))
        rows = None if told["fixed"] is None else [(str(clip), float(a), float(b)) for clip, a, b in told["fixed"]]
        schema = {"clip": pl.String, **dict.fromkeys(_COLUMNS, pl.Float64)}
        fixed = None if rows is None else pl.DataFrame(rows, schema=schema, orient="row")
        size, largest, crop = told["grid"]
        return Offsets(Grid(int(size), float(largest), float(crop)), told["corpus"], fixed)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{store.path(*SAVED)} is damaged ({error}): run the `javisc build sync` command again, which writes it"
        ) from error

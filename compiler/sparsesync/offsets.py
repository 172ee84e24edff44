"""Giving a built dataset its fixed evaluation offsets: columns of the manifest, so that another grid costs no new build."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from javisc.compiler.sparsesync.rules import Grid
from javisc.compiler.store.files import Store
from javisc.manifests.io import write_table
from javisc.manifests.schema import MANIFEST_SCHEMA

#: The splits that are evaluated.
EVALUATED = ("val", "test")


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


def set_offsets(out: str, clip_of: Callable[[str], str], fixed: pl.DataFrame | None, grid: Grid) -> OffsetsReport:
    """Fill offset_sec and vstart_sec of `out`/manifest.parquet, anew for every clip.

    clip_of: a sample's relpath → its name in the lists. fixed: see sync.read_fixed_offsets; what they name gets theirs,
    whatever its split. Other clips of the evaluated splits get drawn ones (sync.Grid.draw), all others none.
    """
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(out, Path(scratch))
        manifest = pl.read_parquet(store.fetch("manifest.parquet"))
        listed = {} if fixed is None else {clip: (offset, start) for clip, offset, start in fixed.iter_rows()}
        pairs: list[tuple[float, float] | None] = []
        named, drawn, short = set(), 0, 0
        for relpath, split, seconds in manifest.select("relpath", "split", "duration").iter_rows():
            clip = clip_of(relpath)
            pair = listed.get(clip)
            if pair is not None:
                named.add(clip)
            elif split in EVALUATED:
                pair = grid.draw(clip, seconds)
                drawn, short = drawn + (pair is not None), short + (pair is None)
            pairs.append(pair)
        columns = {
            name: pl.Series([None if pair is None else pair[place] for pair in pairs], dtype=MANIFEST_SCHEMA[name])
            for place, name in enumerate(("offset_sec", "vstart_sec"))
        }
        with store.publish("manifest.parquet") as path:
            write_table(manifest.with_columns(**columns), path)
    return OffsetsReport(sum(pair is not None for pair in pairs) - drawn, drawn, short, len(listed) - len(named))

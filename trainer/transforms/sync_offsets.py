"""The fixed offsets of evaluation: the published CSV files, so that every run sees the same crops."""

from __future__ import annotations

import csv
from pathlib import Path

from javisc.manifests.errors import UserError
from javisc.trainer.transforms.sync_chain import FixedOffset
from javisc.trainer.transforms.sync_window import ClassGrid

#: LRS3 has 58,000 rows in all; a hundred times that is still no dataset of offsets but a mistake.
MAX_ROWS = 10_000_000
_HEADER = ["path", "offset_sec", "vstart_sec"]


def file_name(split: str, grid: ClassGrid, crop_len_sec: float) -> str:
    """The name of a split's file, e.g. test_size21_crop5_min-2.00_max2.00.csv."""
    values = grid.values
    return f"{split}_size{grid.classes}_crop{crop_len_sec:g}_min{values[0]:.2f}_max{values[-1]:.2f}.csv"


def read(folder: Path, grid: ClassGrid, crop_len_sec: float) -> dict[str, FixedOffset]:
    """Clip id → its fixed offset, from the files of all splits of this grid and crop length in the folder.

    Raises UserError if there are none, if one is malformed, or if a clip occurs twice.
    """
    found: dict[str, FixedOffset] = {}
    pattern = file_name("*", grid, crop_len_sec)
    paths = sorted(folder.glob(pattern))
    if not paths:
        raise UserError(f"no {pattern} in {folder}: give the folder of the fixed offsets for this grid and crop length")
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            if next(rows, None) != _HEADER:
                raise UserError(f"{path} does not start with {','.join(_HEADER)}: it is no file of fixed offsets")
            for number, row in enumerate(rows, 2):
                try:
                    clip, offset, start = row
                    fixed = FixedOffset(float(offset), float(start))
                except ValueError as error:
                    raise UserError(f"{path} line {number}: {row!r} is no clip with two numbers") from error
                if clip in found:
                    raise UserError(
                        f"{path} line {number}: the clip {clip!r} occurs twice in {pattern}; remove one row"
                    )
                if len(found) >= MAX_ROWS:
                    raise UserError(f"{path}: more than {MAX_ROWS} rows")
                found[clip] = fixed
    return found

"""SparseSync's rules about clips: who is in which split, and which crop and offset an evaluation uses."""

from __future__ import annotations

import csv
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from javisc.compiler.inputs.annotations import Problems, Table
from javisc.compiler.inputs.sync_lists import SEED
from javisc.manifests.errors import UserError

if TYPE_CHECKING:
    import numpy as np

#: Clips below this cannot hold every offset of the largest grid: 7 s and 2 s, 8 s and 1 s.
MIN_SECONDS = 9.0
#: Of a clip only so much is used.
MAX_SECONDS = 10.0
_OFFSETS = ("path", "offset_sec", "vstart_sec")
#: The columns of the list of VGGSound-Sparse clean, which has clips that are not in sync, too.
_CLEAN = ("video_id", "offset_sec", "vstart_sec", "is_sync")


@dataclass(frozen=True)
class Grid:
    """The classes of an offset classifier: `size` offsets from -`largest` to +`largest` seconds, for crops of `crop` seconds."""

    size: int = 21
    largest: float = 2.0
    crop: float = 5.0

    def __post_init__(self) -> None:
        if not (3 <= self.size <= 1001 and 0 < self.largest <= 60 and 0 < self.crop <= 60):
            raise UserError(
                f"--offset-grid {self.size}:{self.largest:g}:{self.crop:g}: 3 to 1001 classes, and above 0 to 60 seconds of "
                "largest offset and of crop are allowed; for SparseSync's give 21:2:5"
            )

    @property
    def values(self) -> np.ndarray:
        """The offsets, float32 from a grid computed in float64."""
        import numpy as np  # no other build needs it

        return np.linspace(-self.largest, self.largest, self.size).astype(np.float32)

    def file_name(self, split: str) -> str:
        """The name of SparseSync's list of fixed offsets for this grid; its validation split is called `valid`."""
        low, high = self.values[0], self.values[-1]
        return f"{split}_size{self.size}_crop{self.crop:g}_min{low:.2f}_max{high:.2f}.csv"

    def draw(self, clip: str, seconds: float, fps: int = 25, seed: int = SEED + 1) -> tuple[float, float] | None:
        """A fixed (offset, start of the picture's crop), both rounded to 0.01 s, for a clip of `seconds`; None if too short.

        SparseSync's rule: an offset of the grid, all alike, then a start of which both crops fit, on a whole frame; half
        precision. Its numbers came from one generator shared by eight workers and cannot be had again; here each clip has its
        own generator, so that neither order nor company of clips matters.
        """
        generator = random.Random(f"{seed}:{clip}")
        offset = round(float(generator.choice(self.values.tolist())), 2)
        frames = int(fps * min(MAX_SECONDS, seconds))
        last = (frames - int(self.crop * fps)) / fps
        low, high = max(0.0, -offset), min(last, last - offset)
        if high < low:
            return None
        start = int(generator.uniform(low, high) * fps) / fps
        return _half(offset), _half(start)


def offset_grid(text: str) -> Grid:
    """SparseSync's grid of offsets from "21:2:5": classes, largest offset and crop in seconds. Raises UserError."""
    match = re.fullmatch(r"(\d{1,4}):(\d{0,3}(?:\.\d{1,6})?):(\d{0,3}(?:\.\d{1,6})?)", text.strip())
    if match is None or not match[2] or not match[3]:
        raise UserError(f"--offset-grid {text!r}: CLASSES:LARGEST:CROP is allowed, as 21:2:5 or 3:1:5")
    return Grid(int(match[1]), float(match[2]), float(match[3]))


def _half(value: float) -> float:
    import numpy as np

    return round(float(np.float16(value)), 2)


def read_fixed_offsets(paths: Sequence[Path]) -> pl.DataFrame:
    """Clip, offset_sec and vstart_sec of the published lists (columns path, offset_sec, vstart_sec), `.mp4` in names allowed.

    Of VGGSound-Sparse clean's (video_id, offset_sec, vstart_sec, is_sync) the rows count whose is_sync is 1.

    A clip may stand in several lists with the same values, as Synchformer allows. Raises UserError for a missing file or column,
    a value that is no offset, and a clip with two offsets or starts.
    """
    found: dict[str, tuple[float, float]] = {}
    for path in paths:
        problems = Problems()
        table, clean = Table((path.name,), columns=_OFFSETS), Table((path.name,), columns=_CLEAN)
        picked = clean.find(path.parent) is not None and clean.wrong(path) is None
        for line, (clip, *values) in (clean if picked else table).rows(path.parent, problems):
            if picked and values.pop() != "1":
                continue
            clip, where = clip.removesuffix(".mp4"), f"--fixed-offsets {path}: line {line}"
            try:
                offset, start = map(float, values)
            except ValueError:
                offset = start = math.nan
            if not (abs(offset) <= 60 and 0 <= start <= 86400):
                raise UserError(f"{where}: {', '.join(values)[:80]!r} is no offset and start in seconds")
            if found.setdefault(clip, (offset, start)) != (offset, start):
                raise UserError(
                    f"{where}: {clip[:80]!r} has another offset or start than before; give lists of one grid"
                )
        if problems.count:
            _, line, message = problems.rows[0]
            raise UserError(f"--fixed-offsets {path}: line {line}: {message}")
    return pl.DataFrame(
        [(clip, *values) for clip, values in found.items()],
        schema={"clip": pl.String, "offset_sec": pl.Float64, "vstart_sec": pl.Float64},
        orient="row",
    )


def write_fixed_offsets(path: Path, offsets: Mapping[str, tuple[float, float]]) -> None:
    """Write a list in SparseSync's form, sorted by clip."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_OFFSETS)
        writer.writerows((clip, *offsets[clip]) for clip in sorted(offsets))

"""Masklets as inputs of a build: objects cut out of videos, each a clip of its content, a clip of its mask, and their geometry.

The raw files are those of JavisDiT's get_masklets: V_masklet_N.mp4 (the object's box, squashed to at most 256 x 256),
V_mask_N.mp4 (the same box, white where the object is) and V_meta_N.json (where the box lies in every frame). The two videos
become two samples; the geometry travels as the content's `label`, so it lies in KEY.json beside the content.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.inputs.found import SCAN_SCHEMA, ScanReport
from javisc.compiler.inputs.local import VIDEO_SUFFIXES, scan
from javisc.compiler.inputs.table import INPUT_SCHEMA
from javisc.compiler.recipe import PRESETS
from javisc.manifests.rows import MAX_FIELD, open_bytes
from javisc.manifests.spool import spool

#: Objects are small and a mask's edge matters; half a dozen frames may be a whole object. They have no sound.
RECIPE = PRESETS["jav"].replace(name="masklets", tune=None, allow_silent=True, min_frames=5, crf=10.0)
MAX_FRAMES = 100_000
MAX_SIDE = 1 << 16
_NAME = re.compile(r"(?s)(?P<video>.+)_(?P<part>masklet|mask)_(?P<number>\d+)\.[^./]+")


@dataclass(frozen=True)
class Geometry:
    """Where an object's box (x, y, w, h) lies in each frame of a video of (height, width), in pixels; None: out of sight."""

    height: int
    width: int
    boxes: tuple[tuple[float, float, float, float] | None, ...]

    def to_json(self) -> str:
        """What `read_geometry` reads."""
        return json.dumps({"height": self.height, "width": self.width, "boxes": self.boxes}, separators=(",", ":"))


def part_of(relpath: str) -> tuple[str, str] | None:
    """("masklet" or "mask", the name that both parts of an object share), or None for other files."""
    found = _NAME.fullmatch(relpath)
    return None if found is None else (found["part"], f"{found['video']}_{found['number']}")


def read_geometry(text: str | bytes) -> Geometry:
    """A geometry from our JSON or get_masklets' own. Raises ValueError with the reason if it is none."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")
    if "crop_bbox" in found:
        boxes, visible = found["crop_bbox"], found.get("visible")
        height, width = found.get("video_frame_height"), found.get("video_frame_width")
        if not isinstance(visible, list) or not isinstance(boxes, list) or len(visible) != len(boxes):
            raise ValueError("`visible` and `crop_bbox` are not lists of one length")
        boxes = [box if seen else None for box, seen in zip(boxes, visible, strict=True)]
    else:
        boxes, height, width = found.get("boxes"), found.get("height"), found.get("width")
    if not isinstance(boxes, list) or not 1 <= len(boxes) <= MAX_FRAMES:
        raise ValueError(f"it has no list of 1 to {MAX_FRAMES} boxes")
    return Geometry(_side(height), _side(width), tuple(None if box is None else _box(box) for box in boxes))


def _side(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
        raise ValueError(f"the frame's side is {str(value)[:80]}")
    return value


def _box(box: Any) -> tuple[float, float, float, float]:
    usable = isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)
    if not usable or not all(abs(v) <= MAX_SIDE for v in box) or min(box[2:]) <= 0:
        raise ValueError(f"{str(box)[:80]} is no box (x, y, w, h)")
    x, y, w, h = box
    return x, y, w, h


def from_masklets(
    raw: Sequence[str], *, out: str | None = None, say: Callable[[str], None] = lambda line: None
) -> Callable[[Path], pl.LazyFrame]:
    """A function that scans `raw` when `build` asks for its inputs: a row per content and mask; no geometry, no sample.

    `out`: see scan. `say` hears what was found. Raises UserError if `raw` cannot be scanned.
    """

    def inputs(folder: Path) -> pl.LazyFrame:
        report = ScanReport()
        frames = (_labelled(frame) for frame in scan(raw, VIDEO_SUFFIXES, out=out, report=report, scratch=folder))
        found = spool(frames, folder / "scan", SCAN_SCHEMA)
        for line in report.lines():
            say(line)
        return found.select(INPUT_SCHEMA.names())

    return inputs


def _labelled(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame(list(_rows(frame)), schema=SCAN_SCHEMA)


def _rows(frame: pl.DataFrame) -> Iterator[dict[str, Any]]:
    for row in frame.iter_rows(named=True):
        part = part_of(row["relpath"])
        if row["refused"] is None and part is None:
            row |= {"refused": "filtered", "refused_message": "its name is neither V_masklet_N nor V_mask_N"}
        elif row["refused"] is None and part is not None and part[0] == "masklet":
            path = row["path"] if row["raw_path"] is None else os.fsdecode(row["raw_path"])
            try:
                row["label"] = _beside(path).to_json()
            except (OSError, ValueError, ImportError) as error:
                message = f"{Path(_meta(path)).name} beside it is no geometry: {error}"
                row |= {"refused": "filtered", "refused_message": message[:500]}
        yield row


def _meta(path: str) -> str:
    folder, slash, name = path.rpartition("/")
    found = _NAME.fullmatch(name)
    assert found is not None, path
    return f"{folder}{slash}{found['video']}_meta_{found['number']}.json"


def _beside(path: str) -> Geometry:
    with open_bytes(_meta(path)) as stream:
        raw = stream.read(MAX_FIELD + 1)
    if len(raw) > MAX_FIELD:
        raise ValueError(f"it has more than {MAX_FIELD} bytes")
    return read_geometry(raw)

"""SA-V's annotations: which objects a video has, where each is in which of its frames, and which of them are kept."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from javisc.compiler.media.clock import nearest_tick
from javisc.compiler.media.open import open_source
from javisc.compiler.reasons import Rejected
from javisc.trainer.use.prior.objects.rle import decode

#: A longer file is no annotation of one video, and more frames or objects are none of one.
MAX_BYTES, MAX_FRAMES, MAX_OBJECTS = 256 << 20, 100_000, 1000
#: Rules of JavisDiT's get_masklets: what is this much smaller than the largest, or below 32 x 32 pixels, is left out, and videos
#: with so many objects are.
LEAST_SHARE, SMALL, TOO_MANY = 0.33, 32 * 32, 10
#: SA-V's annotations are made at this rate; where a file could be of several, it decides.
USUAL = 6.0


@dataclass(frozen=True)
class Annotated:
    """An object: where it stands in the file (kind, number), the source frames it was annotated in, and its masks there."""

    kind: str
    number: int
    frames: list[int]
    masks: list[dict[str, Any]]


def beside(video: str, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """The annotation files beside a video that there are, as (kind, path)."""
    base = video.rpartition(".")[0]
    named = [(kind, f"{base}_{kind}.json") for kind in kinds]
    return [(kind, path) for kind, path in named if Path(path).is_file()]


def read(kind: str, raw: bytes) -> list[Annotated]:
    """The objects of an annotation file. Raises Rejected if it is none."""
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Rejected("filtered", f"its {kind} annotation is no JSON: {error}") from error
    rows = found.get("masklet") if isinstance(found, dict) else None
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_FRAMES or not all(isinstance(row, list) for row in rows):
        raise Rejected("filtered", f"its {kind} annotation has no list `masklet` of frames")
    if len({len(row) for row in rows}) != 1 or not len(rows[0]) <= MAX_OBJECTS:
        raise Rejected("filtered", f"its {kind} annotation has another number of objects from frame to frame")
    step = stride(found.get("video_frame_count"), len(rows), found.get("video_duration"))
    frames = [round(number * step) for number in range(len(rows))]
    return [Annotated(kind, number, frames, [row[number] for row in rows]) for number in range(len(rows[0]))]


def stride(frames: Any, annotated: int, seconds: Any = None) -> float:
    """Source frames from one annotation to the next. Every stride with ceil(frames / stride) = annotated explains a file; of
    those the one whose rate is nearest to USUAL, where the duration tells rates."""
    if annotated == 1:
        return 1.0
    if type(frames) not in (int, float) or not math.isfinite(frames) or frames < annotated:
        return 1.0  # nothing says otherwise: every frame
    total = int(frames)
    least = -(-total // annotated)
    fits = [step for step in range(least, total + 1) if -(-total // step) == annotated][:1000]
    if not fits:
        return total / annotated  # another rate than a whole number of frames
    if type(seconds) in (int, float) and 0 < seconds < math.inf:
        rate = total / seconds
        return float(min(fits, key=lambda step: (abs(rate / step - USUAL), step)))
    return float(fits[0])


def kept(objects: Sequence[Annotated]) -> list[Annotated]:
    """The objects that the rules keep. Raises Rejected where none is left, or too many are."""
    try:
        areas = [mean_area(each) for each in objects]
    except ValueError as error:
        raise Rejected("filtered", f"its annotation holds a mask that is none: {error}") from error
    most = max(areas, default=0.0)
    left = [each for each, area in zip(objects, areas, strict=True) if area >= SMALL and area >= LEAST_SHARE * most]
    if len(left) >= TOO_MANY:
        raise Rejected("filtered", f"{len(left)} objects of like size, fewer than {TOO_MANY} are wanted")
    if not left:
        raise Rejected("filtered", "no object in it is large enough" if objects else "its annotation holds no object")
    return left


def mean_area(each: Annotated) -> float:
    """Pixels of an object where it is visible, on average. Raises ValueError for a mask that is none."""
    areas = [int(decode(mask).sum()) for mask in each.masks]
    sizes = {tuple(mask["size"]) for mask in each.masks}
    if len(sizes) != 1:
        raise ValueError("masks of one object have several sizes")
    seen = [area for area in areas if area]
    return sum(seen) / len(seen) if seen else 0.0


def ticks_of(video: Path, rate: Fraction) -> list[int]:
    """The tick of the compiled clock at which each of a video's frames appears, in the order of time. Raises Rejected."""
    with open_source(video) as source:
        stream = source.video()
        if stream is None or stream.time_base is None:
            raise Rejected("no_video")
        times = sorted(
            packet.pts * stream.time_base
            for packet in source.container.demux(stream)
            if packet.size and packet.pts is not None
        )
    if not times:
        raise Rejected("timestamps", "no picture says when it is shown")
    return [nearest_tick(time - times[0], rate) for time in times]

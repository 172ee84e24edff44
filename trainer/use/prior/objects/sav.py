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
#: Rates of pictures that differ by less are the same one.
SAME = 0.02


@dataclass(frozen=True)
class Annotated:
    """An object: where it stands in the file (kind, number), the source frames it was annotated in, and its masks there. total,
    rate: how many frames the annotated video had, and how many a second; None where the file does not say."""

    kind: str
    number: int
    frames: list[int]
    masks: list[dict[str, Any]]
    total: int | None = None
    rate: float | None = None


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
    count, seconds = found.get("video_frame_count"), found.get("video_duration")
    step = stride(count, len(rows), seconds)
    frames = [round(number * step) for number in range(len(rows))]
    total = int(count) if _told(count) else None
    rate = count / seconds if _told(count) and _told(seconds) else None
    return [
        Annotated(kind, number, frames, [row[number] for row in rows], total, rate) for number in range(len(rows[0]))
    ]


def _told(value: Any) -> bool:
    """Whether a number of the file says something."""
    return type(value) in (int, float) and 0 < value < math.inf


def stride(frames: Any, annotated: int, seconds: Any = None) -> float:
    """Source frames from one annotation to the next. Every stride with ceil(frames / stride) = annotated explains a file; of
    those the one whose rate is nearest to USUAL, where the duration tells rates."""
    if annotated == 1:
        return 1.0
    if not _told(frames) or frames < annotated:
        return 1.0  # nothing says otherwise: every frame
    total = int(frames)
    least = -(-total // annotated)
    fits = [step for step in range(least, total + 1) if -(-total // step) == annotated][:1000]
    if not fits:
        return total / annotated  # another rate than a whole number of frames
    if _told(seconds):
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


def times_of(video: Path) -> list[Fraction]:
    """When each of a video's frames is shown, in order, seconds from the first. Raises Rejected."""
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
    return [time - times[0] for time in times]


def placed(each: Annotated, times: Sequence[Fraction], rate: Fraction) -> dict[int, dict[str, Any]]:
    """An object's masks by tick of the compiled clock: each where its frame is shown, at `times` seconds. Those past the end of
    the video are none. A video that was given another rate since it was annotated has other frames: its masks go by the time."""
    own = (len(times) - 1) / times[-1] if times[-1] else None
    if each.rate and own and each.total != len(times) and abs(each.rate / own - 1) > SAME:
        seconds = [Fraction(frame / each.rate) for frame in each.frames]
        at = [nearest_tick(time, rate) for time in seconds if time < times[-1] + 1 / own]
    else:
        at = [nearest_tick(times[frame], rate) for frame in each.frames if frame < len(times)]
    return dict(zip(at, each.masks, strict=False))

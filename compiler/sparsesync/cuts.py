"""LRS3's meta texts: which frames of which YouTube video a clip is, and where the face is in each."""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from javisc.compiler.inputs.annotations import Problems, lines
from javisc.compiler.media.clip import Clip
from javisc.compiler.media.encode import Crop, Part
from javisc.compiler.media.transcode import transcode
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe
from javisc.manifests.errors import UserError

#: Frames a second that the frame numbers count; LRS3 was cut from videos of this rate.
FPS = 25
#: Frames of one clip, and the highest frame number: 12 hours.
MAX_FRAMES = 12 * 3600 * FPS
_YOUTUBE = re.compile(r"[A-Za-z0-9_-]{11}", re.ASCII)


class Box(NamedTuple):
    """A face, in fractions of the picture's width and height."""

    x: float
    y: float
    w: float
    h: float


class Square(NamedTuple):
    """A crop in pixels; `side` is the square's side, of which height and width are what the picture holds."""

    top: int
    left: int
    height: int
    width: int
    side: int

    def written(self, img_h: int, img_w: int) -> Box:
        """The crop as fractions, as SparseSync writes it into the new meta text."""
        return Box(self.left / img_w, self.top / img_h, self.side / img_w, self.side / img_h)


@dataclass(frozen=True)
class Meta:
    """One clip: the YouTube id, the spoken text if given, and a face box per frame of the full video, by frame number."""

    youtube: str
    text: str | None
    boxes: dict[int, Box]

    @property
    def first(self) -> int:
        return min(self.boxes)

    @property
    def last(self) -> int:
        return max(self.boxes)

    @property
    def window(self) -> tuple[float, float]:
        """From the start of the first frame to the end of the last, in seconds.

        SparseSync's own preparation ends the sound where the last frame starts: its clips have 40 ms less sound than picture.
        """
        return self.first / FPS, (self.last + 1) / FPS


def read_meta(path: Path) -> Meta:
    """Read a meta text, official or SparseSync's. Raises UserError that names file and line where it has another form."""
    problems = Problems()
    youtube = text = None
    numbered = lines(path, problems)
    for _, line in numbered:
        name, colon, value = line.partition(":")
        if line.startswith("FRAME"):
            break
        if colon and name == "Ref":
            youtube = value.strip()
        elif colon and name == "Text":
            text = " ".join(value.split()) or None
    if youtube is None or not _YOUTUBE.fullmatch(youtube):
        raise UserError(f"{path}: its line 'Ref:' names no YouTube id; is it a meta text of LRS3?")
    boxes = dict(_boxes(path, numbered))
    if problems.count:
        _, number, message = problems.rows[0]
        raise UserError(f"{path}: line {number}: {message}")
    if not boxes:
        raise UserError(f"{path}: lists no frames after its line 'FRAME'; is it a meta text of LRS3?")
    return Meta(youtube, text, boxes)


def read_texts(meta: Path) -> Iterator[tuple[Path, Meta | UserError]]:
    """Yield every text of LRS3's pretrain part below `meta`, in order, read or with what is wrong with it.

    Where there is no folder `pretrain`, all texts are read.
    """
    top = meta / "pretrain" if (meta / "pretrain").is_dir() else meta
    for folder, folders, files in os.walk(top):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".txt"):
                path = Path(folder, name)
                try:
                    yield path, read_meta(path)
                except UserError as error:
                    yield path, error


def _boxes(path: Path, numbered: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Box]]:
    """The rows after the header up to the first empty line: frame, x, y, w, h. Word timings may follow; nobody needs them."""
    for number, line in numbered:
        fields = line.split()
        if not fields:
            return
        try:
            frame, (x, y, w, h) = int(fields[0]), map(float, fields[1:])
        except ValueError:
            raise UserError(f"{path}: line {number}: a frame number and four fractions are expected") from None
        if not (0 <= frame < MAX_FRAMES and all(math.isfinite(value) and abs(value) < 100 for value in (x, y, w, h))):
            raise UserError(f"{path}: line {number}: frame {frame} or its box is out of range")
        # The official texts let boxes hang over the picture's edge.
        yield frame, Box(max(x, 0.0), max(y, 0.0), min(w, 1.0), min(h, 1.0))


def square_crop(img_h: int, img_w: int, box: Box) -> Square:
    """The square around a face that stays inside the picture; cut where its side exceeds the picture's height.

    Its side is the longer side of the box in whole pixels. Raises ValueError for an empty box and one as wide as the picture.
    """
    x, y, w, h = int(img_w * box.x), int(img_h * box.y), int(img_w * box.w), int(img_h * box.h)
    if w < 1 or h < 1 or w >= img_w or h > img_h:
        raise ValueError(f"a face of {w}x{h} pixels in a picture of {img_w}x{img_h}")
    side = max(w, h)
    left = int(max(min(x + w / 2 - side / 2, img_w - side), 0))
    top = int(max(min(y + h / 2 - side / 2, img_h - side), 0))
    return Square(top, left, min(side, img_h - top), min(side, img_w - left), side)


def face_crop(path: Path) -> Crop:
    """The crop that follows the face of a meta text; a frame the text does not list takes the nearest listed one's box.

    Frame numbers are ticks of 25 a second. Raises Rejected for another text; so does the crop where a box is no face.
    """
    try:
        boxes = read_meta(path).boxes
    except UserError as error:
        raise Rejected("filtered", str(error)) from error
    frames = sorted(boxes)

    def crop(tick: int, width: int, height: int) -> Part:
        place = bisect_left(frames, tick)
        frame = min(frames[max(place - 1, 0) : place + 1], key=lambda each: abs(each - tick))
        try:
            square = square_crop(height, width, boxes[frame])
        except ValueError as error:
            raise Rejected("filtered", f"{path.name}: frame {frame}: {error}") from error
        return Part(square.left, square.top, square.width, square.height)

    return crop


def transcode_cut(
    source: Path,
    recipe: Recipe,
    scratch: Path,
    *,
    window: tuple[float, float] | None = None,
    boxes: Path | None = None,
    sound: Path | None = None,
) -> Clip:
    """`transcode`, with every picture cropped to the face that the meta text `boxes` follows. Raises Rejected."""
    crop = None if boxes is None else face_crop(boxes)
    return transcode(source, recipe, scratch, window=window, crop=crop, sound=sound)


def new_meta(youtube: str, first: int, crops: list[Box]) -> str:
    """SparseSync's meta text for a clip cut anew: where its sound lies in the video and the crop of each frame."""
    rows = "".join(
        f"{first + number:06d} {box.x:.3f} {box.y:.3f} {box.w:.3f} {box.h:.3f}\n" for number, box in enumerate(crops)
    )
    segment = f"{first / FPS:.2f} {len(crops) / FPS:.2f}"
    return f"Ref: {youtube}\nAUDIO SEGMENT (start_sec duration_sec):\n{segment}\nRGB:\nFRAME X Y W H\n{rows}"

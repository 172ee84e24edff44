"""How a picture is to be turned: its display matrix, found among side data of any kind."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame


def _unlisted(kind: type[Type], value: object) -> Type | None:
    """A member for a kind of side data that PyAV's list lacks."""
    if not isinstance(value, int):
        return None
    member: Any = object.__new__(kind)
    member._name_, member._value_ = f"UNLISTED_{value}", value
    return cast(Type, member)


# PyAV looks up the kind of all side data of a picture; without this, one that FFmpeg learnt later raises ValueError.
Type._missing_ = classmethod(_unlisted)  # type: ignore[assignment]


def display_matrix(frame: VideoFrame) -> bytes | None:
    """The display matrix of a frame, nine native int32; None if it has none."""
    data = cast(Iterable[Any], frame.side_data)  # the stubs say a dictionary; iterating gives the entries
    return next((bytes(entry) for entry in data if entry.type is Type.DISPLAYMATRIX), None)


@dataclass(frozen=True)
class Orientation:
    """What a display matrix asks for: mirror left-right first if `flip`, then turn `clockwise` degrees."""

    clockwise: int = 0
    flip: bool = False


def orientation(matrix: bytes | None) -> Orientation:
    """Read a display matrix (nine native int32, 16.16 and 2.30 fixed point). Angles snap to quarter turns."""
    if matrix is None or len(matrix) < 36:
        return Orientation()
    a, b, _, c, d, _, _, _, _ = struct.unpack("=9i", matrix[:36])
    flip = a * d - b * c < 0
    if flip:  # a mirror applied to the picture first negates the matrix's first row
        a, b = -a, -b
    if a == b == 0:
        return Orientation()
    return Orientation(clockwise=round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90, flip=flip)

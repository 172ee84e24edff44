"""Drawing on RGB pictures (H,W,3) uint8: shaded ellipses and boxes with soft edges, clipped to the picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def disc(
    picture: Picture, x: float, y: float, half_width: float, half_height: float, colour: object, alpha: float = 1.0
) -> None:
    """A shaded, anti-aliased ellipse around (x, y), all in pixels."""
    found = _region(picture, x, y, half_width, half_height)
    if found is None:
        return
    region, across, down = found
    distance = np.sqrt(across**2 + down**2)
    cover = np.clip((1 - distance) * min(half_width, half_height) + 0.5, 0, 1)[..., None] * alpha
    light = np.clip(1.15 - 0.55 * np.sqrt((across + 0.35) ** 2 + (down + 0.35) ** 2), 0.35, 1.3)[..., None]
    _blend(region, np.clip(np.asarray(colour, dtype=float) * light, 0, 255), cover)


def ring(picture: Picture, x: float, y: float, radius: float, thick: float, colour: object, alpha: float) -> None:
    """A flat circle line of `thick` pixels."""
    found = _region(picture, x, y, radius + thick, radius + thick)
    if found is None:
        return
    region, across, down = found
    off = np.abs(np.sqrt(across**2 + down**2) * (radius + thick) - radius)
    _blend(region, np.asarray(colour, dtype=float), np.clip(thick / 2 - off + 0.5, 0, 1)[..., None] * alpha)


def box(
    picture: Picture, x: float, y: float, half_width: float, half_height: float, colour: object, alpha: float = 1.0
) -> None:
    """A flat box around (x, y) with anti-aliased edges."""
    found = _region(picture, x, y, half_width, half_height)
    if found is None:
        return
    region, across, down = found
    inside = np.clip((1 - np.abs(across)) * half_width + 0.5, 0, 1) * np.clip(
        (1 - np.abs(down)) * half_height + 0.5, 0, 1
    )
    _blend(region, np.asarray(colour, dtype=float), inside[..., None] * alpha)


def _region(
    picture: Picture, x: float, y: float, half_width: float, half_height: float
) -> tuple[Picture, NDArray[np.float64], NDArray[np.float64]] | None:
    """The part of the picture that a shape touches, and its columns' and rows' places in half widths and half heights."""
    height, width = picture.shape[:2]
    left, right = max(0, int(x - half_width - 1)), min(width, int(x + half_width + 3))
    top, bottom = max(0, int(y - half_height - 1)), min(height, int(y + half_height + 3))
    if left >= right or top >= bottom:
        return None
    across = (np.arange(left, right)[None, :] - x) / half_width
    down = (np.arange(top, bottom)[:, None] - y) / half_height
    return picture[top:bottom, left:right], across, down


def _blend(region: Picture, colour: NDArray[np.float64], cover: NDArray[np.float64]) -> None:
    region[:] = (region * (1 - cover) + colour * cover).astype(np.uint8)

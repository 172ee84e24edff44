"""Where the bucket's picture lies in a clip's: the size to scale to, and the crop."""

from __future__ import annotations

from dataclasses import dataclass

from javisc.trainer.data.index import draws


@dataclass(frozen=True)
class Framing:
    """Scale a picture to `resize` (H, W), cut `crop` (H, W) out of it, and mirror it.

    `anchor`: (y, x), the share of the free room above and left of the crop, 0.5 for the centre.
    """

    resize: tuple[int, int]
    crop: tuple[int, int]
    anchor: tuple[float, float]
    mirror: bool = False

    @property
    def corner(self) -> tuple[int, int]:
        """The crop's first row and column in the scaled picture."""
        y, x = (
            round(share * (size - cut)) for share, size, cut in zip(self.anchor, self.resize, self.crop, strict=True)
        )
        return y, x


def cover(height: int, width: int, target: tuple[int, int]) -> tuple[int, int]:
    """The size to scale (height, width) to so that it covers `target` = (H, W) with one side equal, as JavisDiT does."""
    scale_h, scale_w = target[0] / height, target[1] / width
    if scale_h > scale_w:
        return target[0], max(target[1], round(width * scale_h))
    return max(target[0], round(height * scale_w)), target[1]


def framing(
    height: int, width: int, target: tuple[int, int], resize: str, crop: str, seed: int
) -> tuple[tuple[int, int], tuple[float, float]]:
    """(size to scale to, anchor of the crop) for a picture of (height, width) and a crop of `target`.

    Raises ValueError if the picture is too small to crop from.
    """
    size = cover(height, width, target) if resize == "cover" else (height, width)
    free = (size[0] - target[0], size[1] - target[1])
    if min(free) < 0:
        raise ValueError(
            f"a picture of {height}x{width} is smaller than the crop {target[0]}x{target[1]}; use resize=cover"
        )
    if crop == "random":
        corner = [int(draws.integers(room + 1, seed, "crop", axis)[0]) for axis, room in enumerate(free)]
    else:
        corner = [round(room / 2) for room in free]
    return size, (corner[0] / max(free[0], 1), corner[1] / max(free[1], 1))

"""Colour augmentation as one affine map of RGB, which the graph applies to all frames of a clip alike.

Brightness multiplies, contrast scales about mid-grey, saturation scales the distance from luma, hue turns about the grey axis (in
YIQ, which keeps luma). None of them depends on the picture, so the four are one matrix and one offset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.trainer.data.index import draws

MID = 127.5
#: RGB to luma and the two axes of colour: NTSC's YIQ.
_YIQ = np.asarray([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True)
class Colour:
    """What is done to a clip's colour; the defaults do nothing. `hue` in turns, the others factors."""

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(M (3, 3), t (3,)) with M @ rgb + t the new pixel, in 0..255 but not clipped to it."""
        angle = 2 * math.pi * self.hue
        turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        inside = np.eye(3)
        inside[1:, 1:] = self.saturation * np.asarray(turn)
        matrix = self.contrast * self.brightness * np.linalg.solve(_YIQ, inside @ _YIQ)
        return matrix.astype(np.float32), np.full(3, MID * (1 - self.contrast), np.float32)


@dataclass(frozen=True)
class ColourJitter:
    """How far clips' colours are moved: factors are uniform in 1 ± strength, the hue's turn in ± `hue`, for a share of clips."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name, limit in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5), ("probability", 1)):
            if not 0 <= getattr(self, name) <= limit:
                raise UserError(f"colour {name}={getattr(self, name)}: 0 to {limit} is allowed; choose a value between")

    def drawn(self, seed: int) -> Colour:
        """What happens to the clip of a seed."""
        if draws.uniform(seed, "colour")[0] >= self.probability:
            return Colour()
        names = ("brightness", "contrast", "saturation", "hue")
        moves = [getattr(self, name) * (2 * float(draws.uniform(seed, "colour", name)[0]) - 1) for name in names]
        return Colour(1 + moves[0], 1 + moves[1], 1 + moves[2], moves[3])

"""What things in scenes are made of: how they bounce, look and sound."""

from __future__ import annotations

from dataclasses import dataclass

GRAVITY = 9.81
#: Metres that the picture is high.
VIEW = 2.0


@dataclass(frozen=True)
class Material:
    """What a thing is made of. restitution: speed kept by a hit. pitch: Hz of its lowest mode. ring: seconds to 1/e."""

    name: str
    restitution: float
    pitch: float
    ring: float
    modes: tuple[float, ...]
    colour: tuple[int, int, int]


#: Ratios of modes after the textbook cases: free bar (glass, wood), membrane (rubber), plate (steel).
MATERIALS = (
    Material("rubber", 0.86, 220.0, 0.035, (1.0, 1.59, 2.14), (196, 62, 52)),
    Material("wooden", 0.70, 640.0, 0.030, (1.0, 2.76, 5.40), (176, 122, 66)),
    Material("glass", 0.78, 2100.0, 0.090, (1.0, 2.76, 5.40), (120, 190, 205)),
    Material("steel", 0.82, 1250.0, 0.160, (1.0, 1.73, 2.33, 3.91), (150, 154, 164)),
    Material("plastic", 0.80, 900.0, 0.022, (1.0, 2.1, 3.3), (236, 178, 46)),
)

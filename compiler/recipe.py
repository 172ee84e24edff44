"""The recipe: every setting that shapes the bytes of a compiled sample, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from fractions import Fraction

from javisc.manifests.errors import UserError

KINDS = ("jav", "audio", "sync")
#: A picture of another size than the clip's first one is fitted into it, with black bars, or the clip is refused.
RESIZED = ("letterbox", "refuse")
ENCODER_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


def parse_fps(value: str | int | float | Fraction) -> Fraction:
    """Read a frame rate exactly: "24", "23.976", "24000/1001". Raises `UserError` outside 1 to 240.

    Decimals that abbreviate a rate of NTSC video (23.976, 29.97, 59.94, 119.88) mean the exact fraction.
    """
    text = str(value).strip()
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?|\d{1,9}/[1-9]\d{0,8}", text):
        raise UserError(
            f"--fps {text!r}: a number or a fraction such as 24, 25 or 24000/1001 is allowed; give one of these"
        )
    rate = Fraction(text)
    whole = round(rate)
    if "/" not in text and rate.denominator != 1 and abs(rate - Fraction(whole * 1000, 1001)) < Fraction(1, 200):
        rate = Fraction(whole * 1000, 1001)
    if not 1 <= rate <= 240:
        raise UserError(f"--fps {text!r}: 1 to 240 frames per second are allowed; choose a rate between them")
    return rate


@dataclass(frozen=True)
class Recipe:
    """What a compiled sample is. Two equal recipes and two equal sources give equal bytes.

    `fps` is kept as the text of an exact fraction; `rate` is the fraction itself. `short_side` None keeps the source's size.
    `max_seconds` cuts what is longer. `kind` "audio" makes samples without a picture. `max_hold`: a picture may stand for so many
    seconds; `resized`: what becomes of a picture whose size changes midway, see RESIZED.
    """

    name: str = "jav"
    kind: str = "jav"
    fps: str = "24"
    sample_rate: int = 16000
    channels: int = 1
    short_side: int | None = None
    crf: float = 22.0
    encoder_preset: str = "superfast"
    gop: int = 12
    min_frames: int = 10
    max_seconds: float | None = None
    allow_silent: bool = False
    max_hold: float = 300.0
    resized: str = "letterbox"

    def __post_init__(self) -> None:
        object.__setattr__(self, "fps", str(parse_fps(self.fps)))
        object.__setattr__(self, "crf", float(self.crf))
        object.__setattr__(self, "max_hold", float(self.max_hold))
        if self.max_seconds is not None:
            object.__setattr__(self, "max_seconds", float(self.max_seconds))
        for ok, given, allowed in (
            (self.kind in KINDS, f"recipe kind {self.kind!r}", f"one of {', '.join(KINDS)}"),
            (8000 <= self.sample_rate <= 192000, f"--sample-rate {self.sample_rate}", "8000 to 192000"),
            (self.channels in (1, 2), f"--channels {self.channels}", "1 or 2"),
            (
                self.short_side is None or (16 <= self.short_side <= 4096 and self.short_side % 2 == 0),
                f"--short-side {self.short_side}",
                "an even number from 16 to 4096",
            ),
            (0 < self.crf <= 51, f"--crf {self.crf}", "above 0 (finest) to 51 (coarsest)"),
            (
                self.encoder_preset in ENCODER_PRESETS,
                f"--encoder-preset {self.encoder_preset!r}",
                ", ".join(ENCODER_PRESETS),
            ),
            (1 <= self.gop <= 600, f"gop {self.gop}", "1 to 600 frames"),
            (1 <= self.min_frames <= 1_000_000, f"--min-frames {self.min_frames}", "1 or more"),
            (
                self.max_seconds is None or 0.05 <= self.max_seconds <= 86400,
                f"--max-seconds {self.max_seconds}",
                "0.05 to 86400",
            ),
            (0.05 <= self.max_hold <= 21600, f"--max-hold {self.max_hold}", "0.05 to 21600 seconds"),
            (self.resized in RESIZED, f"--resized {self.resized!r}", " or ".join(RESIZED)),
        ):
            if not ok:
                raise UserError(f"{given}: allowed is {allowed}; change it")

    @property
    def rate(self) -> Fraction:
        """Frames per second, exact."""
        return Fraction(self.fps)

    def to_json(self) -> dict[str, object]:
        """The settings as JSON values, in the order of the fields."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, settings: dict[str, object]) -> Recipe:
        """The inverse of `to_json`. Raises `UserError` on a setting it does not know or a value of another type."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name, value in settings.items():
            if name not in known:
                raise UserError(
                    f"recipe setting {name!r} is unknown; known are {', '.join(known)}; remove it or update javisc"
                )
            allowed = _TYPES[name]
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise UserError(f"recipe setting {name!r} = {value!r}: allowed is {known[name].type}; correct it")
        return cls(**settings)  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the settings that shape bytes: all but the name."""
        settings = {
            key: value
            for key, value in self.to_json().items()
            if key != "name" and (key not in _LATER or value != _LATER[key])
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def replace(self, **changes: object) -> Recipe:
        """A copy with some settings changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "kind": (str,),
    "fps": (str, int, float),
    "sample_rate": (int,),
    "channels": (int,),
    "short_side": (int, type(None)),
    "crf": (int, float),
    "encoder_preset": (str,),
    "gop": (int,),
    "min_frames": (int,),
    "max_seconds": (int, float, type(None)),
    "allow_silent": (bool,),
    "max_hold": (int, float),
    "resized": (str,),
}

#: Settings that recipes did not always have: at these values they leave the digest what it was, so that older datasets resume.
_LATER = {"max_hold": 300.0, "resized": "letterbox"}

PRESETS: dict[str, Recipe] = {
    "jav": Recipe(),
    "sync": Recipe(name="sync", kind="sync", fps="25", short_side=256, crf=10.0),
    "audio": Recipe(name="audio", kind="audio", max_seconds=30.0, min_frames=1),
}

"""The recipe: every setting that shapes the bytes of a compiled sample, and nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

from javisc.manifests.errors import UserError

KINDS = ("jav", "audio", "sync")
#: A picture of another size than the clip's first one is fitted into it, with black bars, or the clip is refused.
RESIZED = ("letterbox", "refuse")
ENCODER_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


#: How pictures may be coded: H.264 is read everywhere, the others are smaller and slower to make.
CODECS = ("h264", "hevc", "av1")

#: What x264 may be tuned for; its others need B-frames or are for still pictures.
TUNES = ("fastdecode", "film", "animation", "grain")
#: How an option says that it is tuned for nothing.
UNTUNED = "none"


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
class Setting:
    """What there is to know of a setting beside its default: the command's option is made of it, and so is its check.

    types: of its JSON value. holds: what its value must fulfil, `allowed` says it in words. help, metavar: of its option; without
    help it has none. later: recipes did not always have it: at its default it leaves the digest what it was.
    """

    types: tuple[type, ...]
    holds: Callable[[Any], object]
    allowed: str
    help: str = ""
    metavar: str | None = None
    later: bool = False


def _setting(default: Any, *types: type, holds: Callable[[Any], object], allowed: str, **more: Any) -> Any:
    return field(default=default, metadata={"setting": Setting(types, holds, allowed, **more)})


@dataclass(frozen=True)
class Recipe:
    """What a compiled sample is. Two equal recipes and two equal sources give equal bytes.

    Each setting is declared once, here, with its bounds and its option. `fps` is kept as the text of an exact fraction; `rate` is
    the fraction itself. `kind` "audio" makes samples without a picture.
    """

    name: str = _setting("jav", str, holds=lambda name: True, allowed="any text")
    kind: str = _setting("jav", str, holds=KINDS.__contains__, allowed=f"one of {', '.join(KINDS)}")
    fps: str = _setting(
        "24",
        str,
        int,
        float,
        holds=parse_fps,
        allowed="a rate",
        help="Frames per second: 24, 25, 30000/1001.",
        metavar="RATE",
    )
    sample_rate: int = _setting(
        16000,
        int,
        holds=lambda rate: 8000 <= rate <= 192000,
        allowed="8000 to 192000",
        help="Samples of sound per second.",
        metavar="HZ",
    )
    channels: int = _setting(1, int, holds=(1, 2).__contains__, allowed="1 or 2", help="1 or 2.", metavar="N")
    short_side: int | None = _setting(
        None,
        int,
        type(None),
        holds=lambda side: side is None or (16 <= side <= 4096 and side % 2 == 0),
        allowed="an even number from 16 to 4096",
        help="Scale so that the shorter side has N pixels.",
        metavar="N",
    )
    crf: float = _setting(
        22.0,
        int,
        float,
        holds=lambda crf: 0 < crf <= 51,
        allowed="above 0 (finest) to 51 (coarsest)",
        help="x264's quality: lower is finer.",
        metavar="N",
    )
    encoder_preset: str = _setting(
        "superfast",
        str,
        holds=ENCODER_PRESETS.__contains__,
        allowed=", ".join(ENCODER_PRESETS),
        help="x264's preset: faster is larger.",
        metavar="P",
    )
    gop: int = _setting(
        12,
        int,
        holds=lambda gop: 1 <= gop <= 600,
        allowed="1 to 600 frames",
        help="Frames from one key frame to the next: fewer are larger and read faster at any place.",
        metavar="N",
    )
    min_frames: int = _setting(
        10,
        int,
        holds=lambda frames: 1 <= frames <= 1_000_000,
        allowed="1 or more",
        help="Refuse clips with fewer frames.",
        metavar="N",
    )
    max_seconds: float | None = _setting(
        None,
        int,
        float,
        type(None),
        holds=lambda seconds: seconds is None or 0.05 <= seconds <= 86400,
        allowed="0.05 to 86400",
        help="Cut clips to S seconds.",
        metavar="S",
    )
    allow_silent: bool = _setting(
        False, bool, holds=lambda silent: True, allowed="true or false", help="Keep videos without sound."
    )
    max_hold: float = _setting(
        300.0,
        int,
        float,
        holds=lambda seconds: 0.05 <= seconds <= 21600,
        allowed="0.05 to 21600 seconds",
        later=True,
        help="Let a picture stand for S seconds (300), as slides do.",
        metavar="S",
    )
    resized: str = _setting(
        "letterbox", str, holds=RESIZED.__contains__, allowed=" or ".join(RESIZED), later=True,
        help="A picture whose size changes midway: letterbox (default) or refuse the clip.", metavar="HOW",
    )  # fmt: skip

    tune: str | None = _setting(
        None, str, type(None), holds=lambda tune: tune is None or tune in TUNES, allowed=" or ".join((*TUNES, UNTUNED)),
        later=True, help="x264's tune: fastdecode is larger and decodes faster; none: the smallest.", metavar="T",
    )  # fmt: skip

    codec: str = _setting("h264", str, holds=CODECS.__contains__, allowed=", ".join(CODECS), later=True)

    def __post_init__(self) -> None:
        for name in ("crf", "max_hold", "max_seconds"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(value))
        object.__setattr__(self, "fps", str(parse_fps(self.fps)))
        if self.tune == UNTUNED:
            object.__setattr__(self, "tune", None)
        for name, setting in settings().items():
            if not setting.holds(value := getattr(self, name)):
                given = f"--{name.replace('_', '-')}" if setting.help else f"recipe {name}"
                raise UserError(f"{given} {value!r}: allowed is {setting.allowed}; change it")

    @property
    def rate(self) -> Fraction:
        """Frames per second, exact."""
        return Fraction(self.fps)

    def to_json(self) -> dict[str, object]:
        """The settings as JSON values, in the order of the fields."""
        return {name: getattr(self, name) for name in settings()}

    @classmethod
    def from_json(cls, given: dict[str, object]) -> Recipe:
        """The inverse of `to_json`. Raises `UserError` on a setting it does not know or a value of another type.

        What was read once is not checked again: a worker is told the same settings with every clip.
        """
        return cls._read(json.dumps(given))

    @classmethod
    @lru_cache(maxsize=16)
    def _read(cls, text: str) -> Recipe:
        given: dict[str, object] = json.loads(text)
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name, value in given.items():
            if name not in known:
                raise UserError(
                    f"recipe setting {name!r} is unknown; known are {', '.join(known)}; remove it or update javisc"
                )
            allowed = settings()[name].types
            if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
                raise UserError(f"recipe setting {name!r} = {value!r}: allowed is {known[name].type}; correct it")
        return cls(**given)  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the settings that shape bytes: all but the name."""
        known = {field.name: field for field in dataclasses.fields(self)}
        shaping = {
            key: value
            for key, value in self.to_json().items()
            if key != "name" and not (known[key].metadata["setting"].later and value == known[key].default)
        }
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()

    def replace(self, **changes: object) -> Recipe:
        """A copy with some settings changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


@cache
def settings() -> dict[str, Setting]:
    """Every setting of a recipe by name, in order."""
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(Recipe)}


#: What people train on is read many times for each time it is made: 10 to 17 % more bytes, read 1.2 to 1.5 times as fast
#: (benchmarks/results/renditions.md).
PRESETS: dict[str, Recipe] = {
    "jav": Recipe(tune="fastdecode"),
    "jav16": Recipe(name="jav16", fps="16", tune="fastdecode"),
    "archive": Recipe(name="archive", crf=16.0, encoder_preset="medium", gop=48),
    "frame": Recipe(name="frame", gop=1, tune="fastdecode"),
    "hevc": Recipe(name="hevc", codec="hevc", crf=26.0),
    "av1": Recipe(name="av1", codec="av1", crf=32.0),
    "sync": Recipe(name="sync", kind="sync", fps="25", short_side=256, crf=10.0),
    "audio": Recipe(name="audio", kind="audio", max_seconds=30.0, min_frames=1),
}

#: Presets as they were in older javisc: a dataset that was begun with one goes on with it.
FORMER: dict[str, tuple[Recipe, ...]] = {name: (PRESETS[name].replace(tune=None),) for name in ("jav", "jav16")}

"""What becomes of one source, and how much of it is wanted and there."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer

from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe

#: The longest clip, so that a lying clock cannot fill the disk.
MAX_SECONDS = Fraction(6 * 3600)
#: Demuxers whose duration is what the header declares: not the last time stamp, not a guess by the bit rate, and not, as in AVI
#: and FLV, a number that recorders leave at will.
DECLARING = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mxf", "wav", "w64", "flac", "aiff", "caf")
#: Codings of WAVE files whose bytes per second are exact: PCM, float, A-law, mu-law, extensible.
PLAIN_WAV = (1, 3, 6, 7, 0xFFFE)
#: More chunks before the sound than any WAVE file has.
MAX_CHUNKS = 1000
#: Less than this many seconds is no loss: headers count encoders' padding, and the last picture's length, in their own ways.
TAIL_TOLERANCE = Fraction(1, 4)
#: A file is refused if more than this share of what it declares is missing at its end.
MAX_MISSING_TAIL = 0.5


@dataclass(frozen=True)
class Clip:
    """A compiled sample: its members in the scratch folder, by extension, and the manifest columns that are known by now."""

    files: dict[str, Path]
    columns: dict[str, object] = field(default_factory=dict)
    #: Of its renditions, which are among the files as r240.mp4: height and width, by their names.
    renditions: dict[str, list[int]] = field(default_factory=dict)

    @property
    def mp4(self) -> Path | None:
        """The pictures, where there are any."""
        return self.files.get("mp4")

    @property
    def flac(self) -> Path | None:
        """The sound, where there is any."""
        return self.files.get("flac")


def limits(recipe: Recipe, window: tuple[float, float] | None) -> tuple[Fraction, Fraction]:
    """(start, length) in seconds of what is wanted of a file. Raises `Rejected` if it is nothing."""
    if window is not None and not 0 <= window[0] < window[1]:
        raise Rejected("filtered", f"a window from {window[0]} s to {window[1]} s is empty")
    start = Fraction(0) if window is None else seconds(window[0])
    end = None if window is None or math.isinf(window[1]) else seconds(window[1])
    length = MAX_SECONDS if end is None else min(end - start, MAX_SECONDS)
    return start, length if recipe.max_seconds is None else min(length, seconds(recipe.max_seconds))


def said(what: str, message: str) -> str:
    """What is wrong, and what a library said of it, if anything."""
    return f"{what}; {message}" if message else what


def after_end(start: Fraction, what: str, message: str = "") -> str:
    """The message of a window that begins where the source has ended."""
    return said(f"the window begins at {float(start):g} s, after the end of the {what}", message)


def seconds(value: float) -> Fraction:
    """The decimal that a float was written as: 0.1 means a tenth."""
    return Fraction(str(value))


def declared_seconds(container: InputContainer) -> float | None:
    """The duration that the header declares."""
    if container.format.name == "wav" and (seconds := _wav_seconds(Path(container.name.removeprefix("file:")))):
        return seconds  # FFmpeg says what is there
    return None if container.duration is None else container.duration / av.time_base


def _wav_seconds(path: Path) -> float | None:
    """How long the header of a RIFF WAVE file says it is; None where it says nothing, as a stream's does."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"RIFF":
                return None
            file.seek(12)
            rate = 0
            for _ in range(MAX_CHUNKS):
                kind, size = struct.unpack("<4sI", file.read(8))
                if kind == b"fmt ":
                    coding, per_second = struct.unpack("<H6xI", file.read(12))
                    rate = per_second if coding in PLAIN_WAV else 0
                    size -= 12
                elif kind == b"data":
                    return size / rate if rate and 0 < size < 0xFFFFF000 else None
                file.seek(size + size % 2, 1)
    except (OSError, struct.error):
        return None
    return None


def missing_tail(container: InputContainer, begin: Fraction, end: Fraction, wanted: Fraction | None) -> float | None:
    """The share of the seconds from `begin` on, up to `wanted` at most, that the header declares and that end at `end` already.

    None where the header declares nothing; 0 with `wanted` None: all that was wanted came. Times on the container's clock.
    Raises `Rejected` if it is more than MAX_MISSING_TAIL.
    """
    declared = declared_seconds(container)
    if declared is None or container.format.name not in DECLARING:
        return None
    if wanted is None:
        return 0.0
    starts = Fraction(container.start_time or 0, av.time_base)
    promised = min(starts + Fraction(declared), wanted)
    if promised - end <= TAIL_TOLERANCE or promised <= begin:
        return 0.0
    share = float((promised - max(end, begin)) / (promised - begin))
    if share > MAX_MISSING_TAIL:
        raise Rejected(
            "corrupt", f"{share:.0%} of the {float(promised - begin):.3f} s that the header declares are missing"
        )
    return share

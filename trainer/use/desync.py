"""DeSync: how far off a sounding video is, as those who make them report it; two published evaluators, by name.

Both encode segments once, from the clip's start on, and look at windows of `wanted` of them.
"""

from __future__ import annotations

from javisc.manifests.errors import UserError
from javisc.trainer.use.score_clip import NoScore

#: Both change the windows, take the picture whole (its short side is the input's), the sound exact, and compute in fp32.
PRESETS = ("av-benchmark", "javisbench")


def windows(preset: str, segments: int, wanted: int = 14) -> list[list[int]]:
    """The windows, as numbers of segments. Raises NoScore where there are too few, UserError for another preset.

    av-benchmark (MMAudio): the first and the last window, which may be the same. javisbench: windows side by side, then the last
    one; clips of fewer segments repeat theirs from the start, which puts a jump into both streams.
    """
    first = list(range(wanted))
    if preset == "javisbench":
        if segments < 1:
            raise NoScore("too short", "no segment fits")
        if segments < wanted:
            return [[number % segments for number in first]]
        starts = list(range(0, segments - wanted + 1, wanted))
        if starts[-1] + wanted < segments:
            starts.append(segments - wanted)
    elif preset == "av-benchmark":
        if segments < wanted:
            raise NoScore("too short", f"{segments} segments, a window has {wanted}")
        starts = [0, segments - wanted]
    else:
        raise UserError(f"--preset {preset}: it may be {', '.join(PRESETS)}")
    return [[start + number for number in first] for start in starts]

"""The encoders behind a recipe's codec, each told to make the same bytes always: closed groups, no reordering, one thread."""

from __future__ import annotations

import av

from javisc.compiler.recipe import ENCODER_PRESETS, Recipe
from javisc.manifests.errors import UserError

ENCODERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}


def check_encoder(recipe: Recipe) -> None:
    """Raise UserError where this build of FFmpeg lacks the encoder that the recipe needs."""
    name = ENCODERS[recipe.codec]
    if recipe.kind != "audio" and name not in av.codecs_available:
        raise UserError(
            f"--recipe {recipe.name}: this build of PyAV has no {name}: install PyAV from PyPI (`pip install av`), or give "
            "--recipe jav",
            exit_code=1,
        )


def encoder_of(recipe: Recipe) -> tuple[str, dict[str, str]]:
    """The encoder's name in FFmpeg, and its options."""
    crf, gop = f"{recipe.crf:g}", recipe.gop
    if recipe.codec == "hevc":
        told = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:open-gop=0:pools=none:frame-threads=1:info=0:log-level=error"
        return ENCODERS["hevc"], {"preset": recipe.encoder_preset, "crf": crf, "x265-params": told}
    if recipe.codec == "av1":
        speed = str(12 - ENCODER_PRESETS.index(recipe.encoder_preset))  # 12 is SVT-AV1's fastest
        told = f"keyint={gop}:scd=0:pred-struct=1:lp=1:lookahead=0"
        return ENCODERS["av1"], {"preset": speed, "crf": crf, "svtav1-params": told}
    return ENCODERS["h264"], {
        **({} if recipe.tune is None else {"tune": recipe.tune}),
        "preset": recipe.encoder_preset,
        "crf": crf,
        "profile": "high",
        "a53cc": "0",
        "flags": "+bitexact+cgop",
        "x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:open-gop=0"
        f":cabac={int(recipe.tune != 'fastdecode')}:8x8dct=1"
        # The macroblock tree (on from veryfast to placebo) reads memory that nothing was written to: other bytes every time.
        ":mbtree=0:threads=1:lookahead-threads=1:sync-lookahead=0",
    }

"""Which cells of a manifest may be empty, and which must agree with each other: what can be judged without any media."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import polars as pl

from javisc.compiler.recipe import Recipe
from javisc.manifests.schema import LATER

#: Columns that every row has.
ALWAYS = (
    "path", "id", "relpath", "key", "shard", "json_offset", "json_size", "json_crc32", "num_frames", "num_samples", "channels",
    "duration", "source_sha256", "source_bytes", "source_container", "source_edit_list", "source_audio_tracks", "copied",
    "aspect_ratio", "resolution", "height", "width", "fps",
)  # fmt: skip
#: Columns of a row with a picture, which is one with KEY.mp4; a row without one has none of OF_PICTURE.
OF_PICTURE = (
    "mp4_offset", "mp4_size", "mp4_crc32", "source_video_codec", "source_pixel_format", "source_height", "source_width",
    "source_vfr", "source_rotation", "source_interlaced", "source_hdr", "source_decoded_frames", "source_video_start",
    "still_ratio", "black_ratio", "scene_cuts", "motion", "still", "damaged_pictures",
)  # fmt: skip
#: Columns of a row with sound, which is one with KEY.flac.
OF_SOUND = (
    "flac_offset", "flac_size", "flac_crc32", "audio_path", "audio_fps", "source_audio_codec", "source_audio_start",
    "source_sample_rate", "source_channels", "pad_head", "pad_tail", "silence_ratio", "clipping_ratio", "silent",
    "audio_wobble_ms", "audio_stretched_ms", "audio_repaired_ms", "source_inverted", "damaged_sound",
)  # fmt: skip
#: Columns that may be empty in any row: captions and labels that nobody gave, headers that say nothing, measures without a value.
MAY_BE_NULL = (
    "text", "audio_text", "unpaired_audio_path", "corpus", "split", "texts", "label", "lang", "offset_sec", "vstart_sec",
    "group", "audio_sha256", "clip_start", "clip_end",
    "source_fps", "source_declared_frames", "source_declared_seconds", "loudness", "bandwidth", "source_size_changes",
    "missing_tail",
)  # fmt: skip
#: Columns between 0 and 1.
SHARES = (
    "silence_ratio", "clipping_ratio", "still_ratio", "black_ratio", "motion",
    "damaged_pictures", "damaged_sound", "missing_tail",
)  # fmt: skip
#: A rate of frames is kept as a 64-bit float; times of it are equal to a few units of its last place.
_EXACT = 1e-9


def defects(manifest: pl.LazyFrame, recipe: Recipe) -> Iterator[str]:
    """A line for every rule that rows of a manifest break, with the first of these rows. One streamed pass a rule.

    Only columns that the table has are looked at, and rows of an older javisc, which have no group, may lack those that came
    later. A dataset without media's measures (latents) has one rule, that its sources are known.
    """
    known = set(manifest.collect_schema())
    latents = "safetensors_offset" in known
    rules = [("have no source_sha256", pl.col("source_sha256").is_null())] if latents else _rules(known, recipe)
    for rule, broken in rules:
        found = manifest.filter(broken.fill_null(False)).select("key").collect(engine="streaming")["key"]
        if len(found):
            remedy = "; building with --prune makes them anew" if "no source_sha256" in rule else ""
            yield f"{len(found)} rows {rule}: {found[0]}" + (", …" if len(found) > 1 else "") + remedy


def _rules(known: set[str], recipe: Recipe) -> Iterator[tuple[str, pl.Expr]]:
    picture, sound = pl.col("mp4_offset").is_not_null(), pl.col("flac_offset").is_not_null()
    if recipe.kind != "audio":
        yield "have no picture", ~picture
    if recipe.kind == "audio" or not recipe.allow_silent:
        yield "have no sound", ~sound
    now = pl.col("group").is_not_null() if "group" in known else pl.lit(False)
    for name in ALWAYS:
        if name in known:
            yield f"have no {name}", pl.col(name).is_null() & (now if name in LATER else True)
    for what, there, names in (("picture", picture, OF_PICTURE), ("sound", sound, OF_SOUND)):
        for name in names:
            if name in known:
                yield f"have a {what} and no {name}", there & pl.col(name).is_null() & (now if name in LATER else True)
                if name.endswith(("_offset", "_size", "_crc32")):
                    yield f"have {name} and no {what}", ~there & pl.col(name).is_not_null()
    height, width = pl.col("height").cast(pl.Int64), pl.col("width").cast(pl.Int64)
    yield "have a resolution that is not height * width", pl.col("resolution") != height * width
    yield "have an aspect_ratio that is not height / width", (pl.col("aspect_ratio") - height / width).abs() > _EXACT
    rate = Fraction(recipe.rate)
    seconds = pl.col("num_frames") * rate.denominator / rate.numerator
    yield "have another fps than the recipe", picture & ((pl.col("fps") - float(rate)).abs() > _EXACT)
    yield "have a duration that is not num_frames / fps", picture & ((pl.col("duration") - seconds).abs() > _EXACT)
    yield "have another audio_fps than the recipe", sound & (pl.col("audio_fps") != recipe.sample_rate)
    yield "have another number of channels than the recipe", sound & (pl.col("channels") != recipe.channels)
    yield "have channels and no sound", ~sound & (pl.col("channels") != 0)
    heard = pl.col("num_samples") / recipe.sample_rate
    yield (
        "have a duration that is not num_samples / audio_fps",
        ~picture & ((pl.col("duration") - heard).abs() > _EXACT),
    )
    for name in SHARES:
        if name in known:
            yield f"have a {name} outside 0 to 1", ~pl.col(name).is_between(0, 1)
    for flag, measure in (("silent", "silence_ratio"), ("still", "still_ratio")):
        if {flag, measure} <= known:
            yield f"are {flag} where {measure} is not 1, or the other way", pl.col(flag) != (pl.col(measure) == 1)
    if {"text", "texts"} <= known:
        first = pl.col("texts").list.first()
        yield "have a text that is not the first of texts", pl.col("text").ne_missing(first)
        empty = pl.col("texts").list.eval(pl.element().str.strip_chars() == "").list.any()
        yield "have an empty caption", empty
    digest = pl.col("source_sha256")
    yield "have a source_sha256 that is no digest", ~digest.str.contains("^[0-9a-f]{64}$")

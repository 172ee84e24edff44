"""The columns of a compiled dataset's three tables: names, types and meanings.

Every floor takes names and types from here. The first columns of the manifest are JavisDiT's own, in its order and with its
meanings, so that an export is a drop-in table for its trainer; ours follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from javisc.manifests.kinds import MEMBERS

#: Version of the format on disk, stored in dataset.json. Readers refuse a newer one.
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Column:
    """One column: its polars type and what it holds, with the unit."""

    name: str
    dtype: pl.DataType
    meaning: str


def _columns(*rows: tuple[str, pl.DataType | type[pl.DataType], str]) -> tuple[Column, ...]:
    return tuple(
        Column(name, dtype if isinstance(dtype, pl.DataType) else dtype(), meaning) for name, dtype, meaning in rows
    )


_Rows = Iterator[tuple[str, type[pl.DataType], str]]
#: The member kinds that every dataset's tables have columns for, KEY.json first: no other is in every sample.
BASE = tuple(kind.extension for kind in MEMBERS if kind.base)


def _places(*extensions: str) -> _Rows:
    for end in extensions:
        null = "" if end == "json" else ", or null"
        yield f"{end}_offset", pl.Int64, f"byte offset of KEY.{end}'s content" + (null or " in the shard")
        yield f"{end}_size", pl.Int64, f"bytes{null}"


def _checksums(*extensions: str) -> _Rows:
    for end in extensions:
        if end == "json":
            yield "json_crc32", pl.Int64, "CRC-32 (zlib) of KEY.json's content, so that a ranged read can be checked"
        else:
            yield f"{end}_crc32", pl.Int64, f"CRC-32 of KEY.{end}'s content, or null"


#: JavisDiT's columns, in its order. `audio_text` and `unpaired_audio_path` apply to stages 1 and 2 only and may be null.
JAVISDIT = _columns(
    ("path", pl.String, "the source file as it was given (path or URL)"),
    ("id", pl.String, "the source file's name without its extension"),
    ("relpath", pl.String, "the source file relative to the input root, '/' between the parts"),
    ("num_frames", pl.Int32, "frames of the compiled video; audio-only: int(duration * 24)"),
    ("height", pl.Int32, "pixels"),
    ("width", pl.Int32, "pixels"),
    ("aspect_ratio", pl.Float64, "height / width"),
    ("fps", pl.Float64, "frames per second of the compiled video"),
    ("resolution", pl.Int64, "height * width"),
    ("audio_path", pl.String, "the file the sound came from"),
    ("audio_fps", pl.Int32, "samples per second of the compiled audio"),
    ("text", pl.String, "the first caption, or null"),
    ("audio_text", pl.String, "the caption of the sound alone, or null"),
    ("unpaired_audio_path", pl.String, "sound made from the caption, unrelated to the video, or null"),
)

WHERE = _columns(
    ("key", pl.String, "the sample's WebDataset key, [a-z0-9_]+, a function of relpath alone"),
    ("shard", pl.Int32, "the shard's number: shards/{shard:06d}.tar"),
    *_places(*BASE),
    *_checksums(*BASE),
    ("num_samples", pl.Int64, "audio samples per channel: round(num_frames * audio_fps / fps) where there is video"),
    ("channels", pl.Int16, "audio channels; 0 without sound"),
    ("duration", pl.Float64, "seconds"),
)

LABELS = _columns(
    ("corpus", pl.String, "the corpus the sample came from"),
    ("split", pl.String, "train, val, test or the corpus's own name"),
    ("texts", pl.List(pl.String), "all captions"),
    ("label", pl.String, "the class, where the corpus has classes"),
    ("lang", pl.String, "language of the caption, where known"),
    (
        "group",
        pl.String,
        "what must not be divided between splits: the film, as its corpus calls it, else the source's digest",
    ),
    ("offset_sec", pl.Float64, "SparseSync: the fixed evaluation offset, seconds"),
    ("vstart_sec", pl.Float64, "SparseSync: where the fixed evaluation crop starts, seconds"),
)

SOURCE = _columns(
    ("source_sha256", pl.String, "digest of the source file, hex"),
    ("audio_sha256", pl.String, "digest of the file the sound came from, where it is not the source file"),
    (
        "clip_start",
        pl.Float64,
        "where in the source the sample starts, seconds after its first picture or sound; null: there",
    ),
    (
        "clip_end",
        pl.Float64,
        "where in the source the sample ends, seconds; null: at the source's end or the recipe's limit",
    ),
    ("source_bytes", pl.Int64, "size of the source file"),
    ("source_container", pl.String, "FFmpeg's name of the demuxer"),
    ("source_video_codec", pl.String, "FFmpeg's codec name"),
    ("source_audio_codec", pl.String, "FFmpeg's codec name"),
    ("source_pixel_format", pl.String, "FFmpeg's pixel format name"),
    ("source_height", pl.Int32, "pixels, as coded"),
    ("source_width", pl.Int32, "pixels, as coded"),
    ("source_fps", pl.Float64, "the rate the frames really have: (frames - 1) / (last - first presentation time)"),
    ("source_vfr", pl.Boolean, "true if frame intervals differ by more than the container's rounding"),
    ("source_rotation", pl.Int16, "degrees clockwise that were baked in: 0, 90, 180 or 270"),
    ("source_edit_list", pl.Boolean, "true if an edit list or skipped samples moved the presentation"),
    ("source_interlaced", pl.Boolean, "true if frames were deinterlaced"),
    ("source_hdr", pl.Boolean, "true if frames were tone-mapped from PQ or HLG"),
    (
        "source_size_changes",
        pl.Int32,
        "how often the picture's size changes midway; what has another size than the first is letterboxed; null: never",
    ),
    ("source_declared_frames", pl.Int64, "what the header says, or null"),
    ("source_decoded_frames", pl.Int64, "what decodes"),
    ("source_declared_seconds", pl.Float64, "what the header says, or null"),
    ("source_video_start", pl.Float64, "presentation time of the first video frame, seconds on the container's clock"),
    ("source_audio_start", pl.Float64, "presentation time of the first sound, seconds on the container's clock"),
    ("source_sample_rate", pl.Int32, "samples per second"),
    ("source_channels", pl.Int16, "channels"),
    ("source_audio_tracks", pl.Int16, "audio streams in the file"),
    ("pad_head", pl.Int64, "samples of silence put before the sound because it starts after the picture"),
    ("pad_tail", pl.Int64, "samples of silence put after the sound because it ends before the picture"),
    ("copied", pl.Boolean, "true if the video stream was copied, not encoded again"),
    (
        "audio_wobble_ms",
        pl.Float32,
        "how far the sound's time stamps swing around its samples, at most, ms; the samples were left alone; null without sound",
    ),
    (
        "audio_stretched_ms",
        pl.Float32,
        "by how much the sound was resampled to follow a drift of its time stamps, ms in all",
    ),
    (
        "audio_repaired_ms",
        pl.Float32,
        "silence filled in and sound cut where the sound's time stamps leap for good, inside the clip, ms in all",
    ),
    (
        "source_inverted",
        pl.Boolean,
        "true if channels cancel each other in the mix (one of them inverted) and the loudest one was taken alone",
    ),
    ("damaged_pictures", pl.Float32, "share of the pictures that do not decode; above 0.1 the file is refused"),
    (
        "damaged_sound",
        pl.Float32,
        "share of the clip's packets of sound that do not decode; above 0.1 the file is refused",
    ),
    (
        "missing_tail",
        pl.Float32,
        "share of what the header declares that is missing at the end; above 0.5 the file is refused; null: it declares nothing",
    ),
)

QUALITY = _columns(
    ("loudness", pl.Float32, "integrated loudness, LUFS (ITU-R BS.1770-4); null below 0.4 s or where all is gated"),
    ("silence_ratio", pl.Float32, "share of 50 ms windows of the compiled audio below -60 dBFS RMS"),
    ("clipping_ratio", pl.Float32, "share of the source's samples in runs of two or more at full scale"),
    (
        "bandwidth",
        pl.Float32,
        "effective bandwidth of the compiled audio, Hz: 99 % of the energy lies below; null in silence",
    ),
    (
        "still_ratio",
        pl.Float32,
        "share of source frames that repeat the one before: no tile of an 8 x 8 grid changes by 1/255 on average",
    ),
    ("black_ratio", pl.Float32, "share of compiled frames that are black: 98 % of the luma below a tenth of white"),
    (
        "scene_cuts",
        pl.Int32,
        "cuts between shots: compiled frames whose mean luma change is above a tenth, and by a tenth above the change before",
    ),
    ("motion", pl.Float32, "mean absolute luma difference between neighbouring compiled frames, 0 to 1"),
    ("silent", pl.Boolean, "true if there is no sound to hear: silence_ratio is 1"),
    ("still", pl.Boolean, "true if the picture never changes: still_ratio is 1"),
)

MANIFEST = JAVISDIT + WHERE + LABELS + SOURCE + QUALITY
MANIFEST_SCHEMA = pl.Schema({column.name: column.dtype for column in MANIFEST})
#: The columns of the first version of the format, which every dataset has.
FIRST = frozenset((
    "path", "id", "relpath", "num_frames", "height", "width", "aspect_ratio", "fps", "resolution", "audio_path",
    "audio_fps", "text", "audio_text", "unpaired_audio_path", "key", "shard", "json_offset", "json_size",
    "flac_offset", "flac_size", "mp4_offset", "mp4_size", "json_crc32", "flac_crc32", "mp4_crc32", "num_samples",
    "channels", "duration", "corpus", "split", "texts", "label", "lang", "offset_sec", "vstart_sec", "source_sha256",
    "source_bytes", "source_container", "source_video_codec", "source_audio_codec", "source_pixel_format",
    "source_height", "source_width", "source_fps", "source_vfr", "source_rotation", "source_edit_list",
    "source_interlaced", "source_hdr", "source_declared_frames", "source_decoded_frames", "source_declared_seconds",
    "source_video_start", "source_audio_start", "source_sample_rate", "source_channels", "source_audio_tracks",
    "pad_head", "pad_tail", "copied", "loudness", "silence_ratio", "clipping_ratio", "bandwidth", "still_ratio",
    "black_ratio", "scene_cuts", "motion", "silent", "still",
))  # fmt: skip
#: Columns that datasets built before they were thought of do not have: readers take them for null.
LATER = frozenset(MANIFEST_SCHEMA) - FIRST
#: What KEY.json may hold beside the manifest's columns, because it is too long for a table: a masklet's masks, frame by frame.
RECORD_ONLY = ("masks",)
#: Columns that an input table may bring; they travel into KEY.json and the manifest as they are.
CARRIED = (
    "text",
    "texts",
    "audio_text",
    "unpaired_audio_path",
    "label",
    "split",
    "corpus",
    "lang",
    "group",
    "offset_sec",
    "vstart_sec",
)

#: Further columns of a dataset of latents (`javisc encode`), whose rows are windows of another dataset's clips.
LATENTS = _columns(
    *_places("safetensors"),
    *_checksums("safetensors"),
    ("encoded_pass", pl.Int64, "which pass over the clips made the row; a training epoch reads one pass"),
    ("clip_key", pl.String, "the key of the clip in the dataset that was encoded"),
    ("clip_first", pl.Int64, "the clip's frame that the window starts at"),
    ("clip_seed", pl.Int64, "the seed of whatever was drawn for the row: posteriors, negatives"),
)
LATENTS_SCHEMA = pl.Schema({**MANIFEST_SCHEMA, **{column.name: column.dtype for column in LATENTS}})
#: What a field of latents says of each of them; its dataset's manifest has them as NAME_num_frames and so on.
FIELD_LATENTS = _columns(
    ("num_frames", pl.Int32, "frames of the window"),
    ("height", pl.Int32, "height of the window's pictures, in pixels"),
    ("width", pl.Int32, "width of the window's pictures, in pixels"),
    ("fps", pl.Float64, "frames a second"),
    ("num_samples", pl.Int64, "samples of sound in the window"),
    ("clip_first", pl.Int64, "the clip's frame that the window starts at"),
    ("clip_seed", pl.Int64, "the seed of whatever was drawn for it: posteriors, negatives"),
    ("encoded_part", pl.Int32, "the stretch of its pass that it was encoded in: training reads in that order"),
)

#: What `javisc score` adds. A manifest has these columns only after it; null where a clip gave no score.
SCORES = _columns(
    (
        "sync_offset",
        pl.Float64,
        "by how many seconds the sound runs ahead of the picture (negative: lags), by a trained selector: its likeliest offset",
    ),
    (
        "sync_confidence",
        pl.Float32,
        "the probability that the selector gives to sync_offset, the mean over the clip's crops",
    ),
    ("sync_margin", pl.Float32, "sync_confidence less the probability of the next likeliest offset"),
    (
        "desync",
        pl.Float64,
        "seconds that picture and sound are apart (DeSync): size of the likeliest offset, mean of the first and last window",
    ),
    (
        "synchronizable",
        pl.Float32,
        "the probability that the clip can be synchronised at all, by a model that tells it",
    ),
    (
        "audio_advance_sec",
        pl.Float64,
        "by how much later the sound was taken, because the model's training data was read so",
    ),
)
SCORES_SCHEMA = pl.Schema({column.name: column.dtype for column in SCORES})

#: The root of the dataset whose shards hold the row; only in views, which gather rows of several datasets (manifests/io.py).
DATASET_COLUMN = "dataset"

REJECTED = _columns(
    ("path", pl.String, "the source file as it was given"),
    ("relpath", pl.String, "the source file relative to the input root"),
    ("key", pl.String, "the key the sample would have had"),
    ("reason", pl.String, "a code of compiler.reasons"),
    ("message", pl.String, "what the library below said"),
    ("source_bytes", pl.Int64, "size of the source file, or null"),
    ("clip_start", pl.Float64, "where in the source the sample would have started, seconds; null: at its start"),
    ("clip_end", pl.Float64, "where in the source it would have ended, seconds; null: at its end"),
    ("group", pl.String, "the film, as the corpus or the input table calls it, or null"),
)
REJECTED_SCHEMA = pl.Schema({column.name: column.dtype for column in REJECTED})

SHARDS = _columns(
    ("shard", pl.Int32, "the shard's number"),
    ("samples", pl.Int64, "samples in it"),
    ("bytes", pl.Int64, "size of the tar"),
    ("sha256", pl.String, "digest of the tar, hex"),
    ("idx_sha256", pl.String, "digest of the DALI index, hex"),
)
SHARDS_SCHEMA = pl.Schema({column.name: column.dtype for column in SHARDS})

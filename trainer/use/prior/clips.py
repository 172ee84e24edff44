"""The clips of a dataset as a stage's items, and their sounds."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import soundfile
from numpy.typing import NDArray

from javisc.manifests.errors import UserError
from javisc.manifests.io import Dataset
from javisc.manifests.members import MemberReader
from javisc.manifests.partitions import ORDER, ROWS, Partitions, by, in_order, place
from javisc.manifests.schema import DATASET_COLUMN
from javisc.manifests.spool import in_slices, spool
from javisc.trainer.data.bytes.decode import DecodeError
from javisc.trainer.data.sources.pool_names import stem
from javisc.trainer.use.prior.stage import PLACE, POOL_SCHEMA

#: A longer sound is no clip.
MAX_SECONDS = 3600
#: Where a clip is.
WHERE = (DATASET_COLUMN, "shard", "path", "flac_offset", "flac_size")
_TOLD = (
    "key", "id", "relpath", "text", "audio_text", "group", "split", "source_sha256", "audio_fps", "num_samples", "channels",
    "duration", "flac_crc32", "source_bytes",
)  # fmt: skip
#: Items that are made at a time.
_ITEMS = 5000
Wave = NDArray[np.float64]


def caption(row: Mapping[str, Any]) -> str | None:
    """What the sound is described by: `audio_text`, else `text`; None where neither says anything."""
    return next((text for name in ("audio_text", "text") if (text := (row.get(name) or "").strip())), None)


def clips(dataset: str, scratch: Path) -> pl.LazyFrame:
    """The dataset's clips sorted by key, on disk: where they are, what is told of them, and `name` (unique, what the pool calls
    each). scratch: a local folder; of a clip no more than its key is held.

    Raises UserError if it cannot be opened, has no rows, or has one key twice.
    """
    frame = Dataset.open(dataset).located().select(*WHERE, *_TOLD, "mp4_offset")
    keys = frame.select("key").collect(engine="streaming").to_series()
    if keys.is_empty():
        raise UserError(f"{dataset} has no rows: nothing to make")
    nothing = pl.all_horizontal(pl.col("mp4_offset", "flac_offset").is_null()).all()
    if frame.select(nothing).collect(engine="streaming").item():
        raise UserError(f"{dataset} holds no clips: give a dataset of `javisc build jav` or `javisc build audio`")
    order = keys.arg_sort()
    ordered = keys.gather(order)
    if (twice := ordered.filter((ordered == ordered.shift()).fill_null(False))).len():
        raise UserError(
            f"{dataset} has the key {twice[0]!r} twice: `javisc dedupe` it, or make the pools of each dataset apart"
        )
    places = np.empty(len(keys), np.uint32)
    places[order.to_numpy()] = np.arange(len(keys), dtype=np.uint32)
    rows = len(keys)
    del keys, ordered, order
    schema = pl.Schema({**frame.drop("mp4_offset").collect_schema(), "name": pl.String()})
    return spool(
        in_order(_named(frame, places, schema, scratch / "clips", -(-rows // ROWS))), scratch / "sorted", schema
    )


def _named(frame: pl.LazyFrame, places: NDArray[np.uint32], schema: pl.Schema, folder: Path, count: int) -> Partitions:
    """Clips with their names, dealt by their places. Those of one name lie together once, which tells whether it is unique."""
    together = Partitions(folder / "names", count, pl.Schema({**schema, ORDER: pl.UInt32()}))
    taken = 0
    for batch in in_slices(frame, ROWS):
        names = [stem(relpath or key) for relpath, key in batch.select("relpath", "key").iter_rows()]
        here = pl.Series(ORDER, places[taken : taken + batch.height])
        together.add(batch.with_columns(here, name=pl.Series(names, dtype=pl.String)), by("name"))
        taken += batch.height
    # Windows of one file have its path in common.
    called = pl.col("relpath").fill_null("") != ""
    alone = called & (called.sum().over("name") == 1) & (pl.col("name") != "")
    name = pl.when(alone).then("name").otherwise(pl.format("{}__at_{}", "name", "key"))
    dealt = Partitions(folder / "places", count, together.schema)
    for some in together:
        dealt.add(some.with_columns(name=name), place(count, len(places)))
    return dealt


def items(table: pl.LazyFrame) -> Iterator[dict[str, Any]]:
    """The clips of `clips` as a stage's items: what a part's digest is of, and PLACE."""
    for batch in table.collect_batches(chunk_size=_ITEMS, maintain_order=True):
        for row in batch.iter_rows(named=True):
            item = {name: row[name] for name in (*_TOLD, "name")}
            yield item | {PLACE: {name: row[name] for name in WHERE}}


def refused(item: Mapping[str, Any]) -> dict[str, Any]:
    """An item as `Made.refuse` takes it."""
    return {**item, "path": item[PLACE]["path"]}


def wave_of(item: Mapping[str, Any], reader: MemberReader) -> Wave:
    """A clip's sound, the mean of its channels, [samples] in -1 to 1. Raises DecodeError, or UserError where it is not there."""
    content = reader.read({**item, **item[PLACE]}, "flac")
    if content is None:
        raise DecodeError("the clip has no sound")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if file.frames > MAX_SECONDS * file.samplerate:
                raise DecodeError(f"{file.frames} samples are more than {MAX_SECONDS} s")
            if file.samplerate != item["audio_fps"]:
                raise DecodeError(f"{file.samplerate} samples a second, the manifest has {item['audio_fps']}")
            found: Wave = file.read(dtype="float64", always_2d=True).mean(axis=1)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        raise DecodeError(f"the sound cannot be decoded: {error}") from error
    if not len(found):
        raise DecodeError("the sound is empty")
    return found


def flac(wave: Wave, rate: int, bits: int = 16) -> bytes:
    """A wave as FLAC, rounded to `bits`; what lies outside -1 to 1 is cut. The same bytes for the same wave."""
    scale = 1 << (bits - 1)
    whole = np.clip(np.rint(wave * scale), -scale, scale - 1).astype(np.int32) << (32 - bits)
    out = io.BytesIO()
    soundfile.write(out, whole, rate, format="FLAC", subtype=f"PCM_{bits}")
    return out.getvalue()


def sound_row(item: Mapping[str, Any], key: str, relpath: str, wave: Wave, text: str | None) -> dict[str, Any]:
    """The manifest's row of a pool's sound that was made for a clip."""
    rate = int(item["audio_fps"])
    return dict.fromkeys(POOL_SCHEMA) | {
        "key": key,
        "id": stem(relpath).rpartition("/")[2],
        "relpath": relpath,
        "path": item[PLACE]["path"],
        "clip_key": item["key"],
        "group": item["group"],
        "split": item["split"],
        "text": text,
        "texts": None if text is None else [text],
        "num_samples": len(wave),
        "audio_fps": rate,
        "channels": 1,
        "duration": len(wave) / rate,
        "num_frames": int(len(wave) / rate * 24),
        "source_sha256": item["source_sha256"],
    }

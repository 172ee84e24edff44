"""Segments' features as a field of the dataset: `javisc score --keep-features` leaves them, a later score reads them again.

A clip's member is a safetensors file: `segment` (n,) their numbers, `audible` (n,) 1 where anything sounds, `picture` (n,T,C) and
`sound` (n,t,C') float32, and `silent` (m,) the numbers of segments that were not looked at because nothing sounds in them.
"""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from javisc.compiler.store.fields import FieldWriter
from javisc.compiler.store.files import Store
from javisc.manifests.errors import UserError
from javisc.manifests.fields import Field, check_name, field_shard
from javisc.manifests.io import Dataset
from javisc.manifests.kinds import PARTS
from javisc.manifests.schema import DATASET_COLUMN
from javisc.trainer.data.bytes.reader import CorruptSample, Reader
from javisc.trainer.data.index.catalog import Member
from javisc.trainer.use.desync import PRESETS

MEMBER = "safetensors"
#: What a located row says of its features: the field, and where the member lies there.
FIELD = "features_field"
PLACES = tuple(f"features_{part}" for part in PARTS)
#: A part's features wait beside its scores until the field is written.
WAITING = ".features.parquet"
#: And a clip's until its part is whole.
LEFT = ".left"
#: The field's setting that says what made the features.
MADE_BY = "features"
#: Windows of a clip that a score looks at, at most.
MOST_CROPS = 100
_SCHEMA = pl.Schema({"key": pl.String(), "shard": pl.Int32(), "content": pl.Binary()})


@dataclass(frozen=True)
class Segments:
    """A clip's segments that were looked at, whether anything sounds in each, and those left out since nothing does."""

    numbers: tuple[int, ...]
    audible: tuple[bool, ...]
    silent: tuple[int, ...] = ()


def packed(segments: Segments, said: Sequence[tuple[Tensor, Tensor]]) -> bytes:
    """The member of a clip from what was said of its segments, picture and sound."""
    picture, sound = (torch.stack([one[side].float().cpu() for one in said]).contiguous() for side in (0, 1))
    numbers = {"segment": segments.numbers, "audible": segments.audible, "silent": segments.silent}
    told = {name: torch.tensor([int(value) for value in values]) for name, values in numbers.items()}
    return safetensors.torch.save({**told, "picture": picture, "sound": sound})


def unpacked(
    content: bytes, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> tuple[Segments, list[tuple[Tensor, Tensor]]]:
    """What `packed` made. shapes: of a segment's picture and sound. Raises CorruptSample for other content."""
    try:
        told = safetensors.torch.load(content)
        numbers, audible, silent = (told[name].tolist() for name in ("segment", "audible", "silent"))
        picture, sound = told["picture"], told["sound"]
        if any(told[name].dim() != 1 for name in ("segment", "audible", "silent")):
            raise ValueError("numbers of segments in more than one row")
        if picture.dtype != torch.float32 or sound.dtype != torch.float32:
            raise ValueError(f"features of {picture.dtype} and {sound.dtype}")
        if picture.shape != (len(numbers), *shapes[0]) or sound.shape != (len(audible), *shapes[1]):
            raise ValueError(f"features of {tuple(picture.shape)} and {tuple(sound.shape)}")
        if len(numbers) != len(audible):
            raise ValueError(f"{len(audible)} segments' sound of {len(numbers)}")
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise CorruptSample(f"kept features: {error}") from error
    return Segments(tuple(numbers), tuple(map(bool, audible)), tuple(silent)), list(zip(picture, sound, strict=True))


def read_kept(row: Mapping[str, Any], reader: Reader) -> bytes | None:
    """The member of a located row, or None if it has none. Raises CorruptSample."""
    offset, size, crc32 = (row.get(name) for name in PLACES)
    if offset is None or not row.get(FIELD):
        return None
    member = Member(MEMBER, offset, size or 0, crc32)
    return reader.read(field_shard(row[DATASET_COLUMN], row[FIELD], row["shard"]), [member])[MEMBER]


def field_of(dataset: Dataset, made_by: str) -> Field | None:
    """The newest field of the dataset that holds what `made_by` said of segments."""
    held = [field for field in dataset.fields() if made_by and field.header.get("settings", {}).get(MADE_BY) == made_by]
    return held[-1] if held else None


def windows_of(field: Field | None) -> tuple[int, str]:
    """(crops, preset) of the score that made a field of features last: which windows' segments are in it. (0, "") if unknown."""
    told = field.header.get("made_by") if field else None
    crops, preset = (told.get("crops"), told.get("preset")) if isinstance(told, dict) else (0, "")
    known = isinstance(crops, int) and 1 <= crops <= MOST_CROPS and preset in ("", *PRESETS)
    return (int(crops or 0), str(preset)) if known else (0, "")


def with_features(dataset: Dataset, made_by: str) -> pl.LazyFrame:
    """The located rows, and of each where its features lie: in the newest field of the dataset that `made_by` made."""
    rows = dataset.located()
    there, held = set(rows.collect_schema().names()), field_of(dataset, made_by)
    if held is None or not {f"{held.name}_{MEMBER}_{part}" for part in PARTS} <= there:
        nothing = [pl.lit(None, pl.Int64).alias(name) for name in PLACES]
        return rows.with_columns(pl.lit(None, pl.String).alias(FIELD), *nothing)
    places = [pl.col(f"{held.name}_{MEMBER}_{part}").alias(place) for part, place in zip(PARTS, PLACES, strict=True)]
    return rows.with_columns(pl.lit(held.name).alias(FIELD), *places)


def check_field(dataset: Dataset, name: str, made_by: str) -> None:
    """Raise UserError, before anything is computed, if the features cannot be kept in that field."""
    check_name(name, "--keep-features")
    if not made_by:
        raise UserError(
            "--keep-features keeps what Synchformer says of segments; this checkpoint has none: leave it out"
        )
    if dataset.bare or "datasets" in dataset.header:
        raise UserError(
            f"--keep-features: {dataset.path} is a view or a table: give the dataset that holds its samples"
        )
    for field in dataset.fields():
        if field.name == name and field.header.get("settings", {}).get(MADE_BY) != made_by:
            raise UserError(
                f"--keep-features {name}: the dataset has a field of that name that something else made: give another name"
            )


class Shelf:
    """Where the processes of a score leave clips' features until it takes them: a folder or URL that both see.

    What a killed score left there goes a day later. scratch: a local folder.
    """

    def __init__(self, place: str, scratch: Path) -> None:
        self.store = Store(place or str(scratch), scratch)

    def leave(self, content: bytes) -> str:
        """Put features there; returns their name."""
        name = f"{uuid.uuid4().hex}{LEFT}"
        self.store.write(content, name)
        return name

    def take(self, name: str) -> bytes:
        """The features of that name, which are gone afterwards."""
        content = self.store.read(name)
        self.store.remove(name)
        return content

    def clear(self) -> None:
        """Remove what nobody will take."""
        for name, when in self.store.times().items():
            if name.endswith(LEFT) and time.time() - when > 86_400:
                self.store.remove(name)


class Keeping:
    """What `javisc score --keep-features NAME` keeps: files beside finished parts, and a field of them at the end."""

    def __init__(self, dataset: Dataset, name: str, made_by: str, store: Store, shelf: Shelf) -> None:
        check_field(dataset, name, made_by)
        self.dataset, self.name, self.made_by, self.store, self.shelf = dataset, name, made_by, store, shelf
        shelf.clear()

    def complete(self, part: str, rows: pl.DataFrame) -> bool:
        """True unless a finished part has a clip with a score whose features are nowhere."""
        if self.store.exists(part + WAITING):
            return True
        told = pl.read_parquet(self.store.fetch(f"{part}.parquet"), columns=["reason"], glob=False)["reason"]
        return len(told) == len(rows) and not (told.is_null() & rows[PLACES[0]].is_null()).any()

    def take(self, part: str, rows: pl.DataFrame, told: Sequence[dict[str, Any]]) -> None:
        """Put a part's features beside its scores, which are published after them. A clip that a field keeps stays."""
        made = []
        for (key, shard, place), values in zip(rows.select("key", "shard", PLACES[0]).iter_rows(), told, strict=True):
            if name := values.pop("features", None):
                content = self.shelf.take(name)
                if place is None:
                    made.append({"key": key, "shard": shard, "content": content})
        buffer = io.BytesIO()
        pl.DataFrame(made, schema=_SCHEMA).write_parquet(buffer, compression="uncompressed")
        self.store.write(buffer.getvalue(), part + WAITING)

    def write(self, parts: Sequence[str], made_by: Mapping[str, Any]) -> int:
        """Write the field from all parts, in the manifest's order; what waited is removed. Returns the clips that were added."""
        waiting = self.store.names() & {part + WAITING for part in parts}
        settings, added = {MADE_BY: self.made_by}, 0
        held = (
            pl.scan_parquet(self.store.fetch(name), glob=False).select(pl.len()).collect().item()
            for name in sorted(waiting)
        )
        if any(held):  # a field to which nothing comes keeps its record of what made it
            with FieldWriter(self.dataset.path, self.name, member=MEMBER, settings=settings, made_by=made_by) as writer:
                for part in parts:
                    for key, shard, content in self._clips(part).iter_rows() if part + WAITING in waiting else ():
                        if not writer.has(shard):
                            writer.add(key, {MEMBER: content})
                            added += 1
        for name in sorted(waiting):
            self.store.remove(name)
        return added

    def _clips(self, part: str) -> pl.DataFrame:
        return pl.read_parquet(self.store.fetch(part + WAITING), schema=_SCHEMA, glob=False)

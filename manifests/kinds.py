"""The kinds of members a sample can have: the one table that shards, rows, checks, exports and loaders ask.

A new kind is a row here, and the functions that the row names. It stands in `manifests` because tables take their columns from
it and every floor reads tables; what checks and reads members stands higher and is named, not imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

#: The manifest's columns of a member: where its content lies in the shard.
PARTS = ("offset", "size", "crc32")


@dataclass(frozen=True)
class MemberKind:
    """A kind of member: the file KEY.`extension` in a shard.

    holds: what it is, in words. check: `module:function`, called as f(content, row, recipe) → its defects, each a line. read:
    `module:function`, called as f(content, row) → what a trainer makes of it, arrays or a mapping; None: nothing reads it alone.
    measure: `module:function`, called as f(bytes or path) → the manifest columns that it tells by itself. free: its check holds
    for samples that no recipe made. most: bytes that a member may have; None: as many as
    a shard, since its check takes a long one piece by piece. base: it is one of every dataset's manifest columns; the others have
    theirs only where a dataset holds them.
    """

    extension: str
    holds: str
    check: str
    read: str | None = None
    measure: str | None = None
    free: bool = False
    most: int | None = None
    base: bool = True

    @property
    def columns(self) -> dict[str, pl.DataType]:
        """Its manifest columns, by name."""
        import polars as pl  # here, so that a worker that compiles clips starts without it

        return {f"{self.extension}_{part}": pl.Int64() for part in PARTS}


#: Every kind, in the order in which a sample's members stand in its shard.
MEMBERS: tuple[MemberKind, ...] = (
    MemberKind(
        "json", "the sample's own columns, canonical JSON", "javisc.compiler.check.record:json_defects", free=True,
        most=16 << 20,
    ),
    MemberKind(
        "flac", "sound", "javisc.compiler.check.clip:flac_defects", "javisc.trainer.data.bytes.decode:samples_of",
        "javisc.compiler.media.measured:of_sound",
    ),
    MemberKind(
        "mp4", "pictures", "javisc.compiler.check.clip:mp4_defects", "javisc.trainer.data.bytes.decode:frames_of",
        "javisc.compiler.media.measured:of_pictures",
    ),
    MemberKind(
        "safetensors",
        "latents",
        "javisc.compiler.check.latents:latent_defects",
        "javisc.trainer.data.sources.encoded:tensors_of",
        free=True, base=False, most=512 << 20,
    ),
    MemberKind(
        "mkv", "masks: FFV1, grey, white where the object is", "javisc.compiler.check.masks:mask_defects",
        "javisc.trainer.data.bytes.decode:masks_of", free=True, base=False, most=512 << 20,
    ),
)  # fmt: skip


def extensions() -> tuple[str, ...]:
    """The extensions of all kinds, in the order of the members of a sample."""
    return tuple(kind.extension for kind in MEMBERS)


#: What a clip is made of: the kinds that hold sound or pictures, which every dataset of clips has columns for.
MEDIA = tuple(kind.extension for kind in MEMBERS if kind.measure is not None)


def kind_of(extension: str) -> MemberKind | None:
    """The kind with that extension, None if there is none."""
    return next((kind for kind in MEMBERS if kind.extension == extension), None)


def held(row: Mapping[str, Any]) -> list[str]:
    """The extensions of the members that a manifest row says its sample has, in order."""
    return [end for end in extensions() if row.get(f"{end}_offset") is not None]

"""Rows of a dataset's tables: what a clip, its input and its place in a shard make together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from javisc.manifests.schema import CARRIED, MANIFEST_SCHEMA, SCORES_SCHEMA
from javisc.manifests.splits import split_of

#: Columns that KEY.json leaves out: they say where things lie on the machine that built, or where in the shard, or which crop
#: an evaluation takes, or what a model thinks of the clip, which may be chosen anew without touching a shard.
_PLACES = frozenset(
    {"path", "audio_path", "unpaired_audio_path", "shard", "group", "offset_sec", "vstart_sec", *SCORES_SCHEMA}
)
_MEMBER_PARTS = ("offset", "size", "crc32")
_ENDS = tuple(f"_{part}" for part in _MEMBER_PARTS)
#: What the schema has and KEY.json holds.
_HELD = frozenset(name for name in MANIFEST_SCHEMA if name not in _PLACES and not name.endswith(_ENDS))


def manifest_row(
    source: Mapping[str, Any], columns: Mapping[str, Any], split: Mapping[str, float] | None = None, seed: int = 0
) -> dict[str, Any]:
    """The manifest's row of a clip but for its place in the shard. source: the plan's row. columns: what the clip knows.

    A row without a group is of its source's: whatever is cut out of one file stays together. A row without a split gets the
    one that `split` (names and shares) and `seed` give its group. Raises TypeError for a column that the schema does not have: a
    misspelt measure would be lost without a word.
    """
    if unknown := sorted(set(columns) - set(MANIFEST_SCHEMA)):
        raise TypeError(f"a clip has the column {unknown[0]!r}, which manifests/schema.py does not know")
    row: dict[str, Any] = {name: columns.get(name) for name in MANIFEST_SCHEMA}
    row |= {name: source[name] for name in ("path", "id", "relpath", "key")}
    row |= {name: source.get(name) for name in CARRIED}
    row["source_bytes"] = columns.get("source_bytes", source["source_bytes"])
    row["audio_path"] = (source.get("audio_path") or source["path"]) if row["channels"] else None
    row["clip_start"], row["clip_end"] = source.get("window_start"), source.get("window_end")
    row["group"] = row["group"] or row["source_sha256"]
    if split and row["split"] is None:
        row["split"] = split_of(row["group"] or row["key"], split, seed)
    return row


def sample_json(row: Mapping[str, Any]) -> str:
    """KEY.json: the row as canonical JSON (sorted keys, no spaces, UTF-8, no nulls), the same wherever it was built."""
    content = {
        name: value
        for name, value in row.items()
        if value is not None and (name in _HELD or not (name in _PLACES or name.endswith(_ENDS)))
    }
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"


def placed(row: dict[str, Any], shard: int, members: list[list[Any]]) -> dict[str, Any]:
    """The row with its place: shard, and offset, size and CRC-32 of each member (extension, offset, size, crc32)."""
    row["shard"] = shard
    for extension, *parts in members:
        row |= {f"{extension}_{name}": value for name, value in zip(_MEMBER_PARTS, parts, strict=True)}
    return row


def rejected_row(source: Mapping[str, Any], reason: str, message: str) -> dict[str, Any]:
    """The row of a refused input."""
    return {
        "path": source["path"],
        "relpath": source["relpath"],
        "key": source["key"],
        "reason": reason,
        "message": message,
        "source_bytes": source["source_bytes"],
        "clip_start": source.get("window_start", source.get("clip_start")),
        "clip_end": source.get("window_end", source.get("clip_end")),
        "group": source.get("group"),
    }

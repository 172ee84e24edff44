"""What workers do when a shard's clips are made: pack it. Called by name, with JSON in and JSON out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from javisc.compiler.store.files import Store
from javisc.compiler.store.shard import Packed, pack_shard
from javisc.manifests.errors import UserError
from javisc.manifests.kinds import extensions


def other_bytes(shard: int, why: str) -> UserError:
    """What ends the run where a lost shard comes out otherwise than it was."""
    return UserError(
        f"shard {shard:06d} is lost and cannot be made again as it was: {why}; bring its sources back as they were, or run the "
        "build with --prune, which takes what is there now",
        exit_code=1,
    )


def pack(
    out: str,
    shard: int,
    samples: list[dict[str, str]],
    scratch: str,
    uploads: str,
    expected: dict[str, Any] | None = None,
    renditions: Mapping[str, Sequence[tuple[str, Sequence[int]]]] | None = None,
) -> dict[str, Any]:
    """Write and publish a shard from clips in `scratch`. samples: `key` and `json` (KEY.json's text), in key order.

    expected: see Unit. renditions: by name, the keys and sizes of the clips that have one, which become a shard of that field.
    Returns bytes, digests and every member's place. Raises UserError if it cannot be published.
    """
    store = Store(out, Path(uploads))

    there = set(os.listdir(scratch))

    def contents() -> Iterator[tuple[str, dict[str, bytes | Path]]]:
        for sample in samples:
            key = sample["key"]
            members: dict[str, bytes | Path] = {"json": sample["json"].encode()}
            members |= {end: Path(scratch, name) for end in extensions() if (name := f"{key}.{end}") in there}
            yield key, members

    def agree(packed: Packed) -> None:
        if expected is not None and (packed.sha256, packed.idx_sha256) != (expected["sha256"], expected["idx_sha256"]):
            raise other_bytes(shard, "its sources or the tools that encode them have changed")

    packed = pack_shard(store, shard, contents(), agree)
    # Before the base's commit, whose digest they name: killed in between, the base's shard comes out the same.
    for name, clips in (renditions or {}).items():
        files = [(key, Path(scratch, f"{key}.{name}.mp4"), size) for key, size in clips]
        if files:
            from javisc.compiler.store.renditions import (
                commit_renditions,
            )  # which makes tables: packing alone needs none

            commit_renditions(store.root, name, shard, packed.sha256, files, Path(uploads))
    return {
        "made": packed.made,
        "members": [[[m.extension, m.offset, m.size, m.crc32] for m in members] for members in packed.samples],
    }

"""What a check found, kept beside the dataset: an interrupted one goes on, and anybody can read what was checked last."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from javisc.compiler.store.files import Store
from javisc.manifests.errors import UserError

FOLDER = ".verify"
#: Seconds between two writings.
_EVERY = 10.0


class Kept:
    """The record DS/.verify/NAME.json of one check: its settings, the digest of the manifest, and what it found of each shard.

    A shard that was sound counts as checked while the check is unfinished, the manifest is the same and its files have the sizes
    and times that they had. note: why nothing could be written, None if it could.
    """

    def __init__(self, store: Store, name: str, settings: dict[str, Any], manifest: str, *, keep: bool) -> None:
        self.store, self.name, self.keep = store, f"{name}.json", keep
        self.told = {"settings": settings, "manifest": manifest}
        self.shards: dict[str, dict[str, Any]] = {}
        self.note: str | None = None
        self.written = time.monotonic()
        sizes: Mapping[str, float | int] = store.sizes("shards")
        times: Mapping[str, float | int] = store.times("shards")
        ends = ("tar", "idx")
        self.files: dict[str, list[float | int | None]] = {
            name: [found.get(f"{name}.{end}") for found in (sizes, times) for end in ends]
            for name in {file.partition(".")[0] for file in sizes}
        }
        before = self._read() if keep else {}
        if before.get("finished") is None and all(before.get(key) == value for key, value in self.told.items()):
            found = before.get("shards")
            for name, one in (found if isinstance(found, dict) else {}).items():
                if isinstance(one, dict) and one.get("defects") == [] and one.get("files") == self.files.get(name):
                    self.shards[name] = one

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self.store.read(FOLDER, self.name))
        except (FileNotFoundError, ValueError, RecursionError, OSError):
            return {}
        return found if isinstance(found, dict) else {}

    def add(self, shard: int, defects: list[str], bad: int | None) -> None:
        """Take what was found of a shard."""
        name = f"{shard:06d}"
        self.shards[name] = {"files": self.files.get(name), "defects": defects[:100], "bad": bad}
        if time.monotonic() - self.written > _EVERY:
            self.write()

    def write(self, **result: Any) -> None:
        """Write it down; with a result the check is finished."""
        self.written = time.monotonic()
        if not self.keep or self.note is not None:
            return
        finished = (
            {"finished": datetime.now(UTC).isoformat(timespec="seconds"), **result} if result else {"finished": None}
        )
        content = json.dumps({**self.told, **finished, "shards": self.shards}, indent=1).encode()
        try:
            self.store.write(content, FOLDER, self.name)
        except UserError as error:  # a dataset that can only be read is checked all the same
            self.note = f"the result is not kept: {str(error).partition(';')[0]}"

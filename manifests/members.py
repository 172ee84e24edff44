"""Reading samples' files out of shards by offset and size: what a table says is checked before memory is taken."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from types import TracebackType
from typing import Any, BinaryIO

from javisc.manifests import places
from javisc.manifests.errors import UserError
from javisc.manifests.io import shard_path
from javisc.manifests.schema import DATASET_COLUMN
from javisc.manifests.urls import join, opened

KEY = re.compile(r"[a-z0-9_]{1,255}")
#: A longer member than this is no clip of ours.
MAX_MEMBER_BYTES = 4 << 30
OPEN_SHARDS = 8


def check_key(key: Any) -> str:
    """The key, if it is one: [a-z0-9_]+, so that it can be a file's name. Raises UserError."""
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise UserError(f"key {str(key)[:80]!r} is not made of a-z, 0-9 and _: the manifest was not written by javisc")
    return key


class ShardAway(UserError):
    """A shard that is not there, or not to be read: no fault of any one sample in it."""


class MemberReader:
    """Reads KEY.mp4, KEY.flac and KEY.json of located rows (`Dataset.located`); keeps a few shards open. Use as a context."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()

    def __enter__(self) -> MemberReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._open.values():
            stream.close()
        self._open.clear()

    def read(self, row: Mapping[str, Any], kind: str, *, field: str | None = None) -> bytes | None:
        """The content of the row's member `kind` (mp4, flac or json), None where the row has none.

        field: whose shard holds it; the row is then one of that field's table. Raises ShardAway if the shard is absent, UserError
        if it is shorter than the row says.
        """
        offset, size = row[f"{kind}_offset"], row[f"{kind}_size"]
        if offset is None or size is None:
            return None
        key, shard = check_key(row["key"]), row["shard"]
        if not isinstance(shard, int) or not 0 <= shard <= 999_999 or offset < 0 or not 0 <= size <= MAX_MEMBER_BYTES:
            raise UserError(
                f"{key}: shard {shard}, offset {offset} and size {size} of its {kind} are not possible: the manifest is damaged"
            )
        root = row[DATASET_COLUMN]
        path = (
            shard_path(root, shard) if field is None else join(places.check(root), "fields", field, f"{shard:06d}.tar")
        )
        stream = self._stream(path)
        stream.seek(offset)
        content = stream.read(size)
        if len(content) != size:
            raise UserError(f"{path} ends before the {kind} of {key} does: run `javisc verify {row[DATASET_COLUMN]}`")
        return content

    def _stream(self, path: str) -> BinaryIO:
        stream = self._open.pop(path, None)
        if stream is None:
            try:
                stream = opened(path)
            except FileNotFoundError:
                raise ShardAway(f"{path} is not there: the manifest's shards were moved or deleted") from None
            except (OSError, ValueError, ImportError) as error:
                raise ShardAway(f"{path} cannot be read: {error}") from error
        self._open[path] = stream
        while len(self._open) > OPEN_SHARDS:
            self._open.popitem(last=False)[1].close()
        return stream

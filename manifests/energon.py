"""What Megatron-Energon reads: shards by split with their offsets, and `.nv-meta`, which it otherwise asks for at a prompt."""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from javisc.manifests.errors import UserError
from javisc.manifests.files import published_folder
from javisc.manifests.io import complete
from javisc.manifests.kinds import extensions, held
from javisc.manifests.members import MemberReader
from javisc.manifests.schema import MANIFEST_SCHEMA
from javisc.manifests.spool import in_slices
from javisc.manifests.urls import is_url

#: The version whose layout this is.
VERSION = "7.4.1"
#: A shard is closed at so many samples or bytes.
SAMPLES, BYTES = 1000, 512_000_000
#: Rows of the manifest that are held.
_SLICE = 20_000
_SPLIT = re.compile(r"[A-Za-z0-9_]{1,64}")


@dataclass
class _Shards:
    """The shards of one split: each closed one by its name and count of samples."""

    folder: Path
    split: str
    counts: dict[str, int] = field(default_factory=dict)
    offsets: list[int] = field(default_factory=list)
    tar: tarfile.TarFile | None = None

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        if self.tar is None:
            self.offsets = []
            self.tar = tarfile.open(self._path(), "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 (closed when full)
        self.offsets.append(self.tar.offset)
        for end, content in members.items():
            info = tarfile.TarInfo(f"{key}.{end}")
            info.size, info.mode = len(content), 0o644
            self.tar.addfile(info, io.BytesIO(content))
        if len(self.offsets) >= SAMPLES or self.tar.offset >= BYTES:
            self.close()

    def _path(self) -> Path:
        return self.folder / f"{self.split}-{len(self.counts):06d}.tar"

    def close(self) -> None:
        """Finish the open shard, and write where each of its samples begins, and the last one ends."""
        if self.tar is None:
            return
        path, ends = self._path(), self.tar.offset
        self.tar.close()
        path.with_suffix(".tar.idx").write_bytes(struct.pack(f"<{len(self.offsets) + 1}Q", *self.offsets, ends))
        self.counts[path.name], self.tar = len(self.offsets), None


def export_energon(frame: pl.LazyFrame, out: str) -> dict[str, int]:
    """Write located rows (Dataset.located) as a dataset of Energon's, a folder of shards by split. Returns samples by split.

    A sample is KEY.json, KEY.txt (its caption, where it has one) and its other members; rows without a split are `train`.
    Raises UserError for a folder that is there, a split's name that is none, and what cannot be read or written.
    """
    if is_url(out) or Path(out).exists():
        raise UserError(f"--energon {out}: is a URL or is there: give a local folder that is not")
    columns = {
        **MANIFEST_SCHEMA,
        **{name: kind for name, kind in frame.collect_schema().items() if name not in MANIFEST_SCHEMA},
    }
    rows = complete(frame, pl.Schema(columns))
    for split in rows.select(pl.col("split").drop_nulls().unique()).collect(engine="streaming")["split"].sort():
        if split and not _SPLIT.fullmatch(split):
            raise UserError(
                f"--energon: the split {split[:80]!r} would be a file's name: letters, digits and _ are allowed; `javisc split` "
                "draws others"
            )
    shards: dict[str, _Shards] = {}
    try:
        with published_folder(Path(out)) as folder, MemberReader() as reader:
            for batch in (piece for some in in_slices(rows, _SLICE) for piece in some.iter_slices(1000)):
                for row in batch.iter_rows(named=True):
                    split = row["split"] or "train"
                    shards.setdefault(split, _Shards(folder, split)).add(row["key"], _members(row, reader))
            for one in shards.values():
                one.close()
            if not shards:
                raise UserError("--energon: there is no sample to write")
            _describe(folder, shards)
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror or error}") from error
    return {split: sum(one.counts.values()) for split, one in sorted(shards.items())}


def _members(row: Mapping[str, Any], reader: MemberReader) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for end in extensions():
        if end in held(row) and (content := reader.read(row, end)) is not None:
            found[end] = content
        if end == "json" and row["text"]:
            found["txt"] = row["text"].encode()
    return found


def _describe(folder: Path, shards: Mapping[str, _Shards]) -> None:
    meta = folder / ".nv-meta"
    meta.mkdir()
    counts = {name: count for one in shards.values() for name, count in one.counts.items()}
    info = {"energon_version": VERSION, "shard_counts": counts}
    (meta / ".info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    parts = {
        split: list(shards[split].counts) if split in shards else [] for split in ("train", "val", "test", *shards)
    }
    (meta / "split.yaml").write_text(yaml.safe_dump({"split_parts": parts, "exclude": []}), encoding="utf-8")
    kind = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset"}
    (meta / "dataset.yaml").write_text(yaml.safe_dump(kind), encoding="utf-8")

"""Checking one shard: archive, index, every member against its row, and the readers that will open it."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.check.part import WHOLE, Part
from javisc.compiler.recipe import Recipe
from javisc.compiler.store.files import Store
from javisc.compiler.store.shard import Member, header, index_line, index_text, read_members
from javisc.manifests.entries import named
from javisc.manifests.errors import UserError
from javisc.manifests.files import sha256_of
from javisc.manifests.kinds import extensions, held, kind_of

#: Readers that take members whole are tried on shards whose members are no longer than this.
MAX_TRIED = 512 << 20


def verify_shard(
    root: str, row: dict[str, Any], manifest: str, recipe: dict[str, Any] | None, scratch: str
) -> list[str]:
    """In a worker: the defects of a shard, each beginning with "tar:" or "idx:". row: its row of shards.parquet."""
    store = Store(root, Path(scratch))
    name = f"{row['shard']:06d}"
    tar, idx = store.fetch("shards", f"{name}.tar"), store.fetch("shards", f"{name}.idx")
    rows = pl.scan_parquet(manifest, glob=False).filter(pl.col("shard") == row["shard"]).collect()
    defects: list[str] = []
    if (size := tar.stat().st_size) != row["bytes"]:
        defects.append(f"tar: {size} bytes, shards.parquet says {row['bytes']}")
    if sha256_of(tar) != row["sha256"]:
        defects.append("tar: SHA-256 differs from shards.parquet")
    if sha256_of(idx) != row["idx_sha256"]:
        defects.append("idx: SHA-256 differs from shards.parquet")
    members: dict[str, list[Member]] = {}
    lengths = [0]
    try:
        defects += _archive(tar, size, rows, None if recipe is None else Recipe.from_json(recipe), members, lengths)
    except UserError as error:
        return [*defects, f"tar: {error}"]
    expected = index_text([index_line(key, found) for key, found in members.items()])
    right = idx.stat().st_size <= 2 * len(expected) + 1000 and idx.read_text(errors="replace") == expected
    if not right:
        defects.append("idx: does not say what the tar holds")
    # Other readers take a member whole.
    return [*defects, *(_readers(tar, idx, members, right) if max(lengths) <= MAX_TRIED else ())]


def _archive(
    tar: Path,
    size: int,
    rows: pl.DataFrame,
    recipe: Recipe | None,
    members: dict[str, list[Member]],
    lengths: list[int],
) -> Iterator[str]:
    """Check every member against the manifest; collect what is there into `members`, and every length that it claims."""
    by_key = {found["key"]: found for found in rows.iter_rows(named=True)}
    with tar.open("rb") as stream:
        for name, offset, length, raw in read_members(stream, size):
            lengths.append(length)
            key, _, extension = name.partition(".")
            if raw != header(name, length):
                yield f"tar: {name}: the header has other fields than mode 0644, time 0 and no owner"
            kind = kind_of(extension)
            if kind is None or key not in by_key:
                yield f"tar: {name}: in no row of the manifest"
                continue
            found = by_key[key]
            if kind.most is not None and length > kind.most:
                yield f"tar: {name}: {length} bytes, at most {kind.most} are allowed"
                continue
            content: bytes | Part
            if kind.most is not None or length <= WHOLE:
                stream.seek(offset)
                content = stream.read(length)
                crc = zlib.crc32(content)
            else:
                content = Part(tar, offset, length)
                crc = content.crc32()
            members.setdefault(key, []).append(Member(extension, offset, length, crc))
            place = (offset, length, crc)
            if place != tuple(found.get(f"{extension}_{part}") for part in ("offset", "size", "crc32")):
                yield f"tar: {name}: offset, size or CRC-32 differ from the manifest"
            if recipe is None and not kind.free:
                continue
            defects = named(kind.check)(content, found, recipe)
            yield from (f"tar: {name}: {defect}" for defect in defects)
    for key, found in by_key.items():
        expected = held(found)
        there = [member.extension for member in members.get(key, [])]
        if there != expected or "json" not in there:
            yield f"tar: {key}: members are {', '.join(there) or 'none'}, the manifest has {', '.join(expected) or 'none'}"
    if list(members) != sorted(by_key) or rows["key"].to_list() != sorted(by_key):
        yield "tar: samples of the shard or rows of the manifest are not in the order of their keys"


def _readers(tar: Path, idx: Path, members: dict[str, list[Member]], right: bool) -> Iterator[str]:
    """Open the shard as training does: with webdataset, and with DALI's reader where it is installed.

    right: the index says what the tar holds. DALI follows one that does not wherever it leads, out of its own memory, too.
    """
    import webdataset

    sizes = {key: {m.extension: m.size for m in found} for key, found in members.items()}
    source = webdataset.WebDataset(
        str(tar), shardshuffle=False, empty_check=False, handler=webdataset.reraise_exception
    )
    try:
        read = {s["__key__"]: {end: len(s[end]) for end in extensions() if end in s} for s in source}
    except Exception as error:  # noqa: BLE001 (whatever the reader raises is the defect)
        yield f"tar: webdataset cannot read it: {type(error).__name__}: {error}"
        read = sizes
    if read != sizes:
        yield f"tar: webdataset reads {len(read)} samples, of which {sum(sizes.get(k) == v for k, v in read.items())} are right"
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali") and sizes and right:
        yield from _dali(tar, idx, list(sizes.values()))


def _dali(tar: Path, idx: Path, expected: list[dict[str, int]]) -> Iterator[str]:
    try:
        from nvidia.dali import fn, pipeline_def
    except (ImportError, OSError):  # an installation that cannot load says nothing about the shard
        return

    @pipeline_def(batch_size=16, num_threads=1, device_id=None, prefetch_queue_depth=1)
    def read() -> Any:
        components = fn.readers.webdataset(
            paths=[str(tar)],
            index_paths=[str(idx)],
            ext=list(extensions()),
            missing_component_behavior="empty",
            name="shard",
        )
        return tuple(components)  # type: ignore[arg-type]

    try:
        pipeline = read()
        pipeline.build()
        count = pipeline.epoch_size("shard")
        sizes: list[tuple[int, ...]] = []
        while len(sizes) < count:
            sizes += _sizes(pipeline.run())
    except (
        RuntimeError,
        UnicodeDecodeError,
    ) as error:  # the latter: DALI quotes the index's own bytes in its complaint
        yield f"idx: DALI cannot read the shard: {str(error).splitlines()[0]}"
        return
    if sizes[:count] != [tuple(found.get(end, 0) for end in extensions()) for found in expected]:
        yield f"idx: DALI reads {count} samples with other sizes than the tar has"


def _sizes(outputs: Any) -> list[tuple[int, ...]]:
    """Bytes of each component of each sample of a batch."""
    return list(zip(*([output.at(i).shape[0] for i in range(len(output))] for output in outputs), strict=True))

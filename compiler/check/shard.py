"""Checking one shard: archive, index, every member against its row, and the readers that will open it."""

from __future__ import annotations

import base64
import importlib.util
import io
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import polars as pl

from javisc.compiler.check.part import WHOLE, Part
from javisc.compiler.recipe import Recipe
from javisc.compiler.store.files import Store
from javisc.compiler.store.shard import BLOCK, Member, header, index_line, index_text, read_members
from javisc.manifests.entries import named
from javisc.manifests.errors import UserError
from javisc.manifests.files import sha256_of
from javisc.manifests.kinds import PARTS, extensions, held, kind_of

#: Readers that take members whole are tried on shards whose members are no longer than this.
MAX_TRIED = 512 << 20
#: How deep a check goes, each with all before it: names and sizes; SHA-256 of every file; every member's place, CRC-32 and
#: record, the index, and what other readers say; every frame and sample decoded.
LEVELS = ("sizes", "digests", "structure", "frames")


def verify_shard(
    root: str,
    row: dict[str, Any],
    rows: str,
    recipe: dict[str, Any] | None,
    level: str,
    drawn: bool,
    scratch: str | None,
) -> dict[str, Any]:
    """In a worker: check a shard, all of it or the drawn rows alone.

    row: its row of shards.parquet. rows: its rows of the manifest, see `packed`. level: see LEVELS. Returns `defects`, each
    beginning with "tar:" or "idx:", and of how many samples they are, where that is known (`bad`).
    """
    made_by = None if recipe is None else Recipe.from_json(recipe)
    with tempfile.TemporaryDirectory(prefix="javisc-verify-", dir=scratch) as folder:
        store = Store(root, Path(folder))
        if drawn and level != "digests":
            found = [list(_sample(store, row, each, made_by, level)) for each in unpacked(rows).iter_rows(named=True)]
            return {"defects": [line for lines in found for line in lines], "bad": sum(map(bool, found))}
        name = f"{row['shard']:06d}"
        tar, idx = store.fetch("shards", f"{name}.tar"), store.fetch("shards", f"{name}.idx")
        defects = list(_whole(tar, idx, row, rows, made_by, level))
    return {"defects": defects, "bad": None}


def packed(rows: pl.DataFrame) -> str:
    """Rows of a manifest as text, for a worker on whatever machine."""
    out = io.BytesIO()
    rows.write_parquet(out, compression="zstd")
    return base64.b64encode(out.getvalue()).decode()


def unpacked(text: str) -> pl.DataFrame:
    """The rows of `packed`."""
    return pl.read_parquet(io.BytesIO(base64.b64decode(text)), glob=False)


def _whole(
    tar: Path, idx: Path, row: dict[str, Any], packed_rows: str, recipe: Recipe | None, level: str
) -> Iterator[str]:
    """The defects of a whole shard: sizes and digests, and above the level `digests` every member, index and reader."""
    for file, column in ((tar, "sha256"), (idx, "idx_sha256")):
        if sha256_of(file) != row[column]:
            yield f"{file.suffix[1:]}: SHA-256 differs from shards.parquet"
    if LEVELS.index(level) < LEVELS.index("structure"):
        return
    members: dict[str, list[Member]] = {}
    lengths = [0]
    try:
        yield from _archive(tar, tar.stat().st_size, unpacked(packed_rows), recipe, members, lengths, level)
    except UserError as error:
        yield f"tar: {error}"
        return
    expected = index_text([index_line(key, found) for key, found in members.items()])
    right = idx.stat().st_size <= 2 * len(expected) + 1000 and idx.read_text(errors="replace") == expected
    if not right:
        yield "idx: does not say what the tar holds"
    if max(lengths) <= MAX_TRIED:  # other readers take a member whole
        yield from _readers(tar, idx, members, right)


def _sample(
    store: Store, row: dict[str, Any], found: dict[str, Any], recipe: Recipe | None, level: str
) -> Iterator[str]:
    """The defects of one sample, of which no more is read than its own members."""
    for extension in held(found):
        name, kind = f"{found['key']}.{extension}", kind_of(extension)
        offset, length, crc = (found.get(f"{extension}_{part}") for part in PARTS)
        most = row["bytes"] if kind is None or kind.most is None else min(kind.most, row["bytes"])
        if (
            offset is None
            or length is None
            or offset < BLOCK
            or not 0 <= length <= most
            or offset + length > row["bytes"]
        ):
            yield f"tar: {name}: offset {offset} and size {length} are not inside the shard"
            continue
        raw, content = _ranged(store, f"{row['shard']:06d}.tar", offset, length)
        if raw != header(name, length):
            yield f"tar: {name}: no header of it stands before byte {offset}"
        there = zlib.crc32(content) if isinstance(content, bytes) else content.crc32()
        if len(content) != length or there != crc:
            yield f"tar: {name}: size or CRC-32 differ from the manifest"
        yield from _content_defects(name, content, found, recipe, level)
    if "json" not in held(found):
        yield f"tar: {found['key']}: has no json"


def _content_defects(
    name: str, content: bytes | Part, found: dict[str, Any], recipe: Recipe | None, level: str
) -> Iterator[str]:
    """What a member's own check says of it; media are decoded at the level `frames` only."""
    kind = kind_of(name.rpartition(".")[2])
    if kind is None or (recipe is None and not kind.free) or (kind.extension != "json" and level != "frames"):
        return
    yield from (f"tar: {name}: {defect}" for defect in named(kind.check)(content, found, recipe))


def _ranged(store: Store, file: str, offset: int, length: int) -> tuple[bytes, bytes | Part]:
    """A member's header and content, read from its place in a shard; what is long goes through a file, piece by piece."""
    if not store.remote:
        tar = Path(store.root, "shards", file)
        with tar.open("rb") as stream:
            stream.seek(offset - BLOCK)
            raw = stream.read(BLOCK)
            return raw, stream.read(length) if length <= WHOLE else Part(tar, offset, length)
    raw = store.read_range(offset - BLOCK, BLOCK, "shards", file)
    if length <= WHOLE:
        return raw, store.read_range(offset, length, "shards", file) if length else b""
    store.scratch.mkdir(parents=True, exist_ok=True)
    local = store.scratch / "member"
    with local.open("wb") as out:
        for at in range(0, length, WHOLE):
            out.write(store.read_range(offset + at, min(WHOLE, length - at), "shards", file))
    return raw, Part(local, 0, local.stat().st_size)


def _archive(
    tar: Path,
    size: int,
    rows: pl.DataFrame,
    recipe: Recipe | None,
    members: dict[str, list[Member]],
    lengths: list[int],
    level: str,
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
            yield from _content_defects(name, content, found, recipe, level)
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
    sizes = {key: {m.extension: m.size for m in found} for key, found in members.items()}
    try:
        with _without_torch():
            webdataset = _webdataset()
            # Of a list it takes names as they are; in a name alone, braces and colons would stand for others.
            source = webdataset.WebDataset(
                [str(tar)], shardshuffle=False, empty_check=False, handler=webdataset.reraise_exception
            )
            read = {s["__key__"]: {end: len(s[end]) for end in extensions() if end in s} for s in source}
    except Exception as error:  # noqa: BLE001 (whatever the reader raises is the defect)
        yield f"tar: webdataset cannot read it: {type(error).__name__}: {error}"
        read = sizes
    if read != sizes:
        yield f"tar: webdataset reads {len(read)} samples, of which {sum(sizes.get(k) == v for k, v in read.items())} are right"
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali") and sizes and right:
        yield from _dali(tar, idx, list(sizes.values()))


@contextmanager
def _without_torch() -> Iterator[None]:
    """webdataset imports torch wherever it is installed, for loaders: two seconds of each process that checks shards."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules.update({"torch": cast(Any, None)})  # as if it were not installed
    try:
        yield
    finally:
        del sys.modules["torch"]


@cache
def _webdataset() -> Any:
    """The module, which is this check's own if it has no torch: who imports it later gets another, whole one."""
    webdataset = importlib.import_module("webdataset")
    if sys.modules.get("torch") is None:
        for name in [name for name in sys.modules if name.partition(".")[0] == "webdataset"]:
            del sys.modules[name]
    return webdataset


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

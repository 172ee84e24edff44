"""Shards: a USTAR archive whose bytes depend on its members alone, and the index that lets DALI seek in it."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from javisc.compiler.store.files import Store
from javisc.manifests.errors import UserError
from javisc.manifests.kinds import extensions

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

BLOCK = 512
#: USTAR writes sizes as eleven octal digits.
MAX_MEMBER = 8**11 - 1
INDEX_VERSION = "v1.2"
_COPY = 1 << 20
Content = bytes | Path


@dataclass(frozen=True)
class Member:
    """One file of a sample as it lies in the shard: extension, byte offset of the content, size, CRC-32."""

    extension: str
    offset: int
    size: int
    crc32: int


@dataclass(frozen=True)
class Packed:
    """A written shard: bytes and digests of tar and index, and each sample's members in order."""

    bytes: int
    sha256: str
    idx_bytes: int
    idx_sha256: str
    samples: list[list[Member]]

    @property
    def made(self) -> dict[str, Any]:
        """What a commit says of its shard."""
        return {name: getattr(self, name) for name in ("bytes", "sha256", "idx_bytes", "idx_sha256")}


def header(name: str, size: int) -> bytes:
    """The 512-byte USTAR header of a regular file: mode 0644, no owner, time 0."""
    raw = name.encode("ascii")
    if not 0 < len(raw) <= _NAME or not 0 <= size <= MAX_MEMBER or b"/" in raw:
        return _header(name, size)
    digits = b"%011o" % size
    total = _PLAIN_SUM + sum(raw) + sum(digits) - 11 * 48
    return b"".join((raw.ljust(_NAME, b"\0"), _PLAIN[100:124], digits, _PLAIN[135:148], b"%06o" % total, _PLAIN[154:]))


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


#: Longer names are divided into two fields of the header, which tarfile knows how to do.
_NAME = 100
_PLAIN = _header("", 0)
#: What the bytes of a header without a name sum up to, its checksum's own field counted as blanks.
_PLAIN_SUM = sum(_PLAIN[:148]) + 8 * 32 + sum(_PLAIN[156:])


def write_shard(samples: Iterable[tuple[str, dict[str, bytes | Path]]], tar: Path, idx: Path) -> Packed:
    """Write samples (key, content by extension) as a shard and its index.

    Members of a key stand in the order of manifests.kinds. Contents are bytes, or files that are copied in. Raises OSError.
    """
    digest = hashlib.sha256()
    packed: list[list[Member]] = []
    lines: list[str] = []
    with tar.open("wb") as out:
        at = 0

        def put(piece: bytes) -> None:
            nonlocal at
            out.write(piece)
            digest.update(piece)
            at += len(piece)

        for key, contents in samples:
            members = []
            for extension in extensions():
                if (content := contents.get(extension)) is None:
                    continue
                size = len(content) if isinstance(content, bytes) else content.stat().st_size
                put(header(f"{key}.{extension}", size))
                offset, crc = at, 0
                for piece in _pieces(content):
                    put(piece)
                    crc = zlib.crc32(piece, crc)
                assert at - offset == size, f"{content!r} changed while it was packed"
                put(bytes(-at % BLOCK))
                members.append(Member(extension, offset, size, crc))
            packed.append(members)
            lines.append(index_line(key, members))
        put(bytes(2 * BLOCK))
    index = index_text(lines).encode()
    idx.write_bytes(index)
    return Packed(at, digest.hexdigest(), len(index), hashlib.sha256(index).hexdigest(), packed)


def pack_shard(
    store: Store,
    shard: int,
    samples: Iterable[tuple[str, Mapping[str, Content]]],
    agree: Callable[[Packed], None] = lambda packed: None,
) -> Packed:
    """Publish a shard and its index; samples are (key, content by extension) in the order of their keys. Raises UserError.

    agree: sees what was packed before it is published, and raises where that must not be.
    """
    name = f"{shard:06d}"
    with store.publish(*store.packs, f"{name}.idx") as idx, store.publish(*store.packs, f"{name}.tar") as tar:
        packed = write_shard(((key, dict(contents)) for key, contents in samples), tar, idx)
        agree(packed)
    return packed


@dataclass(frozen=True)
class Small:
    """Shards of one small member a sample, in memory: of each the tar, the index and what a commit says of them.

    offsets, sizes, crc32: of the members of all of them, in order.
    """

    tars: list[memoryview]
    indices: list[bytes]
    made: list[dict[str, Any]]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    crc32: NDArray[np.int64]


def small_shards(extension: str, keys: pl.Series, contents: Sequence[bytes], counts: Sequence[int]) -> Small:
    """The tars and indices that write_shard writes of one small member a sample, made at once in memory: many times faster.

    counts: how many samples each shard has, one at least. Raises ValueError for names that do not fit one field of the header.
    """
    import numpy as np  # here, so that workers start without both
    import polars as pl

    names = keys + f".{extension}"
    if not min(counts) or names.str.len_bytes().max() > _NAME or names.str.contains("/", literal=True).any():  # type: ignore[operator]
        raise ValueError("names must have 1 to 100 bytes, none of them a slash")
    raw = np.array(names.to_list(), f"S{_NAME}").view(np.uint8).reshape(-1, _NAME)
    lengths = list(map(len, contents))
    sizes = np.array(lengths, np.int64)
    blocks = 1 + -(-sizes // BLOCK)
    shard = np.repeat(np.arange(len(counts)), counts)
    first = np.cumsum(blocks) - blocks + 2 * shard  # two blocks of zeros end each shard
    begins = first[np.cumsum(counts) - counts]
    whole = np.zeros(BLOCK * (int(blocks.sum()) + 2 * len(counts)), np.uint8)
    laid = whole.reshape(-1, BLOCK)
    plain = np.frombuffer(_PLAIN.rstrip(b"\0"), np.uint8)
    laid[first, : len(plain)] = plain
    laid[first, :_NAME] = raw
    digits = _octal(sizes, 11)
    laid[first, 124:135] = digits
    sums = raw.sum(1, dtype=np.int64) + digits.sum(1, dtype=np.int64)
    laid[first, 148:154] = _octal(sums + _PLAIN_SUM - 11 * 48, 6)
    view = whole.data
    for at, size, content in zip(((first + 1) * BLOCK).tolist(), lengths, contents, strict=True):
        view[at : at + size] = content
    offsets = (first + 1 - begins[shard]) * BLOCK
    parts = (pl.lit(f"{extension} "), pl.Series(offsets), pl.lit(" "), pl.Series(sizes), pl.lit(" "), names)
    lines = pl.select(pl.concat_str(parts)).to_series().to_list()
    found = Small([], [], [], offsets, sizes, np.array(list(map(zlib.crc32, contents)), np.int64))
    bounds = [*(begins * BLOCK).tolist(), len(whole)]
    for start, end, count in zip(bounds, bounds[1:], counts, strict=False):
        found.tars.append(view[start:end])
        idx = index_text(lines[:count]).encode()
        del lines[:count]
        digests = (hashlib.sha256(found.tars[-1]).hexdigest(), len(idx), hashlib.sha256(idx).hexdigest())
        found.indices.append(idx)
        found.made.append(Packed(end - start, *digests, []).made)
    return found


def _octal(values: NDArray[np.int64], digits: int) -> NDArray[np.uint8]:
    """Each value as so many octal digits in ASCII."""
    import numpy as np

    return ((values[:, None] >> (3 * np.arange(digits - 1, -1, -1))) & 7).astype(np.uint8) + np.uint8(48)


def _pieces(content: bytes | Path) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as stream:
        while piece := stream.read(_COPY):
            yield piece


def index_line(key: str, members: Iterable[Member]) -> str:
    """A sample's line of the index: extension, offset of the content, size and name of each member."""
    return " ".join(f"{m.extension} {m.offset} {m.size} {key}.{m.extension}" for m in members)


def index_text(lines: list[str]) -> str:
    """A DALI index of version 1.2, as NVIDIA's wds2idx writes it."""
    return "\n".join([f"{INDEX_VERSION} {len(lines)}", *lines]) + "\n"


def read_members(tar: BinaryIO, size: int) -> Iterator[tuple[str, int, int, bytes]]:
    """Yield (name, offset, size, header) of the members of a USTAR archive of `size` bytes, without trusting it.

    Raises UserError where the archive is no plain USTAR of regular files, or ends early.
    """
    at = 0
    while True:
        tar.seek(at)
        raw = tar.read(BLOCK)
        if raw == bytes(BLOCK):
            if at + 2 * BLOCK != size or tar.read(BLOCK + 1) != bytes(BLOCK):
                raise UserError(f"byte {at}: the archive goes on after its end mark, or lacks the second half of it")
            return
        try:
            info = tarfile.TarInfo.frombuf(raw, "ascii", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError) as error:
            raise UserError(f"byte {at}: no tar header ({error})") from error
        # The parser stops at the checksum's NUL; what we write ends in NUL and a space.
        if raw[154:156] != b"\0 ":
            raise UserError(f"byte {at}: no tar header (its checksum field is damaged)")
        if info.type != tarfile.REGTYPE or info.size < 0 or at + BLOCK + info.size > size:
            raise UserError(f"byte {at}: {info.name!r} is no regular file of {info.size} bytes inside the archive")
        yield info.name, at + BLOCK, info.size, raw
        at += BLOCK + info.size + -info.size % BLOCK

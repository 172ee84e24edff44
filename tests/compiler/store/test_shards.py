"""Shards against independent readers: tarfile, NVIDIA's wds2idx, webdataset, DALI and Hugging Face datasets."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from javisc.compiler.store.shard import Packed, index_line, index_text, read_members, write_shard
from javisc.manifests.errors import UserError
from javisc.manifests.kinds import extensions

KEYS = st.text("abcdefghijklmnopqrstuvwxyz0123456789_", min_size=1, max_size=40)
MEDIA = st.binary(max_size=1600)
CONTENTS = st.fixed_dictionaries({"json": st.binary(max_size=1200)}, optional={"flac": MEDIA, "mp4": MEDIA})
Samples = dict[str, dict[str, bytes]]
QUIET = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, samples: Samples) -> tuple[Path, Path, Packed]:
    tar, idx = folder / "000000.tar", folder / "000000.idx"
    return tar, idx, write_shard(sorted(samples.items()), tar, idx)  # type: ignore[arg-type]


@QUIET
@given(samples=st.dictionaries(KEYS, CONTENTS, max_size=6))
def test_tarfile_reads_what_was_written_at_the_places_that_are_named(tmp_path: Path, samples: Samples) -> None:
    tar, idx, packed = written(tmp_path, samples)
    raw = tar.read_bytes()
    assert len(raw) == packed.bytes and hashlib.sha256(raw).hexdigest() == packed.sha256
    assert hashlib.sha256(idx.read_bytes()).hexdigest() == packed.idx_sha256
    expected = [
        (f"{key}.{end}", samples[key][end]) for key in sorted(samples) for end in extensions() if end in samples[key]
    ]
    with tarfile.open(tar, "r:") as archive:
        found = []
        for info in archive:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname, info.mode) == (0, 0, 0, "", "", 0o644)
            content = archive.extractfile(info)
            assert content is not None
            found.append((info.name, content.read()))
    assert found == expected
    places = [member for members in packed.samples for member in members]
    for (name, content), member in zip(expected, places, strict=True):
        assert raw[member.offset : member.offset + member.size] == content and name.endswith(member.extension)
        assert member.crc32 == zlib.crc32(content) and raw[member.offset - 512 :][257:263] == b"ustar\0"
    with tar.open("rb") as stream:
        listed = [(name, offset, size) for name, offset, size, _ in read_members(stream, len(raw))]
    assert listed == [(name, member.offset, member.size) for (name, _), member in zip(expected, places, strict=True)]


@QUIET
@given(samples=st.dictionaries(KEYS, CONTENTS, min_size=1, max_size=4), data=st.data())
def test_a_damaged_archive_is_an_error_and_never_a_crash(tmp_path: Path, samples: Samples, data: st.DataObject) -> None:
    tar, _, _ = written(tmp_path, samples)
    raw = bytearray(tar.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        raw[data.draw(st.integers(0, 511))] ^= data.draw(st.integers(1, 255))  # in the first header
    with pytest.raises(UserError, match="byte"):
        list(read_members(io.BytesIO(bytes(raw)), len(raw)))


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Samples]:
    samples = {
        f"{number:024x}": {
            "json": json.dumps({"text": f"caption {number}", "num": number}).encode(),
            **({"flac": bytes([number]) * (number * 100 + 1)} if number % 3 else {}),
            "mp4": bytes([255 - number]) * (number * 700 + 1),
        }
        for number in range(9)
    }
    folder = tmp_path_factory.mktemp("shard")
    tar, idx, _ = written(folder, samples)
    return tar, idx, samples


def test_the_index_is_the_one_that_nvidias_tool_makes(shard: tuple[Path, Path, Samples], tmp_path: Path) -> None:
    wds2idx = pytest.importorskip("wds2idx")
    with wds2idx.IndexCreator(str(shard[0]), str(tmp_path / "theirs.idx"), verbose=False) as creator:
        creator.create_index()
    assert shard[1].read_bytes() == (tmp_path / "theirs.idx").read_bytes()


def test_an_index_line_names_extension_offset_size_and_member() -> None:
    from javisc.compiler.store.shard import Member

    members = [Member("json", 512, 3, 0), Member("mp4", 1536, 9, 0)]
    assert index_text([index_line("a_1", members)]) == "v1.2 1\njson 512 3 a_1.json mp4 1536 9 a_1.mp4\n"


def test_webdataset_reads_it(shard: tuple[Path, Path, Samples]) -> None:
    webdataset = pytest.importorskip("webdataset")
    found = {
        s["__key__"]: {end: s[end] for end in extensions() if end in s}
        for s in webdataset.WebDataset(str(shard[0]), shardshuffle=False)
    }
    assert found == shard[2]


def test_dali_reads_it_on_the_cpu(shard: tuple[Path, Path, Samples]) -> None:
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=4, num_threads=1, device_id=None)
    def read():  # type: ignore[no-untyped-def]
        return tuple(
            fn.readers.webdataset(
                paths=[str(shard[0])],
                index_paths=[str(shard[1])],
                ext=list(extensions()),
                missing_component_behavior="empty",
                name="r",
            )
        )

    pipeline = read()
    pipeline.build()
    count = pipeline.epoch_size("r")
    assert count == len(shard[2])
    found: list[tuple[bytes, ...]] = []
    while len(found) < count:
        outputs = pipeline.run()
        found += zip(*([output.at(i).tobytes() for i in range(len(output))] for output in outputs), strict=True)
    assert found[:count] == [
        tuple(contents.get(end, b"") for end in extensions()) for _, contents in sorted(shard[2].items())
    ]


def test_hugging_face_datasets_reads_it(shard: tuple[Path, Path, Samples], tmp_path: Path) -> None:
    """With the fields that docs/dataset.md tells it, whichever members a sample has."""
    datasets = pytest.importorskip("datasets")
    content = datasets.Value("binary")
    fields = {"__key__": datasets.Value("string"), "json": datasets.Json(), "flac": content, "mp4": content}
    found = datasets.load_dataset(
        "webdataset",
        data_files={"train": str(shard[0])},
        split="train",
        streaming=True,
        features=datasets.Features(fields),
        cache_dir=str(tmp_path / "cache"),
    )
    rows = list(found)
    assert [row["__key__"] for row in rows] == sorted(shard[2])
    for row, (_, contents) in zip(rows, sorted(shard[2].items()), strict=True):
        assert row["json"] == json.loads(contents["json"])
        assert (row["flac"], row["mp4"]) == (contents.get("flac"), contents.get("mp4"))


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        (tarfile.SYMTYPE, 0, "no regular file"),
        (tarfile.LNKTYPE, 0, "no regular file"),
        (tarfile.DIRTYPE, 0, "no regular file"),
        (tarfile.CHRTYPE, 0, "no regular file"),
        (tarfile.REGTYPE, 1 << 40, "no regular file of 1099511627776 bytes inside"),
        (tarfile.REGTYPE, 513, "no regular file of 513 bytes inside"),
    ],
)
def test_links_devices_and_members_beyond_the_end_are_refused(
    tmp_path: Path, kind: bytes, size: int, said: str
) -> None:
    """The last member of a shard becomes something else; the header's own checksum is right."""
    tar, _, _ = written(tmp_path, {"a": {"json": b"{}"}})
    info = tarfile.TarInfo("b.json")
    info.type, info.size, info.linkname = kind, size, "../../etc/passwd" if size == 0 else ""
    raw = tar.read_bytes()[:-1024] + info.tobuf(tarfile.GNU_FORMAT) + bytes(512 if size else 1024)
    with pytest.raises(UserError, match=said):
        list(read_members(io.BytesIO(raw), len(raw)))


def test_the_checksum_of_a_long_file_is_that_of_all_its_pieces(tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096 + b"and more"  # longer than what is copied at a time
    (tmp_path / "film.mp4").write_bytes(content)
    packed = write_shard([("a", {"json": b"{}", "mp4": tmp_path / "film.mp4"})], tmp_path / "t.tar", tmp_path / "t.idx")
    assert packed.samples[0][-1].crc32 == zlib.crc32(content) and packed.samples[0][-1].size == len(content)

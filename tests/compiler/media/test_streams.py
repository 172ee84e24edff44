"""Which streams are taken and what is said of the others: unknown codecs, encryption, orders, side data, raw streams."""

from __future__ import annotations

import io
import itertools
import shutil
import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.media.boxes import BoxError, boxes, file_boxes
from javisc.compiler.media.edits import read_movie
from javisc.compiler.media.open import open_source, packets, probe
from javisc.compiler.media.orientation import display_matrix, orientation
from javisc.compiler.media.tracks import codec_of
from javisc.compiler.media.transcode import Clip, transcode
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import PRESETS
from support.media import Spec, decode_pictures, ffmpeg, picture, sound, write
from support.shared import SHARED, need

FAST = PRESETS["jav"].replace(encoder_preset="ultrafast")
SILENT = FAST.replace(allow_silent=True)
SHORT = Spec(seconds=1.0)
#: Names that no decoder has.
FOURCCS = st.text("abcdefghijkxyz0123456789", min_size=2, max_size=2).map("zq".__add__)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write(SHORT, tmp_path_factory.mktemp("whole") / "whole.mp4").read_bytes()


def outcome(source: Path, scratch: Path, recipe: object = FAST) -> Clip:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return transcode(source, recipe, scratch)  # type: ignore[arg-type]


def refusal(source: Path, scratch: Path, recipe: object = FAST) -> Rejected:
    with pytest.raises(Rejected) as caught:
        outcome(source, scratch, recipe)
    return caught.value


def several(path: Path, order: str) -> Path:
    """An MP4 with tracks in this order: v is a picture, s is sound. The n-th picture shows numbers from 50 n on."""
    with av.open(str(path), "w", format="mp4") as out:
        tracks = []
        for kind in order:
            if kind == "v":
                stream = out.add_stream("libx264", rate=24)
                stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            else:
                stream = out.add_stream("aac", rate=16000, layout="mono")
            stream.codec_context.thread_count = 1
            tracks.append(stream)
        first = itertools.count(0, 50)
        for kind, stream in zip(order, tracks, strict=True):
            if kind == "v":
                base = next(first)
                for number in range(24):
                    frame = av.VideoFrame.from_ndarray(picture(base + number, number / 24), "rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, 24)
                    out.mux(stream.encode(frame))
            else:
                block = av.AudioFrame.from_ndarray(sound(16000, 1.0)[None], "fltp", "mono")
                block.sample_rate, block.pts, block.time_base = 16000, 0, Fraction(1, 16000)
                out.mux(stream.encode(block))
            out.mux(stream.encode(None))
    return path


def rename(content: bytes, old: bytes, new: bytes, which: int) -> bytes:
    """The file with the `which`-th sample description of type `old` renamed; `esds`, which tells the codec too, goes."""
    if old == b"mp4a" and new != b"enca":
        content = content.replace(b"esds", b"free", 1)
    at = -1
    for _ in range(which + 1):
        at = content.index(old, content.index(b"stsd", at + 1))
    return content[:at] + new + content[at + 4 :]


@pytest.mark.parametrize(("old", "kind"), [(b"avc1", "picture"), (b"mp4a", "sound")])
@settings(max_examples=8, deadline=None)
@given(name=FOURCCS)
def test_an_unknown_codec_is_named(whole: bytes, old: bytes, kind: str, name: str, tmp_path_factory: object) -> None:
    folder = Path(tmp_path_factory.mktemp("unknown"))  # type: ignore[attr-defined]
    source = folder / "source.mp4"
    source.write_bytes(rename(whole, old, name.encode(), 0))
    for recipe in (FAST, SILENT):  # a sound that nobody can decode is not silence
        said = refusal(source, folder / "scratch", recipe)
        assert said.reason == "unsupported" and name in said.message and kind in said.message
    with pytest.raises(Rejected, match=name):
        probe(source)


@pytest.mark.parametrize(("old", "new", "name"), [(b"mp4a", b"mhm1", "mpegh_3d_audio"), (b"avc1", b"evc1", "evc")])
def test_a_codec_without_a_decoder_is_named(whole: bytes, tmp_path: Path, old: bytes, new: bytes, name: str) -> None:
    source = tmp_path / "source.mp4"
    source.write_bytes(rename(whole, old, new, 0))
    said = refusal(source, tmp_path / "scratch", SILENT)
    assert said.reason == "unsupported" and name in said.message


def test_unknown_codecs_of_other_containers(tmp_path: Path) -> None:
    source = write(Spec("matroska", audio="pcm_s16le", seconds=1.0), tmp_path / "source.mkv")
    content = source.read_bytes()
    for old, new in ((b"V_MPEG4/ISO/AVC", b"V_MPEG9/XYZ/AVC"), (b"A_PCM/INT/LIT", b"A_QCM/INT/LIT")):
        source.write_bytes(content.replace(old, new))
        said = refusal(source, tmp_path / "scratch", SILENT)
        assert said.reason == "unsupported" and new.decode() in said.message
    source = write(Spec("avi", "mpeg4", "pcm_s16le", seconds=1.0), tmp_path / "source.avi")
    source.write_bytes(source.read_bytes().replace(b"FMP4", b"QQ77"))
    said = refusal(source, tmp_path / "scratch")
    assert said.reason == "unsupported" and "QQ77" in said.message


@pytest.mark.parametrize("order", ["vvs", "svv", "vsv", "vsvs", "ssvv"])
def test_the_first_track_that_decodes_is_taken(tmp_path: Path, order: str) -> None:
    content = several(tmp_path / "several.mp4", order).read_bytes()
    content = rename(content, b"avc1", b"zzz1", 0)
    if order.count("s") > 1:
        content = rename(content, b"mp4a", b"apac", 0)  # as in an iPhone's spatial sound
    source = tmp_path / "source.mp4"
    source.write_bytes(content)
    clip = outcome(source, tmp_path / "scratch")
    assert clip.mp4 is not None and clip.flac is not None
    assert decode_pictures(clip.mp4).numbers == list(range(50, 74))
    assert clip.columns["silent"] is False


def test_encrypted_streams(whole: bytes, tmp_path: Path) -> None:
    plain, source = tmp_path / "plain.mp4", tmp_path / "source.mp4"
    plain.write_bytes(whole)
    key = ("-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid", "a7e61c373e219033c21091fa607bf3b8")
    ffmpeg("-i", plain, "-c", "copy", "-encryption_scheme", "cenc-aes-ctr", *key, source)
    said = refusal(source, tmp_path / "scratch")
    assert said.reason == "unsupported" and "encrypted" in said.message and "h264" in said.message
    source.write_bytes(rename(whole, b"mp4a", b"enca", 0))
    said = refusal(source, tmp_path / "scratch", SILENT)
    assert said.reason == "unsupported" and "sound is encrypted" in said.message


def test_the_name_of_a_codec_cannot_be_forged_by_a_title(whole: bytes, tmp_path: Path) -> None:
    plain, source = tmp_path / "plain.mp4", tmp_path / "source.mp4"
    plain.write_bytes(whole)
    ffmpeg("-i", plain, "-c", "copy", "-metadata", "title=x\n  Stream #0:0: Video: fake (fak1 / 0x316B6166)", source)
    source.write_bytes(rename(source.read_bytes(), b"avc1", b"zzz1", 0))
    with av.open(str(source)) as container:
        assert codec_of(container, container.streams.video[0], source) == "zzz1"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31 - 1))
def test_side_data_of_any_kind_has_a_type(value: int) -> None:
    kind = Type(value)
    assert kind.value == value and (kind is Type.DISPLAYMATRIX) == (value == Type.DISPLAYMATRIX.value)


def exif_jpeg(number: int, turned: int) -> bytes:
    """A JPEG whose EXIF says how it is to be turned."""
    out = io.BytesIO()
    with av.open(out, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
        frame = av.VideoFrame.from_ndarray(picture(number, 0), "rgb24")
        frame.pts = 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    entry = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([turned, 0, 0, 0]) + bytes(4)
    block = b"Exif\0\0" + entry
    plain = out.getvalue()
    return plain[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + plain[2:]


@pytest.mark.parametrize(
    ("turned", "clockwise", "flip"), [(1, 0, False), (3, 180, False), (6, 90, False), (2, 0, True)]
)
def test_motion_jpeg_with_exif(tmp_path: Path, turned: int, clockwise: int, flip: bool) -> None:
    """EXIF in every picture is side data that PyAV's list lacks; the turn that it asks for is made."""
    source = tmp_path / "source.mkv"
    with av.open(str(source), "w", format="matroska") as out:
        stream = out.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
        tone = out.add_stream("pcm_s16le", rate=16000, layout="mono")
        for number in range(24):
            packet = av.Packet(exif_jpeg(number, turned))
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 24)
            packet.is_keyframe = True
            out.mux(packet)
        wave = (sound(16000, 1.0) * 32767).astype(np.int16)
        block = av.AudioFrame.from_ndarray(wave[None], "s16", "mono")
        block.sample_rate, block.pts, block.time_base = 16000, 0, Fraction(1, 16000)
        out.mux(tone.encode(block))
    with av.open(str(source)) as container:
        turn = orientation(display_matrix(next(container.decode(video=0))))
    assert (turn.clockwise, turn.flip) == (clockwise, flip)
    clip = outcome(source, tmp_path / "scratch")
    assert clip.columns["source_rotation"] == clockwise and clip.columns["num_frames"] == 24
    if turned == 1:
        assert clip.mp4 is not None and decode_pictures(clip.mp4).numbers == list(range(24))


@pytest.mark.parametrize(
    ("codec", "container", "rate", "options"),
    [
        ("libx264", "h264", "30", (("bf", "2"),)),
        ("libx264", "h264", "24000/1001", ()),
        ("libx264", "h264", "50", (("bf", "0"),)),
        ("libx265", "hevc", "60", (("x265-params", "log-level=none"),)),
        ("mpeg2video", "mpeg2video", "30", (("bf", "2"),)),
        ("mpeg4", "m4v", "30", (("bf", "2"),)),
    ],
)
def test_raw_streams_have_the_rate_of_their_headers(
    tmp_path: Path, codec: str, container: str, rate: str, options: tuple[tuple[str, str], ...]
) -> None:
    spec = Spec(container, codec, None, fps=rate, seconds=2.0, video_options=options)
    source = write(spec, tmp_path / "source.mp4")  # whatever its name says
    clip = outcome(source, tmp_path / "scratch", SILENT)
    assert clip.mp4 is not None
    shown = decode_pictures(clip.mp4).numbers
    times = [n / Fraction(rate) for n in range(len(spec.frame_times))]
    assert len(shown) in (48, 49) and clip.columns["source_fps"] == pytest.approx(float(Fraction(rate)), rel=1e-4)
    for tick, number in enumerate(shown):
        assert abs(float(times[number]) - tick / 24) <= 1 / 48 + 0.5 / float(Fraction(rate)) + 1e-6, (tick, number)


def test_a_raw_stream_without_a_rate_is_no_guess(tmp_path: Path) -> None:
    source = tmp_path / "source.h265"
    quiet = "log-level=none:no-vui-timing-info=1"
    ffmpeg(
        "-f", "lavfi", "-i", "testsrc=size=160x120:rate=30:duration=1", "-c:v", "libx265", "-x265-params", quiet, source
    )
    said = refusal(source, tmp_path / "scratch", SILENT)
    assert said.reason == "timestamps" and "no rate" in said.message


@pytest.mark.parametrize(
    ("name", "recipe", "frames"), [("lcevc_sei.mp4", FAST, 120), ("raw_h264_30fps.mp4", SILENT, 120)]
)
def test_cases(tmp_path: Path, name: str, recipe: object, frames: int) -> None:
    clip = outcome(need(SHARED / "cases" / name), tmp_path / "scratch", recipe)
    assert clip.columns["num_frames"] == frames and clip.columns["duration"] == 5.0


def test_case_of_an_unknown_codec(tmp_path: Path) -> None:
    said = refusal(need(SHARED / "cases" / "unknown_video_codec.mp4"), tmp_path / "scratch")
    assert said.reason == "unsupported" and "zzz1" in said.message


HEADERS = (b"tkhd", b"mdhd", b"mvhd", b"elst")


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("left", [0, 1, 5])
def test_a_header_that_ends_early_is_corrupt(whole: bytes, tmp_path: Path, kind: bytes, left: int) -> None:
    """The box keeps `left` bytes of content; a free box takes the rest of its place."""
    at = whole.index(kind) - 4
    size = int.from_bytes(whole[at : at + 4], "big")
    kept = (8 + left).to_bytes(4, "big") + whole[at + 4 : at + 8 + left]
    rest = size - 8 - left
    filler = rest.to_bytes(4, "big") + b"free" + bytes(rest - 8)
    source = tmp_path / "source.mp4"
    source.write_bytes(whole[:at] + kept + filler + whole[at + size :])
    said = refusal(source, tmp_path / "scratch")
    assert said.reason == "corrupt" and kind.decode() in said.message


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_walkers_of_boxes_end_in_rejected_or_not_at_all(
    whole: bytes, data: st.DataObject, tmp_path_factory: object
) -> None:
    """Cut and changed headers raise `Rejected` and nothing else."""
    damaged = bytearray(whole)
    moov = whole.index(b"moov") - 4
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(moov, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = Path(tmp_path_factory.getbasetemp()) / "damaged.mp4"  # type: ignore[attr-defined]
    path.write_bytes(damaged[: data.draw(st.integers(moov, len(whole)))])
    try:
        read_movie(path)
    except Rejected as error:
        assert error.reason == "corrupt"


def test_boxes_stop_at_nonsense() -> None:
    box = (12).to_bytes(4, "big") + b"free" + b"1234"
    assert [(found.kind, found.whole) for found in file_boxes(io.BytesIO(box * 3))] == [(b"free", True)] * 3
    (cut,) = file_boxes(io.BytesIO(box[:-1]))
    assert not cut.whole and cut.end == 11
    with pytest.raises(BoxError):
        list(boxes(io.BytesIO((4).to_bytes(4, "big") + b"free" * 2), 0, 12))


def test_a_stream_that_appears_midway_ends_nothing(tmp_path: Path) -> None:
    """Two MPEG-TS of other PIDs in one file: PyAV reads past its list of streams. The first one's pictures all come out."""
    first = write(Spec("mpegts", audio="mp2", rate=48000, seconds=8.0), tmp_path / "a.ts")
    more = Spec("mpegts", audio="mp2", rate=48000, seconds=1.0, format_options=(("mpegts_start_pid", "500"),))
    second = write(more, tmp_path / "b.ts")
    source = tmp_path / "source.ts"
    source.write_bytes(first.read_bytes() * 3 + second.read_bytes() + first.read_bytes())
    for _ in range(5):  # what lies behind the list is chance
        with open_source(source) as opened:
            video = opened.video()
            assert video is not None
            found = [packet.size for packet in packets(opened.container, video)]
        assert found.count(0) == 1 and found[-1] == 0 and len(found) > 600


def test_what_pyav_raises_after_the_last_packet_is_the_end() -> None:
    class Container:
        def demux(self, streams: list[str]) -> Iterator[str]:
            yield from streams
            raise IndexError("list index out of range")

    assert list(packets(Container(), "a", "b")) == ["a", "b"]  # type: ignore[arg-type]


def test_a_second_open_takes_the_same_file(tmp_path: Path) -> None:
    """The raw rate is asked for by opening again: the first handle does not stay."""
    source = write(Spec("h264", audio=None, fps="30", seconds=0.5), tmp_path / "source.264")
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_source(source) as opened:
        assert len(list(Path("/proc/self/fd").iterdir())) == before + 1
        assert opened.container.streams.video[0].average_rate == 30


#: Bytes of version 0 behind version and flags, and what version 1 has in their place: dates and lengths of 64 bits.
FIELDS = {b"mvhd": (">IIII", ">QQIQ"), b"mdhd": (">IIII", ">QQIQ"), b"tkhd": (">IIIII", ">QQIIQ")}


def wide(content: bytes) -> bytes:
    """Boxes of headers with every date, length and edit in version 1 of its box."""
    made, at = b"", 0
    while at < len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + size]
        if kind in (b"moov", b"trak", b"mdia", b"edts"):
            body = wide(body)
        elif kind in FIELDS:
            old, new = FIELDS[kind]
            numbers = struct.unpack_from(old, body, 4)
            body = b"\1" + body[1:4] + struct.pack(new, *numbers) + body[4 + struct.calcsize(old) :]
        elif kind == b"elst":
            entries = [struct.unpack_from(">Iii", body, 8 + 12 * n) for n in range(int.from_bytes(body[4:8], "big"))]
            body = b"\1" + body[1:8] + b"".join(struct.pack(">Qqi", *entry) for entry in entries)
        made += struct.pack(">I4s", len(body) + 8, kind) + body
        at += size
    return made


def test_headers_of_version_1_say_the_same(tmp_path: Path) -> None:
    """Times of 64 bits, which long recordings have: tracks, edits and every cell but the file's own are as with 32 bits."""
    source = write(Spec(seconds=1.0, audio_late=0.2, video_options=(("bf", "2"),)), tmp_path / "narrow.mp4")
    content = source.read_bytes()
    at = content.index(b"moov") - 4
    assert at > content.index(b"mdat"), "places of chunks do not move"
    (tmp_path / "wide.mp4").write_bytes(content[:at] + wide(content[at:]))
    narrow, other = read_movie(source), read_movie(tmp_path / "wide.mp4")
    assert narrow == other and any(not edit.trivial for edit in narrow.edits.values())
    clips = [outcome(tmp_path / f"{name}.mp4", tmp_path / f"of {name}") for name in ("narrow", "wide")]
    assert clips[0].columns == clips[1].columns
    assert clips[0].mp4 is not None and clips[1].mp4 is not None
    assert clips[0].mp4.read_bytes() == clips[1].mp4.read_bytes()

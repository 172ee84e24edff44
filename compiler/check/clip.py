"""Checking one compiled clip: what every reader of a dataset may rely on."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import av.error
import soundfile
from av.video.frame import PictureType

from javisc.compiler.check.part import Part, stream_of
from javisc.compiler.media.boxes import IDR, BoxError, file_boxes, nal_units
from javisc.compiler.media.clock import samples_for
from javisc.compiler.recipe import Recipe

#: FFmpeg's codes: limited range, and SMPTE 170M for primaries, transfer and matrix.
TAGS = {"color_range": 1, "color_primaries": 6, "color_trc": 6, "colorspace": 6}
_CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"})
#: A count of things that can each be wrong: the first few are enough to know.
_SHOWN = 3


def mp4_defects(content: bytes | Part, row: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    """The defects of KEY.mp4: streams, tags, time grid, GOPs, B-frames, edit lists, and that every frame decodes."""
    yield from _box_defects(content)
    try:
        with av.open(stream_of(content), format="mp4") as container:
            if len(container.streams) != 1 or len(container.streams.video) != 1:
                yield f"{len(container.streams)} streams, of which {len(container.streams.video)} video; one video is expected"
                return
            video = container.streams.video[0]
            if video.codec_context is None:
                yield f"has a codec without a decoder; {recipe.codec} is expected"
                return
            video.codec_context.thread_count = 1
            yield from _stream_defects(video, row, recipe)
            yield from _packet_defects(container, video, row, recipe)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        yield f"does not decode: {error}"


def _stream_defects(video: av.VideoStream, row: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    codec = video.codec_context
    found: dict[str, Any] = {
        "codec": {"libdav1d": "av1", "libaom-av1": "av1"}.get(codec.name, codec.name),
        "profile": codec.profile,
        "pixel format": codec.pix_fmt,
        "width": codec.width,
        "height": codec.height,
        "pixel aspect": codec.sample_aspect_ratio or Fraction(1),
        "frame rate": video.average_rate,
        "reordering": codec.has_b_frames,
        **{name.replace("_", " "): int(getattr(codec, name)) for name in TAGS},
    }
    expected = {
        "codec": recipe.codec,
        "profile": "High" if recipe.codec == "h264" else "Main",
        "pixel format": "yuv420p",
        "width": row["width"],
        "height": row["height"],
        "pixel aspect": Fraction(1),
        "frame rate": recipe.rate,
        "reordering": False,
        **{name.replace("_", " "): value for name, value in TAGS.items()},
    }
    if row["num_frames"] == 1:  # one frame has no rate
        del found["frame rate"], expected["frame rate"]
    yield from (
        f"{name} is {found[name]}, {expected[name]} is expected" for name in found if found[name] != expected[name]
    )


def _packet_defects(container: Any, video: av.VideoStream, row: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    packets = frames = 0
    wrong: dict[str, list[str]] = {"off the grid": [], "with a wrong kind of start": [], "bad when decoded": []}
    for packet in container.demux(video):
        if packet.size:
            if packet.pts is None or packet.pts != packet.dts or packet.pts * packet.time_base != packets / recipe.rate:
                wrong["off the grid"].append(str(packets))
            starts = packets % recipe.gop == 0
            if packet.is_keyframe != starts or (recipe.codec == "h264" and _has_idr(bytes(packet)) != starts):
                wrong["with a wrong kind of start"].append(str(packets))
            packets += 1
        for frame in packet.decode():
            if frame.is_corrupt or frame.pict_type == PictureType.B or frame.format.name != "yuv420p":
                wrong["bad when decoded"].append(str(frames))
            frames += 1
    for what, numbers in wrong.items():
        if numbers:
            more = ", …" if len(numbers) > _SHOWN else ""
            yield f"{len(numbers)} frames {what}: {', '.join(numbers[:_SHOWN])}{more}"
    if not packets == frames == row["num_frames"]:
        yield f"{packets} packets and {frames} decoded frames, the manifest has {row['num_frames']}"


def _has_idr(packet: bytes) -> bool:
    """True if an access unit in MP4 form holds an IDR slice."""
    try:
        return any(kind == IDR for kind, _ in nal_units(packet))
    except BoxError:
        return False


def _box_defects(content: bytes | Part) -> Iterator[str]:
    """Walk the boxes: `moov` must stand before `mdat`, and no edit list may move the presentation."""
    order: list[bytes] = []
    stack = [(file_boxes(stream_of(content)), 0)]
    try:
        while stack:
            found, depth = stack.pop()
            for box in found:
                if not box.whole:
                    yield f"box {box.name} at byte {box.start} ends early"
                    return
                if depth == 0:
                    order.append(box.kind)
                if box.kind == b"elst":
                    yield "has an edit list"
                if box.kind in _CONTAINERS and depth < 8:
                    stack.append((box.boxes(), depth + 1))
    except BoxError as error:
        yield str(error)
        return
    if b"moov" not in order or b"mdat" not in order or order.index(b"moov") > order.index(b"mdat"):
        yield "is not laid out for streaming: moov must stand before mdat"


def flac_defects(content: bytes | Part, row: dict[str, Any], recipe: Recipe) -> Iterator[str]:
    """The defects of KEY.flac: form, length on the clock, and that every block decodes."""
    try:
        with soundfile.SoundFile(stream_of(content)) as sound:
            form = (sound.format, sound.samplerate, sound.channels)
            decoded = 0
            while block := len(sound.read(1 << 16, dtype="int16")):
                decoded += block
    except (soundfile.SoundFileError, OSError, ValueError) as error:
        yield f"does not decode: {error}"
        return
    if form != ("FLAC", row["audio_fps"], row["channels"]) or form[1:] != (recipe.sample_rate, recipe.channels):
        yield f"is {form}, the manifest and the recipe have {row['audio_fps']} Hz and {row['channels']} channels"
    if decoded != row["num_samples"]:
        yield f"{decoded} samples, the manifest has {row['num_samples']}"
    if row["mp4_offset"] is not None:
        clock = samples_for(row["num_frames"], recipe.sample_rate, recipe.rate)
        if decoded != clock:
            yield f"{decoded} samples, {row['num_frames']} frames last {clock}"

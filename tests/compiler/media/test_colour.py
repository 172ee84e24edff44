"""Pictures of every kind come out upright, square, even-sized and in the right colours."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from javisc.compiler.media.encode import target_size
from javisc.compiler.media.orientation import Orientation, orientation
from javisc.compiler.media.transcode import Clip, transcode
from javisc.compiler.recipe import PRESETS
from support.media import Spec, ffmpeg, write

FINE = PRESETS["jav"].replace(allow_silent=True, crf=4)
#: R'G'B' of six vertical bars, 0 to 255.
BARS = np.array(
    [[200, 40, 40], [40, 180, 60], [50, 60, 210], [210, 200, 60], [128, 128, 128], [235, 235, 235]], np.float64
)
#: (Kr, Kb) of a matrix by its number in H.273.
COEFFICIENTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


def to_yuv(rgb: NDArray[np.float64], matrix: int, full: bool, depth: int) -> NDArray[np.float64]:
    """R'G'B' (n, 3) in 0 to 255 to code values, by the definition of BT.601, BT.709 and BT.2020."""
    kr, kb = COEFFICIENTS[matrix]
    r, g, b = (rgb / 255).T
    y = kr * r + (1 - kr - kb) * g + kb * b
    chroma = np.stack([(b - y) / (2 - 2 * kb), (r - y) / (2 - 2 * kr)])
    if full:
        return np.concatenate([y[None] * (2**depth - 1), chroma * (2**depth - 1) + 2 ** (depth - 1)]).T
    return np.concatenate([y[None] * 219 + 16, chroma * 224 + 128]).T * 2 ** (depth - 8)


def bars(path: Path, pixels: str, matrix: int, full: bool, size: tuple[int, int] = (192, 96), **context: int) -> Path:
    """Ten identical frames of the bars, lossless."""
    codec = "ffv1"
    with av.open(str(path), "w", format="matroska") as out:
        stream = out.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full else 1
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        depth = av.VideoFormat(pixels).components[0].bits
        values = to_yuv(BARS, matrix, full, depth)
        for number in range(12):
            frame = av.VideoFrame(*size, pixels)
            for index, plane in enumerate(frame.planes):
                dtype = np.uint16 if depth > 8 else np.uint8
                row = np.repeat(np.rint(values[:, index]).astype(dtype), -(-plane.width // len(BARS)))[: plane.width]
                line = np.zeros(plane.line_size // np.dtype(dtype).itemsize, dtype)
                line[: plane.width] = row
                plane.update(np.tile(line, plane.height).tobytes())
            frame.pts, frame.time_base = number, Fraction(1, 24)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def decoded_bars(clip: Clip) -> tuple[NDArray[np.float64], av.VideoFrame]:
    """R'G'B' in the middle of each bar, by the definition of BT.601 limited range."""
    assert clip.mp4 is not None
    with av.open(str(clip.mp4)) as container:
        frame = next(container.decode(video=0))
    planes = [np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width] for plane in frame.planes]
    values = []
    for bar in range(len(BARS)):
        at = (bar + 0.5) / len(BARS)
        values.append([float(p[p.shape[0] // 2, int(at * p.shape[1])]) for p in planes])
    y, u, v = np.array(values).T
    y, u, v = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    r, b = y + 1.402 * v, y + 1.772 * u
    return np.stack([r, (y - 0.299 * r - 0.114 * b) / 0.587, b]).T * 255, frame


@pytest.mark.parametrize("pixels", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 6, 7])
def test_colours_survive(tmp_path: Path, pixels: str, full: bool, matrix: int) -> None:
    clip = transcode(bars(tmp_path / "bars.mkv", pixels, matrix, full), FINE, tmp_path)
    rgb, frame = decoded_bars(clip)
    assert np.abs(rgb - BARS).max() < 4, rgb
    assert (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range) == (6, 6, 6, 1)
    assert frame.format.name == "yuv420p"


def test_wide_gamut_is_brought_to_the_usual_one(tmp_path: Path) -> None:
    """Greys stay what they are; a red that BT.2020 calls dull is a stronger one in BT.709."""
    source = bars(tmp_path / "bars.mkv", "yuv420p10le", 9, False, color_primaries=9, color_trc=14)
    rgb, _ = decoded_bars(transcode(source, FINE, tmp_path))
    assert np.abs(rgb[4:] - BARS[4:]).max() < 4
    assert rgb[0, 0] > BARS[0, 0] + 10 and rgb[0, 1] < BARS[0, 1]


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_is_tone_mapped(tmp_path: Path, transfer: int) -> None:
    source = bars(tmp_path / "bars.mkv", "yuv420p10le", 9, False, color_primaries=9, color_trc=transfer)
    clip = transcode(source, FINE, tmp_path)
    rgb, frame = decoded_bars(clip)
    assert clip.columns["source_hdr"] is True and frame.color_trc == 6
    assert np.abs(rgb[4] - rgb[4].mean()).max() < 4 and rgb[5].mean() > rgb[4].mean() + 20
    assert 60 < rgb[4].mean() < 200 and rgb.max() < 260 and rgb.min() > -6
    assert rgb[0].argmax() == 0 and rgb[1].argmax() == 1 and rgb[2].argmax() == 2


@pytest.mark.parametrize("pixels", ["rgb24", "gbrp10le", "bgra", "gray", "yuva420p", "yuv411p", "nv12", "yuv440p"])
def test_unusual_formats(tmp_path: Path, pixels: str) -> None:
    raw = tmp_path / "raw.mkv"
    codec = {"rgb24": "png", "nv12": "rawvideo"}.get(pixels, "ffv1")
    with av.open(
        str(raw), "w", format="nut" if pixels == "nv12" else "mov" if pixels == "rgb24" else "matroska"
    ) as out:
        stream = out.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 192, 96, pixels
        image = np.repeat(BARS.astype(np.uint8), 32, axis=0)[None].repeat(96, axis=0)
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number, Fraction(1, 24)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    rgb, _ = decoded_bars(transcode(raw, FINE, tmp_path))
    wanted = BARS if pixels != "gray" else np.repeat((BARS @ [0.299, 0.587, 0.114])[:, None], 3, axis=1)
    assert np.abs(rgb - wanted).max() < 6, rgb


def corners(clip: Clip) -> tuple[list[int], int, int]:
    """Luma in the four corners (top left, top right, bottom left, bottom right), and the size."""
    assert clip.mp4 is not None
    with av.open(str(clip.mp4)) as container:
        frame = next(container.decode(video=0))
    plane = frame.planes[0]
    luma = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    y, x = frame.height // 8, frame.width // 8
    return [int(luma[a, b]) for a in (y, -y) for b in (x, -x)], frame.width, frame.height


#: (a, b, c, d) of the matrix, which takes (x, y) to (ax + cy, bx + dy); shades of the corners in reading order; turn.
TURNS = {
    "upright": ((1, 0, 0, 1), [40, 80, 120, 200], 0),
    "clockwise": ((0, 1, -1, 0), [120, 40, 200, 80], 90),
    "upside-down": ((-1, 0, 0, -1), [200, 120, 80, 40], 180),
    "counter-clockwise": ((0, -1, 1, 0), [80, 200, 40, 120], 270),
    "mirrored": ((-1, 0, 0, 1), [80, 40, 200, 120], 0),
    "flipped": ((1, 0, 0, -1), [120, 200, 40, 80], 180),
    "transposed": ((0, 1, 1, 0), [40, 120, 80, 200], 270),
    "anti-transposed": ((0, -1, -1, 0), [200, 80, 120, 40], 90),
}


@pytest.mark.parametrize("name", TURNS)
def test_rotation_is_baked_in(tmp_path: Path, name: str) -> None:
    """Four shades in the corners tell every turn and mirror apart."""
    (a, b, c, d), expected, clockwise = TURNS[name]
    source = quarters(tmp_path / "source.mp4")
    content = bytearray(source.read_bytes())
    at = content.index(b"tkhd") + 4 + 40
    one = 1 << 16
    content[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    source.write_bytes(content)
    clip = transcode(source, FINE, tmp_path)
    shades, width, height = corners(clip)
    assert np.abs(np.subtract(shades, expected)).max() < 6, shades
    assert (width, height) == ((96, 160) if a == 0 else (160, 96))
    assert clip.columns["source_rotation"] == clockwise


def quarters(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=24, options={"qp": "4"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for number in range(12):
            frame = av.VideoFrame(160, 96, "yuv420p")
            luma = np.kron(np.array([[40, 80], [120, 200]], np.uint8), np.ones((48, 80), np.uint8))
            for plane, values in zip(
                frame.planes, (luma, np.full((48, 80), 128, np.uint8), np.full((48, 80), 128, np.uint8))
            ):
                padded = np.zeros((plane.height, plane.line_size), np.uint8)
                padded[:, : plane.width] = values
                plane.update(padded.tobytes())
            frame.pts, frame.time_base = number, Fraction(1, 24)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def test_display_matrices() -> None:
    """The matrix maps (x, y) to (ax + cy, bx + dy): quarter turns and their mirrors."""
    one = 1 << 16

    def read(a: int, b: int, c: int, d: int) -> Orientation:
        return orientation(np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32).tobytes())

    assert read(one, 0, 0, one) == Orientation()
    assert read(0, one, -one, 0) == Orientation(90)
    assert read(-one, 0, 0, -one) == Orientation(180)
    assert read(0, -one, one, 0) == Orientation(270)
    assert read(-one, 0, 0, one) == Orientation(0, flip=True)
    assert read(one, 0, 0, -one) == Orientation(180, flip=True)
    assert read(0, 0, 0, 0) == Orientation() == orientation(b"short") == orientation(None)


def test_sizes() -> None:
    plain, side = Orientation(), Orientation(90)
    assert target_size(1280, 720, Fraction(1), plain, None) == (1280, 720, 1280, 720)
    assert target_size(853, 481, Fraction(1), plain, None) == (853, 481, 852, 480)
    assert target_size(720, 576, Fraction(64, 45), plain, None) == (1024, 576, 1024, 576)
    assert target_size(1920, 1080, Fraction(1), side, 256) == (256, 455, 256, 454)
    assert target_size(640, 360, Fraction(1), plain, 256) == (455, 256, 454, 256)


def test_square_pixels_and_odd_sizes(tmp_path: Path) -> None:
    plain = write(Spec(audio=None, seconds=0.6), tmp_path / "plain.mp4")
    odd = tmp_path / "odd.mkv"
    ffmpeg("-i", plain, "-vf", "scale=131:77,setsar=3/2", "-c:v", "ffv1", odd)
    clip = transcode(odd, FINE, tmp_path)
    assert (clip.columns["width"], clip.columns["height"]) == (196, 76)
    assert (clip.columns["source_width"], clip.columns["source_height"]) == (131, 77)
    assert clip.mp4 is not None
    with av.open(str(clip.mp4)) as container:
        assert container.streams.video[0].codec_context.sample_aspect_ratio in (None, Fraction(1))


def test_interlaced_pictures_lose_their_combs(tmp_path: Path) -> None:
    """A white bar that moves 8 pixels per field: combs where fields of two moments are woven together."""
    progressive, interlaced = tmp_path / "p.mkv", tmp_path / "i.mpg"
    with av.open(str(progressive), "w") as out:
        stream = out.add_stream("ffv1", rate=50)
        stream.width, stream.height, stream.pix_fmt = 192, 96, "yuv420p"
        for number in range(50):
            image = np.full((96, 192, 3), 30, np.uint8)
            image[:, (8 * number) % 160 : (8 * number) % 160 + 24] = 220
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 50)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    fields = ["-vf", "interlace=lowpass=0", "-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-q:v", "2"]
    ffmpeg("-i", progressive, *fields, interlaced)
    clip = transcode(interlaced, FINE, tmp_path)
    assert clip.columns["source_interlaced"] is True and clip.columns["num_frames"] == 24

    def combs(path: Path) -> float:
        worst = 0.0
        with av.open(str(path)) as container:
            for frame in list(container.decode(video=0))[2:-2]:
                plane = frame.planes[0]
                luma = (
                    np.frombuffer(plane, np.uint8)
                    .reshape(-1, plane.line_size)[: frame.height, : frame.width]
                    .astype(float)
                )
                worst = max(worst, float(np.abs(2 * luma[1:-1] - luma[:-2] - luma[2:]).mean()))
        return worst

    assert clip.mp4 is not None
    assert combs(clip.mp4) < combs(interlaced) / 4


def test_the_output_is_what_the_recipe_says(tmp_path: Path) -> None:
    """CFR, key frame every 12, no B-frames, no edit list, index in front, same bytes twice."""
    source = write(Spec(fps="30000/1001", video_options=(("bf", "3"),)), tmp_path / "source.mp4")
    first = transcode(source, PRESETS["jav"], _folder(tmp_path, "a"))
    second = transcode(source, PRESETS["jav"], _folder(tmp_path, "b"))
    assert first.mp4 is not None and second.mp4 is not None and first.flac is not None and second.flac is not None
    content = first.mp4.read_bytes()
    assert content == second.mp4.read_bytes() and first.flac.read_bytes() == second.flac.read_bytes()
    assert first.columns == second.columns
    assert b"edts" not in content and content.index(b"moov") < content.index(b"mdat")
    with av.open(str(first.mp4)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        stream = container.streams.video[0]
        assert stream.codec_context.profile == "High" and not stream.codec_context.has_b_frames
        assert stream.average_rate == 24
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert [packet.pts * packet.time_base for packet in packets if packet.pts is not None] == [
            Fraction(n, 24) for n in range(len(packets))
        ]
        assert all(packet.pts == packet.dts for packet in packets)
        assert [n for n, packet in enumerate(packets) if packet.is_keyframe] == list(range(0, len(packets), 12))


def test_ntsc_rates_are_exact(tmp_path: Path) -> None:
    recipe = PRESETS["jav"].replace(fps="23.976")
    clip = transcode(write(Spec(fps="24000/1001", seconds=2.0), tmp_path / "s.mp4"), recipe, tmp_path)
    assert clip.mp4 is not None
    with av.open(str(clip.mp4)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(24000, 1001)
        times = [packet.pts * packet.time_base for packet in container.demux(stream) if packet.pts is not None]
    assert times == [Fraction(1001 * n, 24000) for n in range(len(times))]


def _folder(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir()
    return path

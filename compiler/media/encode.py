"""Pictures: from decoded frames of any kind to frames of the recipe, and these to an MP4."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, cast

import av
import av.error
from av.filter import Graph
from av.video.frame import VideoFrame

from javisc.compiler.media.encoders import encoder_of
from javisc.compiler.media.luma import LIMITED, is_full
from javisc.compiler.media.orientation import Orientation
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe

# Code points of ITU-T H.273, as FFmpeg numbers them.
BT709, UNSPECIFIED, BT470BG, SMPTE170M, SMPTE240M, BT2020_NCL, BT2020_CL = 1, 2, 5, 6, 7, 9, 10
BT2020 = 9  # primaries
PQ, HLG = 16, 18  # transfer functions
MATRICES = {BT709: "bt709", BT470BG: "bt470bg", SMPTE170M: "smpte170m", SMPTE240M: "smpte240m", BT2020_NCL: "bt2020ncl"}
#: Pictures up to 8K; a decoder keeps up to 17 of them.
MAX_PIXELS = 8192 * 4352
#: Planar formats that the `colorspace` filter takes as they are.
PLANAR = tuple(f"yuv{sub}p{depth}" for sub in ("420", "422", "444") for depth in ("", "10", "12"))
#: Index in front, no edit list, no version or date.
MP4_OPTIONS = {"movflags": "+faststart", "use_editlist": "0", "fflags": "+bitexact"}
SCALER = "flags=bicubic+accurate_rnd+full_chroma_int+bitexact"


def matrix_of(frame: VideoFrame) -> str:
    """The YCbCr matrix of a frame. Where nothing is said: BT.709 from 1280 wide or 577 high on, else BT.601, as players do."""
    named = MATRICES.get(int(frame.colorspace))
    if named is not None:
        return named
    return "bt709" if frame.width >= 1280 or frame.height > 576 else "smpte170m"


def is_hdr(frame: VideoFrame) -> bool:
    """True for the PQ and HLG transfer functions."""
    return int(frame.color_trc) in (PQ, HLG)


def target_size(
    width: int, height: int, aspect: Fraction, turn: Orientation, short_side: int | None
) -> tuple[int, int, int, int]:
    """(width, height) to scale to and the even (width, height) to crop that to, in that order, after turning.

    Pixels become square by scaling the width. With `short_side` both sides are scaled by the same factor, towards zero.
    """
    wide, high = max(round(width * aspect), 1), height
    if turn.clockwise in (90, 270):
        wide, high = high, wide
    if short_side is not None:
        wide, high = wide * short_side // min(wide, high), high * short_side // min(wide, high)
    return wide, high, wide // 2 * 2, high // 2 * 2


def fit(wide: int, high: int, width: int, height: int) -> tuple[int, int, int, int]:
    """The largest even size of the shape wide:high inside an even width x height, and the even place of its corner."""
    scale = min(Fraction(width, wide), Fraction(height, high))
    inner = min(max(round(wide * scale / 2) * 2, 2), width), min(max(round(high * scale / 2) * 2, 2), height)
    return *inner, (width - inner[0]) // 4 * 2, (height - inner[1]) // 4 * 2


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width of a pixel over its height; 1 where the stream says nothing or nonsense."""
    aspect = stream.sample_aspect_ratio
    return aspect if aspect is not None and Fraction(1, 8) <= aspect <= 8 else Fraction(1)


class Part(NamedTuple):
    """A rectangle of a picture, in pixels."""

    left: int
    top: int
    width: int
    height: int


#: (tick on the whole file's clock, width, height of the upright picture) → the part of the picture that is wanted.
Crop = Callable[[int, int, int], Part]


class Deinterlacer:
    """Weaves no combs: frames flagged interlaced go through bwdif, one frame out per frame in; others pass untouched."""

    def __init__(self) -> None:
        self._graph: Graph | None = None
        self._key: tuple[object, ...] = ()

    @property
    def used(self) -> bool:
        return self._graph is not None

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        """Add a frame; yield those that are ready."""
        if self._graph is None and not frame.interlaced_frame:
            yield frame
            return
        key = (frame.width, frame.height, frame.format.name)
        if self._key != key:
            yield from self.finish()
            self._graph = make_graph(frame, ["bwdif=mode=send_frame:parity=auto:deint=interlaced"])
            self._key = key
        assert self._graph is not None
        self._graph.vpush(frame)
        yield from _drain(self._graph)

    def finish(self) -> Iterator[VideoFrame]:
        """Yield the frames still held."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from _drain(self._graph)


class Converter:
    """Frames of any size, format, colour and orientation to yuv420p, limited range, BT.601 matrix, square pixels, even size.

    The matrix and the range are converted; R'G'B' values stay what they were. BT.2020 primaries are brought to BT.709;
    the small differences between the primaries of BT.709 and BT.601 are left alone, because no reader of datasets undoes them.
    The first picture decides the size; one of another size is fitted into it, in the middle of black bars.
    """

    def __init__(self, recipe: Recipe, turn: Orientation, aspect: Fraction) -> None:
        self.recipe = recipe
        self.turn = turn
        self.aspect = aspect
        self.size: tuple[int, int] | None = None
        self.size_changes = 0
        self.hdr = False
        self._graph: Graph | None = None
        self._key: tuple[object, ...] | None = None
        self._source_size: tuple[int, int] | None = None

    def upright(self, frame: VideoFrame) -> tuple[int, int]:
        """Width and height of a frame's pixels after turning."""
        return (frame.height, frame.width) if self.turn.clockwise in (90, 270) else (frame.width, frame.height)

    def convert(self, frame: VideoFrame, part: Part | None = None) -> VideoFrame:
        """One frame in, one frame out, of the upright frame's `part` if given.

        Raises `Rejected` where FFmpeg cannot convert, or where the size changes and the recipe refuses that.
        """
        self._mind_size(frame)
        key = (
            part,
            frame.width,
            frame.height,
            frame.format.name,
            int(frame.colorspace),
            int(frame.color_range),
            int(frame.color_trc),
        )
        try:
            if key != self._key:
                steps = self._steps(frame, part)
                self._graph = make_graph(frame, steps) if steps else None
                self._key = key
            if self._graph is None:
                return frame
            self._graph.vpush(frame)
            return self._graph.vpull()
        except (av.error.FFmpegError, ValueError) as error:
            raise Rejected(
                "unsupported", f"convert {frame.format.name} {frame.width}x{frame.height}: {error}"
            ) from error

    def _mind_size(self, frame: VideoFrame) -> None:
        before, self._source_size = self._source_size, (frame.width, frame.height)
        if before in (None, self._source_size):
            return
        self.size_changes += 1
        if self.recipe.resized == "refuse":
            raise Rejected("resized", f"{before[0]}x{before[1]}, then {frame.width}x{frame.height}")  # type: ignore[index]

    def _steps(self, frame: VideoFrame, part: Part | None) -> list[str]:
        size, turn, aspect = (frame.width, frame.height), self.turn, self.aspect
        if part is not None:
            size, turn = (part.width, part.height), Orientation()
            aspect = 1 / aspect if self.turn.clockwise in (90, 270) else aspect
        wide, high, even_wide, even_high = target_size(*size, aspect, turn, self.recipe.short_side)
        if self.size is None:
            if even_wide < 2 or even_high < 2:
                raise Rejected("unsupported", f"a picture of {wide}x{high} pixels")
            self.size = (even_wide, even_high)
        bars = []
        if self.size != (even_wide, even_high):
            if part is None:
                wide, high, left, top = fit(wide, high, *self.size)
                bars = [f"pad={self.size[0]}:{self.size[1]}:{left}:{top}:black"] * ((wide, high) != self.size)
                even_wide, even_high = wide, high
            else:
                even_wide, even_high = wide, high = self.size
        self.hdr = self.hdr or is_hdr(frame)
        steps = []
        if self.turn.flip:
            steps.append("hflip")
        if self.turn.clockwise:
            steps += {90: ["transpose=clock"], 180: ["hflip", "vflip"], 270: ["transpose=cclock"]}[self.turn.clockwise]
        turned = self.upright(frame)
        if part is not None:
            steps.append(f"crop={part.width}:{part.height}:{part.left}:{part.top}:exact=1")
            turned = (part.width, part.height)
        if turned != (wide, high):
            steps.append(f"scale={wide}:{high}:{SCALER}")
        if (wide, high) != (even_wide, even_high):
            steps.append(f"crop={even_wide}:{even_high}:0:0:exact=1")
        return steps + self._colour(frame) + bars

    def _colour(self, frame: VideoFrame) -> list[str]:
        name = frame.format.name
        if is_hdr(frame):  # swscale maps the tones in ICtCp and fits the colours into BT.709
            transfer = "smpte2084" if int(frame.color_trc) == PQ else "arib-std-b67"
            levels = "pc" if is_full(frame) else "tv"
            return [
                f"scale=in_transfer={transfer}:in_primaries=bt2020:in_color_matrix=bt2020:in_range={levels}"
                f":out_transfer=bt709:out_primaries=bt709:out_color_matrix=smpte170m:out_range=tv:intent=perceptual:{SCALER}",
                "format=yuv420p",
                "sidedata=mode=delete",
            ]
        if frame.format.is_rgb or name.startswith(("pal8", "gray", "mono", "ya", "xyz", "bayer")):
            return [f"scale=out_color_matrix=smpte170m:out_range=tv:{SCALER}", "format=yuv420p"]
        steps = []
        full, matrix = is_full(frame), matrix_of(frame)
        if name not in PLANAR:
            plain = "yuv444p" if "444" in name else "yuv422p" if "422" in name else "yuv420p"
            if full:
                steps.append(f"scale=in_range=pc:out_range=tv:{SCALER}")
                full = False
            steps.append(f"format={plain}")
            name = plain
        wide_gamut = int(frame.color_primaries) == BT2020 or matrix == "bt2020ncl"
        if full or wide_gamut or matrix not in ("smpte170m", "bt470bg"):
            gamut = "bt2020" if wide_gamut else "bt709"
            steps.append(
                f"colorspace=ispace={matrix}:iprimaries={gamut}:itrc=bt709:irange={'pc' if full else 'tv'}"
                ":space=smpte170m:primaries=bt709:trc=bt709:range=tv:format=yuv420p"
            )
        elif name != "yuv420p":
            steps += [f"scale={SCALER}", "format=yuv420p"]
        return steps


class Encoder:
    """H.264 High, HEVC or AV1 in MP4, as the recipe says: CFR, closed GOPs, no B-frames, no edit list, index in front.

    The same bytes always.
    """

    def __init__(self, path: Path, recipe: Recipe, width: int, height: int) -> None:
        self.frames = 0
        self._tick = 1 / recipe.rate
        self._container = av.open(str(path), "w", format="mp4", options=MP4_OPTIONS)
        name, options = encoder_of(recipe)
        self._stream = cast(av.VideoStream, self._container.add_stream(name, rate=recipe.rate, options=options))
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        context = self._stream.codec_context
        context.time_base = self._tick
        context.thread_count = 1
        context.sample_aspect_ratio = Fraction(1)
        context.color_primaries = context.color_trc = context.colorspace = SMPTE170M
        context.color_range = LIMITED

    def add(self, frame: VideoFrame) -> None:
        """Append a converted frame as the next tick."""
        frame.pts, frame.time_base = self.frames, self._tick
        frame.pict_type = 0  # the source's I frames must not become forced key frames
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> None:
        """Flush and finish the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Close without caring for the content."""
        self._container.close()


def make_graph(frame: VideoFrame, steps: list[str]) -> Graph:
    """A chain of filters for frames like this one, on one thread."""
    graph = Graph()
    graph.threads = 1
    base = frame.time_base or Fraction(1, 1000)
    last = graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base={base.numerator}/{base.denominator}"
        f":pixel_aspect=1/1:colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
    )
    for step in [*steps, "buffersink"]:
        name, _, args = step.partition("=")
        node = graph.add(name, args or None)
        last.link_to(node)
        last = node
    graph.configure()
    return graph


def _drain(graph: Graph) -> Iterator[VideoFrame]:
    while True:
        try:
            yield graph.vpull()
        except (BlockingIOError, EOFError):
            return

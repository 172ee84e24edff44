"""Frames and samples of a compiled clip, decoded on the CPU: only the group of pictures that the window touches.

Compiled video is H.264 on an exact frame grid with an IDR picture every `gop` frames and no B-frames, so frame i is found by
its time stamp alone and decoding may start at the last multiple of `gop` before it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from javisc.compiler.media.encode import target_size
from javisc.compiler.media.orientation import Orientation
from javisc.compiler.media.scaling import Scaler

#: A window larger than this is a mistake or an attack: 8 GiB of pixels.
MAX_WINDOW_BYTES = 8 << 30


class DecodeError(Exception):
    """A clip's bytes do not give the frames that its manifest row promises."""


def frames(
    mp4: bytes,
    start: int,
    count: int,
    *,
    fps: Fraction = Fraction(24),
    gop: int = 12,
    stride: int = 1,
    short_side: int | None = None,
) -> NDArray[np.uint8]:
    """Decode frames start, start + stride, … (count of them) of a compiled clip as RGB, (count, H, W, 3) uint8.

    Raises DecodeError if the clip is not decodable or ends before the window does, or if the window would need more than
    `MAX_WINDOW_BYTES`. Colour is converted from the clip's BT.601 limited range, chroma repeated. A picture
    whose short side is not `short_side` is scaled to it, to the size and by the filter that the compiler would use.
    """
    _check(start, count, stride)
    try:
        with av.open(io.BytesIO(mp4), "r") as container:
            return _decode(container, start, count, fps, gop, stride, short_side)
    except (av.FFmpegError, IndexError, EOFError) as error:
        raise DecodeError(f"the clip cannot be decoded: {error}") from error


def each_frame(
    mp4: bytes,
    start: int,
    count: int,
    use: Callable[[int, av.VideoFrame], None],
    *,
    fps: Fraction = Fraction(24),
    gop: int = 12,
    stride: int = 1,
) -> None:
    """Call `use(number, frame)` with each frame that `frames` would give, as it was decoded. Raises what `frames` does."""
    _check(start, count, stride)
    try:
        with av.open(io.BytesIO(mp4), "r") as container:
            for number, frame in enumerate(_window(container, start, count, fps, gop, stride)):
                use(number, frame)
    except (av.FFmpegError, IndexError, EOFError) as error:
        raise DecodeError(f"the clip cannot be decoded: {error}") from error


def _check(start: int, count: int, stride: int) -> None:
    if start < 0 or count < 1 or stride < 1:
        raise ValueError(
            f"window of {count} frames from {start}, stride {stride}: start >= 0, count >= 1 and stride >= 1 are needed"
        )


def samples(flac: bytes, first: int, count: int) -> NDArray[np.float32]:
    """Samples first … first + count - 1 of a compiled clip's sound, (count, channels) in [-1, 1]; zeros past its end.

    Raises DecodeError if the FLAC is not readable.
    """
    if first < 0 or not 0 <= count <= MAX_WINDOW_BYTES // 64:
        raise ValueError(f"{count} samples from {first}: first >= 0 and a sane count are needed")
    try:
        with soundfile.SoundFile(io.BytesIO(flac)) as file:
            out = np.zeros((count, file.channels), dtype=np.float32)
            have = max(0, min(count, file.frames - first))
            if have:
                file.seek(first)
                out[:have] = file.read(have, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, ValueError, RuntimeError) as error:
        raise DecodeError(f"the sound cannot be decoded: {error}") from error
    return out


def frames_of(mp4: bytes, row: Mapping[str, Any]) -> NDArray[np.uint8]:
    """All pictures of a manifest row's clip, (num_frames, H, W, 3) uint8. Raises DecodeError."""
    return frames(mp4, 0, int(row["num_frames"]), fps=Fraction(row["fps"]).limit_denominator(1001))


def masks(mkv: bytes, start: int, count: int) -> NDArray[np.bool_]:
    """Masks start … start + count - 1 of a film of masks, (count, H, W): exactly what was stored. Raises DecodeError."""
    found, scale = [], Scaler()
    try:
        with av.open(io.BytesIO(mkv), "r", format="matroska") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            if stream.codec_context.width * stream.codec_context.height * count > MAX_WINDOW_BYTES:
                raise DecodeError(f"{count} masks are more than {MAX_WINDOW_BYTES >> 30} GiB")
            for number, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
                if number >= start + count:
                    break
                if number >= start:  # every one stands alone
                    found += [scale(frame, format="gray").to_ndarray() > 127 for frame in packet.decode()]
            if len(found) < count:
                found += [scale(frame, format="gray").to_ndarray() > 127 for frame in stream.codec_context.decode(None)]
    except (av.FFmpegError, IndexError, EOFError) as error:
        raise DecodeError(f"the masks cannot be decoded: {error}") from error
    if len(found) < count:
        raise DecodeError(f"the film of masks ends before frame {start + count}")
    return np.stack(found[:count])


def masks_of(mkv: bytes, row: Mapping[str, Any]) -> NDArray[np.bool_]:
    """All masks of a manifest row's masklet, (num_frames, H, W). Raises DecodeError."""
    return masks(mkv, 0, int(row["num_frames"]))


def samples_of(flac: bytes, row: Mapping[str, Any]) -> NDArray[np.float32]:
    """All sound of a manifest row's clip, (num_samples, channels) in [-1, 1]. Raises DecodeError."""
    return samples(flac, 0, int(row["num_samples"]))


def _decode(
    container: av.container.InputContainer,
    start: int,
    count: int,
    fps: Fraction,
    gop: int,
    stride: int,
    short_side: int | None,
) -> NDArray[np.uint8]:
    codec = container.streams.video[0].codec_context
    wide, high = width, height = codec.width, codec.height
    if short_side is not None and 0 < min(width, height) != short_side:
        wide, high, width, height = target_size(wide, high, Fraction(1), Orientation(), short_side)
    if count * wide * high * 3 > MAX_WINDOW_BYTES:
        raise DecodeError(f"{count} frames of {wide}x{high} pixels are more than {MAX_WINDOW_BYTES >> 30} GiB")
    scaled: dict[str, Any] = {"width": wide, "height": high, "interpolation": "BICUBIC"}
    if (wide, high) == (codec.width, codec.height):
        scaled = {}
    out: NDArray[np.uint8] | None = None
    scale = Scaler()
    for number, frame in enumerate(_window(container, start, count, fps, gop, stride)):
        picture = scale(frame, format="rgb24", **scaled).to_ndarray()[:height, :width]
        if out is None:
            out = np.empty((count, *picture.shape), dtype=np.uint8)
        out[number] = picture
    assert out is not None
    return out


def _window(
    container: av.container.InputContainer, start: int, count: int, fps: Fraction, gop: int, stride: int
) -> Iterator[av.VideoFrame]:
    """Exactly the window's frames. Raises DecodeError."""
    stream = container.streams.video[0]
    # Parallelism lies in decoding many clips at once; threads within one would only add latency.
    stream.codec_context.thread_count = 1
    if stream.time_base is None:
        raise DecodeError("the video stream has no time base")
    tick = fps * stream.time_base
    keyframe = start // gop * gop
    if keyframe:
        container.seek(round(keyframe / tick), stream=stream, backward=True)
    wanted, stop = start, start + count * stride
    for frame in container.decode(stream):
        if frame.pts is None:
            raise DecodeError("a frame has no time stamp")
        index = round(frame.pts * tick)
        if index < wanted:
            continue
        if index > wanted:
            raise DecodeError(f"frame {wanted} is missing; the next one is {index}")
        yield frame
        wanted += stride
        if wanted >= stop:
            return
    raise DecodeError(f"the clip ends before frame {wanted}")

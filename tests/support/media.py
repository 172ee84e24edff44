"""Flash-and-beep clips: every picture carries its number, every beep its time, so that sync is known by construction.

A picture of 160 x 120 has its number in eight tiles (four by two, most significant first, black or white) and, below them, a
band that flashes white for a tenth of a second from each beat on. The sound is silence with a short pulse at each beat.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

WIDTH, HEIGHT, BAND = 160, 120, 40
#: Uneven, so that a beep cannot be taken for its neighbour.
BEATS = (0.5, 0.97, 1.61, 2.2, 2.93)
SECONDS = 3.5


@dataclass(frozen=True)
class Spec:
    """How a clip is written. `video_late` and `audio_late` shift the presentation; `times` replaces the even grid of pictures."""

    container: str = "mp4"
    video: str = "libx264"
    audio: str | None = "aac"
    fps: str = "25"
    rate: int = 44100
    layout: str = "mono"
    pixels: str = "yuv420p"
    seconds: float = SECONDS
    video_late: float = 0.0
    audio_late: float = 0.0
    times: tuple[Fraction, ...] | None = None
    video_options: tuple[tuple[str, str], ...] = ()
    format_options: tuple[tuple[str, str], ...] = ()
    size: tuple[int, int] = (WIDTH, HEIGHT)
    picture_seconds: float | None = None
    sound_seconds: float | None = None
    beats: tuple[float, ...] = BEATS

    @property
    def frame_times(self) -> list[Fraction]:
        """When each picture is presented, without `video_late`."""
        if self.times is not None:
            return list(self.times)
        fps = Fraction(self.fps)
        return [n / fps for n in range(round(Fraction(self.picture_seconds or self.seconds) * fps))]


def picture(number: int, time: float, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """An RGB picture that shows `number` (0 to 255) and, where a beat was less than a tenth of a second ago, a white band."""
    band = height * BAND // HEIGHT
    image = np.full((height, width, 3), 16, np.uint8)
    tall, wide = (height - band) // 2, width // 4
    for bit in range(8):
        row, column = divmod(bit, 4)
        image[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide] = (
            235 if number >> (7 - bit) & 1 else 20
        )
    if any(0 <= time - beat + 1e-9 < 0.1 for beat in BEATS):
        image[height - band :] = 240
    return image


def read_number(luma: NDArray[np.uint8]) -> int:
    """The number in a picture's luma plane (height, width)."""
    height, width = luma.shape
    band = height * BAND // HEIGHT
    tall, wide = (height - band) // 2, width // 4
    number = 0
    for bit in range(8):
        row, column = divmod(bit, 4)
        top, left = row * tall, column * wide
        tile = luma[top + tall // 4 : top + 3 * tall // 4, left + wide // 4 : left + 3 * wide // 4]
        number = number << 1 | int(tile.mean() > 120)
    return number


def pulse(rate: int) -> NDArray[np.float32]:
    """The beep: 6 ms of a 1 kHz sine under a half-sine, which begins at the beat."""
    t = np.arange(int(0.006 * rate)) / rate
    return (0.8 * np.sin(2 * np.pi * 1000 * t) * np.sin(np.pi * t / 0.006)).astype(np.float32)


def sound(rate: int, seconds: float, beats: tuple[float, ...] = BEATS) -> NDArray[np.float32]:
    """Mono sound with a beep at every beat, exact to a fraction of a sample."""
    out = np.zeros(round(seconds * rate), np.float32)
    for beat in beats:
        first = int(np.ceil(beat * rate))
        t = np.arange(first, min(first + int(0.006 * rate), len(out))) / rate - beat
        out[first : first + len(t)] = 0.8 * np.sin(2 * np.pi * 1000 * t) * np.sin(np.pi * t / 0.006)
    return out


def beep_times(samples: NDArray[np.float32], rate: int, expected: list[float], reach: float = 0.2) -> list[float]:
    """Where the beeps near `expected` seconds really are: the peak of the correlation with the pulse, to a sample's fraction."""
    template = pulse(rate)
    found = []
    for time in expected:
        start = max(round((time - reach) * rate), 0)
        part = samples[start : round((time + reach) * rate) + len(template)]
        match = np.correlate(part, template, "valid")
        best = int(match.argmax())
        if 0 < best < len(match) - 1:
            a, b, c = match[best - 1 : best + 2]
            best_at = best + 0.5 * float(a - c) / float(a - 2 * b + c)
        else:
            best_at = float(best)
        found.append((start + best_at) / rate if match.max() > 0.2 * float(template @ template) else float("nan"))
    return found


def write(spec: Spec, path: Path) -> Path:
    """Write a clip with PyAV."""
    options = dict(spec.format_options)
    with av.open(str(path), "w", format=spec.container, options=options) as out:
        fps = Fraction(spec.fps)
        tick = Fraction(1, 90000) if spec.times is not None or spec.video_late else 1 / fps
        video = out.add_stream(spec.video, rate=fps, options=dict(spec.video_options))
        video.width, video.height, video.pix_fmt = *spec.size, spec.pixels
        video.codec_context.time_base = tick
        video.codec_context.thread_count = 1
        audio = None
        if spec.audio is not None:
            audio = out.add_stream(spec.audio, rate=spec.rate, layout=spec.layout)
        pictures = iter(enumerate(spec.frame_times))
        samples = sound(spec.rate, spec.sound_seconds or spec.seconds, spec.beats)
        formats = audio.codec_context.codec.audio_formats if audio is not None else []
        chunk, at = (audio.codec_context.frame_size or 1024) if audio is not None else 1024, 0
        pending = next(pictures, None)
        while pending is not None or (audio is not None and at < len(samples)):
            sound_time = at / spec.rate + spec.audio_late if audio is not None and at < len(samples) else float("inf")
            if pending is not None and float(pending[1]) + spec.video_late <= sound_time:
                number, time = pending
                frame = av.VideoFrame.from_ndarray(picture(number, float(time), *spec.size), "rgb24")
                frame.pts, frame.time_base = round((time + Fraction(spec.video_late)) / tick), tick
                out.mux(video.encode(frame))
                pending = next(pictures, None)
            else:
                assert audio is not None
                part = samples[at : at + chunk]
                block = av.AudioFrame.from_ndarray(
                    np.repeat(part[None], audio.layout.nb_channels, axis=0), "fltp", spec.layout
                )
                block.sample_rate = spec.rate
                block.time_base = Fraction(1, spec.rate)
                block.pts = at + round(spec.audio_late * spec.rate)
                out.mux(audio.encode(block))
                at += len(part)
        assert formats is not None
        out.mux(video.encode(None))
        if audio is not None:
            out.mux(audio.encode(None))
    return path


def ffmpeg(*arguments: str | Path) -> None:
    """Run the system's ffmpeg, an independent writer; skip the test where there is none."""
    tool = shutil.which("ffmpeg")
    if tool is None:
        pytest.skip("the system has no ffmpeg")
    subprocess.run(
        [tool, "-v", "error", "-nostdin", "-y", "-threads", "1", *map(str, arguments)], check=True, timeout=120
    )


@dataclass
class Decoded:
    """A compiled clip, read again."""

    luma: list[NDArray[np.uint8]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)


def decode_pictures(path: Path) -> Decoded:
    """Read every picture of a video file."""
    out = Decoded()
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            plane = frame.planes[0]
            luma = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width].copy()
            out.luma.append(luma)
            out.numbers.append(read_number(luma))
    return out

"""The files beside the page: a clip that any browser plays, a strip of its frames, its waveform and its spectrogram."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import soundfile

from javisc.compiler.media.scaling import Scaler
from javisc.manifests.files import published

STRIP_FRAMES = 8
STRIP_HEIGHT = 96
#: Longest strip frame in pixels of width: a hostile aspect ratio makes no giant picture.
STRIP_WIDTH = 400
POSTER_SIDE = 720
WAVE_POINTS = 400
SPECTROGRAM_SIZE = (640, 128)
#: What is drawn and played: a compiled clip is rarely longer.
MAX_SECONDS = 120.0
MAX_PIXELS = 8192 * 4320
MAX_SAMPLES = round(MAX_SECONDS * 192_000)


@dataclass(frozen=True)
class Preview:
    """What a card shows. Names are files in the media folder; peaks are (low, high) of the waveform, -1 to 1."""

    clip: str
    poster: str | None
    strip: str | None
    spectrogram: str | None
    peaks: list[tuple[float, float]]


def preview(key: str, mp4: bytes | None, flac: bytes | None, folder: Path) -> Preview:
    """Write the files of one sample into `folder`. Raises av.FFmpegError, soundfile.LibsndfileError or ValueError if it
    does not decode."""
    sound = _decode_sound(flac) if flac else None
    if mp4 is None:
        if flac is None:
            raise ValueError("the sample has neither picture nor sound")
        clip = f"{key}.flac"
        with published(folder / clip) as temporary:
            temporary.write_bytes(flac)
    else:
        clip = f"{key}.mp4"
        with published(folder / clip) as temporary:
            _mux(mp4, sound, temporary)
    poster = strip = spectrogram = None
    if mp4 is not None:
        poster, strip = f"{key}.poster.jpg", f"{key}.jpg"
        for name, content in zip((poster, strip), _pictures(mp4), strict=True):
            with published(folder / name) as temporary:
                temporary.write_bytes(content)
    peaks: list[tuple[float, float]] = []
    if sound is not None:
        spectrogram = f"{key}.png"
        with published(folder / spectrogram) as temporary:
            temporary.write_bytes(_spectrogram(*sound))
        peaks = _peaks(sound[0])
    return Preview(clip, poster, strip, spectrogram, peaks)


def _decode_sound(flac: bytes) -> tuple[np.ndarray, int]:
    """Samples [n] of the first two channels' mean, float32, and the rate; at most MAX_SECONDS."""
    with soundfile.SoundFile(io.BytesIO(flac)) as file:
        if file.channels > 64 or not 1000 <= file.samplerate <= 192_000:
            raise ValueError(f"sound of {file.channels} channels at {file.samplerate} Hz is not shown")
        samples = file.read(min(MAX_SAMPLES, round(MAX_SECONDS * file.samplerate)), dtype="float32", always_2d=True)
        return samples[:, :2].mean(axis=1), file.samplerate


def _open_video(mp4: bytes) -> av.container.InputContainer:
    container = av.open(io.BytesIO(mp4), "r", format="mp4")
    if not container.streams.video:
        container.close()
        raise ValueError("the mp4 holds no picture")
    stream = container.streams.video[0]
    if not 0 < stream.width * stream.height <= MAX_PIXELS:
        container.close()
        raise ValueError(f"a picture of {stream.width}x{stream.height} is not shown")
    return container


def _mux(mp4: bytes, sound: tuple[np.ndarray, int] | None, path: Path) -> None:
    """Copy the picture as it is and put the sound beside it as AAC, which every browser plays; the index goes first."""
    with _open_video(mp4) as source, av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as out:
        picture = source.streams.video[0]
        copied = out.add_stream_from_template(picture)
        audio = out.add_stream("aac", rate=sound[1], options={"b": "96k"}) if sound else None
        if audio is not None:
            audio.layout = "mono"
        tick = Fraction(picture.time_base or 0)
        packets: list[tuple[Fraction, int, int, av.Packet]] = []
        for packet in source.demux(picture):
            if packet.dts is not None and packet.pts is not None and packet.pts * tick < MAX_SECONDS:
                packet.stream = copied
                packets.append((packet.dts * tick, 0, len(packets), packet))
        if sound and audio is not None:
            frame = av.AudioFrame.from_ndarray(sound[0][None, :].copy(), format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = sound[1], Fraction(1, sound[1]), 0
            for packet in [*audio.encode(frame), *audio.encode(None)]:
                packets.append(((packet.dts or 0) * Fraction(packet.time_base or 0), 1, len(packets), packet))
        for *_, packet in sorted(packets, key=lambda entry: entry[:3]):
            out.mux(packet)


def _pictures(mp4: bytes) -> tuple[bytes, bytes]:
    """Two JPEGs: one frame to show before the clip plays, and STRIP_FRAMES frames side by side, evenly spread over the clip."""
    poster, scaler = b"", Scaler()
    with _open_video(mp4) as container:
        stream = container.streams.video[0]
        tick = float(stream.time_base or 1)
        length = (stream.duration or 0) * tick
        length = min(length, MAX_SECONDS)
        width = min(STRIP_WIDTH, max(2, round(stream.width * STRIP_HEIGHT / stream.height)))
        start = stream.start_time or 0
        tiles: list[np.ndarray] = []
        for index in range(STRIP_FRAMES):
            target = start + int((index + 0.5) / STRIP_FRAMES * length / tick)
            container.seek(target, stream=stream)
            found = None
            for frame in container.decode(stream):
                found = frame
                if frame.pts is not None and frame.pts >= target:
                    break
            if found is not None:
                if not poster:
                    share = min(1.0, POSTER_SIDE / max(found.width, found.height))
                    size = {"width": max(2, round(found.width * share)), "height": max(2, round(found.height * share))}
                    poster = _encode(
                        scaler(found, **size, format="rgb24", interpolation="AREA").to_ndarray(), "mjpeg", "yuvj420p"
                    )
                tile = scaler(
                    found, width=width, height=STRIP_HEIGHT, format="rgb24", interpolation="AREA"
                ).to_ndarray()
                tiles += [tile, np.full((STRIP_HEIGHT, 4, 3), 128, np.uint8)]
    if not tiles:
        raise ValueError("no frame of the mp4 decodes")
    return poster, _encode(np.concatenate(tiles[:-1], axis=1), "mjpeg", "yuvj420p")


def _encode(image: np.ndarray, codec: str, pixel_format: str) -> bytes:
    """A single picture, [height, width, 3] uint8, as JPEG or PNG."""
    encoder = av.CodecContext.create(codec, "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = (
        image.shape[1],
        image.shape[0],
        pixel_format,
        Fraction(1, 1),
    )
    if codec == "mjpeg":
        encoder.options = {"q": "4"}
    frame = Scaler()(av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24"), format=pixel_format)
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def _peaks(samples: np.ndarray) -> list[tuple[float, float]]:
    """Least and greatest sample of each of WAVE_POINTS stretches of equal length."""
    cuts = np.linspace(0, len(samples), min(WAVE_POINTS, max(1, len(samples))) + 1).astype(int)
    pieces = [samples[a : max(b, a + 1)] for a, b in pairwise(cuts)]
    return [(float(piece.min()), float(piece.max())) for piece in pieces if piece.size]


#: Anchors of a dark-to-light colour map whose lightness rises evenly.
COLOURS = np.array(
    [[6, 6, 30], [54, 16, 104], [136, 34, 120], [214, 66, 88], [250, 138, 62], [253, 212, 120], [255, 253, 226]],
    np.float32,
)


def _spectrogram(samples: np.ndarray, rate: int) -> bytes:
    """A PNG of the log-magnitude short-time spectrum: Hann windows of 32 ms, 80 dB below the loudest point, low frequencies
    at the bottom."""
    size = max(64, round(0.032 * rate))
    columns, height = SPECTROGRAM_SIZE
    padded = np.pad(samples, (size // 2, size))
    starts = np.linspace(0, max(0, len(samples) - 1), columns).astype(int)
    windows = np.stack([padded[start : start + size] for start in starts]) * np.hanning(size).astype(np.float32)
    power = np.abs(np.fft.rfft(windows, axis=1)) ** 2
    level = 10 * np.log10(power + 1e-12)
    shade = np.clip((level - max(level.max(), -60) + 80) / 80, 0, 1).T[::-1]
    rows = np.linspace(0, shade.shape[0] - 1, height)
    low = np.floor(rows).astype(int)
    mix = (rows - low)[:, None]
    shade = shade[low] * (1 - mix) + shade[np.minimum(low + 1, shade.shape[0] - 1)] * mix
    place = shade * (len(COLOURS) - 1)
    index = np.minimum(place.astype(int), len(COLOURS) - 2)
    colour = COLOURS[index] + (COLOURS[index + 1] - COLOURS[index]) * (place - index)[..., None]
    return _encode(colour.astype(np.uint8), "png", "rgb24")

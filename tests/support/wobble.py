"""Time stamps that swing around samples which are in truth contiguous, and how clean a tone is."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: (phase of each stamp in periods, random numbers) → deviation between -1 and 1.
SHAPES: dict[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "sine": lambda phase, _: np.sin(2 * np.pi * phase),
    "sawtooth": lambda phase, _: 2 * (phase % 1) - 1,
    "square": lambda phase, _: np.where(phase % 1 < 0.5, 1.0, -1.0),
    "random": lambda phase, dice: dice.uniform(-1, 1, len(phase)),
    "late packets": lambda phase, dice: (dice.uniform(size=len(phase)) < 0.05).astype(float),
    "every seventh late": lambda phase, _: (np.arange(len(phase)) % 7 == 6).astype(float),
}


def wobble(shape: str, seconds: Floats, size: float, period: float, seed: int) -> Floats:
    """Deviations in seconds, up to `size`, of stamps at `seconds`."""
    dice = np.random.default_rng(seed)
    return size * SHAPES[shape](seconds / period + dice.uniform(), dice)


def off_tone(sound: NDArray[np.float32], rate: int, tone: float = 1000.0, width: float = 10.0) -> float:
    """Energy further than `width` Hz from `tone`, dB below the energy near it."""
    spectrum = np.abs(np.fft.rfft(sound.astype(np.float64) * np.blackman(len(sound)))) ** 2
    near = np.abs(np.fft.rfftfreq(len(sound), 1 / rate) - tone) < width
    return float(10 * np.log10(spectrum[~near].sum() / spectrum[near].sum() + 1e-20))


def write_sound(
    path: Path,
    container: str,
    codec: str,
    sound: NDArray[np.float32],
    rate: int,
    moved: Callable[[float], float],
    *,
    pictures: str | None = None,
    late: float = 0.2,
) -> Path:
    """Write `sound` (n,) or (channels, n) with each packet stamped `late` + `moved`(its time) seconds later than it is.

    MP4 and MOV store how long each packet lasts, so there no packet can be earlier than the one before. `pictures` is the codec
    of a grey film of 24 pictures a second from 0 s on.
    """
    channels = np.atleast_2d(sound)
    with av.open(str(path), "w", format=container) as out:
        track, packets = _encoded(out, codec, channels, rate)
        film = _film(out, pictures, channels.shape[1] / rate) if pictures else []
        unit, last = Fraction(1, 90000), -1
        for packet in packets:
            time = float(packet.pts * packet.time_base)
            packet.pts = round((time + late + moved(time)) / unit)
            packet.dts = round(
                (time + late - 0.15) / unit
            )  # evenly and early, so that what is shown may come in any order
            if container in ("mp4", "mov"):
                packet.pts = packet.dts = max(packet.pts, last + 90)
            last, packet.time_base, packet.stream = packet.pts, unit, track
        for packet in sorted([*packets, *film], key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    return path


def _encoded(out: Any, codec: str, sound: NDArray[np.float32], rate: int) -> tuple[Any, list[Any]]:
    layout = "mono" if len(sound) == 1 else "stereo"
    if codec == "vorbis":
        ogg = io.BytesIO()
        soundfile.write(ogg, sound.T, rate, format="OGG", subtype="VORBIS")
        source = av.open(io.BytesIO(ogg.getvalue()))
        packets = [packet for packet in source.demux() if packet.size]
        return out.add_stream_from_template(source.streams.audio[0]), packets
    track = out.add_stream(codec, rate=rate, layout=layout)
    packets = []
    size = track.codec_context.frame_size or 1024
    kind = "s16" if codec.startswith("pcm_s16") else "flt" if codec == "libopus" else "fltp"
    for first in range(0, sound.shape[1], size):
        part = sound[:, first : first + size]
        data = part if kind == "fltp" else part.T.reshape(1, -1)
        data = np.rint(data * 32767).astype(np.int16) if kind == "s16" else data.astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(data), kind, layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        packets += track.encode(frame)
    return track, packets + track.encode(None)


def _film(out: Any, codec: str, seconds: float) -> list[Any]:
    film = out.add_stream(codec, rate=24)
    film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
    packets = []
    for number in range(round(seconds * 24)):
        image = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 16 + number % 200, np.uint8), "rgb24")
        image.pts, image.time_base = number, Fraction(1, 24)
        packets += film.encode(image)
    return packets + film.encode(None)

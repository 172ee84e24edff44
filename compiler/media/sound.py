"""Sound: from decoded frames of any rate, format and layout to samples of the recipe on the picture's clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import soundfile
import soxr
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from javisc.compiler.media.edits import Edit
from javisc.compiler.media.quality import Clipping
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe

Sound: TypeAlias = NDArray[np.float32]

#: A gap or an overlap longer than this is filled with silence or cut; below it, the clock is followed by stretching.
LEAP = Fraction(1, 50)
#: Smoothed deviation between time stamps and sample count that starts a correction, and that ends it, seconds.
DRIFT_ON, DRIFT_OFF = 0.001, 0.0002
#: A correction never changes the speed by more than this.
MAX_STRETCH = 0.01
#: More channels than any layout has.
MAX_CHANNELS = 64
#: Samples that are handled together.
RUN = 8192
#: Sound that is decoded before the first picture is known is kept up to this many samples.
MAX_WAITING = 64 * 1024 * 1024


def to_float(samples: NDArray[Any]) -> Sound:
    """Decoded samples of any type as float32 in -1 to 1. What is no number becomes silence."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if samples.dtype.kind == "i":
        return samples.astype(np.float32) * np.float32(0.5 ** (8 * samples.dtype.itemsize - 1))
    with np.errstate(over="ignore"):
        floats = samples.astype(np.float32)
    return floats if np.isfinite(floats).all() else np.nan_to_num(floats, nan=0.0, posinf=0.0, neginf=0.0)


#: Weight of a source channel in the left and right of a stereo mix (ITU-R BS.775; LFE is left out, as there).
_HALF_POWER = 0.5**0.5
_LEFT_RIGHT: dict[str, tuple[float, float]] = {
    "FL": (1, 0),
    "FR": (0, 1),
    "FC": (_HALF_POWER, _HALF_POWER),
    "LFE": (0, 0),
    "LFE2": (0, 0),
    "BL": (_HALF_POWER, 0),
    "BR": (0, _HALF_POWER),
    "SL": (_HALF_POWER, 0),
    "SR": (0, _HALF_POWER),
    "BC": (0.5, 0.5),
    "FLC": (1, 0),
    "FRC": (0, 1),
    "WL": (1, 0),
    "WR": (0, 1),
    "DL": (1, 0),
    "DR": (0, 1),
}


def mix_matrix(names: tuple[str, ...], channels: int) -> Sound:
    """Weights (channels, len(names)) of a downmix to 1 or 2 channels that cannot clip: each row's sum is at most one.

    Channels of unknown position count alike.
    """
    if len(names) == 1:
        return np.ones((channels, 1), np.float32)
    if all(name in _LEFT_RIGHT for name in names) and any(any(_LEFT_RIGHT[name]) for name in names):
        matrix = np.array([_LEFT_RIGHT[name] for name in names], np.float64).T
    else:
        matrix = np.ones((2, len(names)))
    if channels == 1:
        matrix = matrix.sum(axis=0, keepdims=True)
    return (matrix / max(matrix.sum(axis=1).max(), 1e-9)).astype(np.float32)


class SampleClock:
    """Puts chunks of one sample rate on a gapless line of samples, following their time stamps.

    Sample n of the line is heard at n / rate. Jitter of time stamps (containers round to a millisecond) is ignored; a drift
    of the smoothed deviation beyond 1 ms is followed by stretching chunks; leaps beyond 20 ms become silence or a cut.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.line = 0
        self.silence_head = 0
        self.filled = 0
        self.cut = 0
        self.stretched = False
        self._deviation = 0.0
        self._correcting = False
        self._started = False

    def place(self, chunk: Sound, time: Fraction | None) -> Sound:
        """What to append to the line for `chunk` (channels, n) heard at `time` seconds; None means right after the last."""
        if time is not None:
            chunk = self._follow(chunk, time)
        self.line += chunk.shape[1]
        return chunk

    def _follow(self, chunk: Sound, time: Fraction) -> Sound:
        ahead = time * self.rate - self.line  # samples missing (+) or too many (-)
        if not self._started or abs(ahead) > LEAP * self.rate:
            return self._leap(chunk, round(ahead))
        share = min(chunk.shape[1] / (0.2 * self.rate), 1.0)  # smoothing over a fifth of a second
        self._deviation += share * (float(ahead) / self.rate - self._deviation)
        if abs(self._deviation) > DRIFT_ON:
            self._correcting = True
        elif abs(self._deviation) < DRIFT_OFF:
            self._correcting = False
        if self._correcting and chunk.shape[1] > 8:
            limit = max(int(MAX_STRETCH * chunk.shape[1]), 1)
            change = max(-limit, min(limit, round(self._deviation * self.rate)))
            if change:
                self._deviation -= change / self.rate
                self.stretched = True
                return stretch(chunk, chunk.shape[1] + change)
        return chunk

    def _leap(self, chunk: Sound, missing: int) -> Sound:
        self._deviation, self._correcting = 0.0, False
        if missing >= 0:
            if not self._started:
                self.silence_head = missing
            else:
                self.filled += missing
            self._started = True
            return np.concatenate([np.zeros((chunk.shape[0], missing), np.float32), chunk], axis=1)
        kept = chunk[:, -missing:]
        if kept.shape[1]:
            self._started = True
        self.cut += chunk.shape[1] - kept.shape[1]
        return kept


def stretch(chunk: Sound, length: int) -> Sound:
    """Resample `chunk` (channels, n) to `length` samples by cubic Hermite interpolation (Catmull-Rom)."""
    n = chunk.shape[1]
    at = np.arange(length) * (n / length)
    left = np.minimum(at.astype(np.int64), n - 1)
    part = (at - left).astype(np.float32)
    edge = np.pad(chunk, ((0, 0), (1, 2)), mode="edge")
    a, b, c, d = (edge[:, left + shift] for shift in range(4))
    return b + 0.5 * part * (c - a + part * (2 * a - 5 * b + 4 * c - d + part * (3 * (b - c) + d - a)))


@dataclass
class _Run:
    """Decoded frames of one kind that follow each other without a gap."""

    kind: tuple[int, str, str]
    time: Fraction | None
    planar: bool
    names: tuple[str, ...]
    frames: list[NDArray[Any]] = field(default_factory=list)
    samples: int = 0

    def continues(self, time: Fraction | None) -> bool:
        """True if a frame at `time` follows the run's last sample, as closely as containers tell times."""
        if time is None or self.time is None:
            return time is None
        return abs(float(time - self.time) - self.samples / self.kind[0]) < 0.0015

    def sound(self) -> Sound:
        """All samples (channels, n) in -1 to 1."""
        joined = np.concatenate(self.frames, axis=1)
        return to_float(joined if self.planar else joined.reshape(-1, len(self.names)).T)


class SoundTrack:
    """Collects the recipe's samples in a scratch file, frame by frame; memory does not grow with the clip's length."""

    def __init__(self, recipe: Recipe, scratch: Path, edit: Edit | None = None) -> None:
        self.recipe = recipe
        self.edit = edit or Edit()
        self.clipping = Clipping()
        self.first: Fraction | None = None
        self.rate = 0
        self.channels = 0
        self.frames = 0
        self.pad_head = 0
        self.repaired = 0.0
        self.written = 0
        self.limit: int | None = None
        self._path = scratch / "sound.pcm"
        self._pcm = self._path.open("w+b", buffering=1 << 18)
        self._origin: Fraction | None = None
        self._waiting: list[tuple[Sound, int, Fraction | None]] = []
        self._waiting_samples = 0
        self._run: _Run | None = None
        self._clock: SampleClock | None = None
        self._resampler: soxr.ResampleStream | None = None

    @property
    def full(self) -> bool:
        """True once `limit` samples are there."""
        return self.limit is not None and self.written >= self.limit

    @property
    def started(self) -> bool:
        """True once `start` was called."""
        return self._origin is not None

    def push(self, frame: AudioFrame) -> None:
        """Add a decoded frame. Frames that follow each other are handled together: `settle` ends such a run."""
        if frame.samples <= 0 or frame.sample_rate <= 0:
            return
        if frame.layout.nb_channels > MAX_CHANNELS:
            raise Rejected("too_large", f"{frame.layout.nb_channels} channels")
        self.frames += 1
        time = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
        kind = (frame.sample_rate, frame.format.name, frame.layout.name)
        run = self._run
        if run is not None and (run.kind != kind or run.samples >= RUN or not run.continues(time)):
            self.settle()
            run = None
        if run is None:
            names = tuple(channel.name for channel in frame.layout.channels)
            if len(names) != frame.layout.nb_channels:
                names = ("?",) * frame.layout.nb_channels
            run = self._run = _Run(kind, time, frame.format.is_planar, names)
        run.frames.append(frame.to_ndarray())
        run.samples += frame.samples

    def settle(self) -> None:
        """Process the frames that wait to be handled together."""
        run, self._run = self._run, None
        if run is None:
            return
        source, time, rate = run.sound(), run.time, run.kind[0]
        if time is not None:
            source, time = self._edited(source, time + self.edit.shift, rate)
            if not source.shape[1]:
                return
        if self.first is None:
            self.first = time = time if time is not None else Fraction(0)
            self.rate, self.channels = rate, source.shape[0]
        self.clipping.push(source)
        chunk = source
        if source.shape[0] > 1 or self.recipe.channels > 1:
            chunk = mix_matrix(run.names, self.recipe.channels) @ source
        if self._origin is None:
            self._waiting.append((chunk, rate, time))
            self._waiting_samples += chunk.size
            if self._waiting_samples > MAX_WAITING:
                raise Rejected("too_large", "more sound before the first picture than a worker may hold")
        else:
            self._place(chunk, rate, time)

    def _edited(self, source: Sound, time: Fraction, rate: int) -> tuple[Sound, Fraction]:
        """Cut what lies outside the edit; return the rest and its time."""
        first = 0 if self.edit.start is None else max(round((self.edit.start - time) * rate), 0)
        last = source.shape[1] if self.edit.end is None else min(round((self.edit.end - time) * rate), source.shape[1])
        return (source[:, first:last] if first < last else source[:, :0]), time + Fraction(first, rate)

    def start(self, origin: Fraction) -> None:
        """Say when the sample's time zero is, on the container's clock."""
        self._origin = origin
        waiting, self._waiting = self._waiting, []
        for chunk, rate, time in waiting:
            self._place(chunk, rate, time)

    def _place(self, chunk: Sound, rate: int, time: Fraction | None) -> None:
        if self.full:
            return
        assert self._origin is not None
        if self._clock is None or self._clock.rate != rate:
            self._flush()
            self._clock = SampleClock(rate)
            self._clock.line = round(Fraction(self.written * rate, self.recipe.sample_rate))
            self._clock._started = self.written > 0
            if rate != self.recipe.sample_rate:
                self._resampler = soxr.ResampleStream(
                    rate, self.recipe.sample_rate, self.recipe.channels, dtype="float32", quality="VHQ"
                )
        line = self._clock.place(chunk, None if time is None else time - self._origin)
        if line.shape[1]:
            self._resample(line, last=False)

    def _resample(self, line: Sound, last: bool) -> None:
        if self._resampler is not None:
            line = self._resampler.resample_chunk(np.ascontiguousarray(line.T), last=last).T
        self._write(line)

    def _write(self, line: Sound) -> None:
        samples = np.clip(np.rint(line * 32768.0), -32768, 32767).astype("<i2")
        if self.limit is not None:
            samples = samples[:, : max(self.limit - self.written, 0)]
        self.written += samples.shape[1]
        self._pcm.write(np.ascontiguousarray(samples.T).tobytes())

    def _flush(self) -> None:
        if self._clock is not None:
            if self._resampler is not None:
                self._resample(np.zeros((self.recipe.channels, 0), np.float32), last=True)
            if self.pad_head == 0:
                self.pad_head = round(Fraction(self._clock.silence_head * self.recipe.sample_rate, self._clock.rate))
            self.repaired += (self._clock.filled + self._clock.cut) / self._clock.rate
        self._clock = self._resampler = None

    def finish(self, samples: int | None) -> tuple[int, int]:
        """End the sound. With `samples`, pad or cut to that many. Returns (samples, samples of silence at the end)."""
        self.settle()
        self._flush()
        tail = 0
        if samples is not None:
            tail = max(samples - self.written, 0)
            width = 2 * self.recipe.channels
            self._pcm.flush()
            self._pcm.truncate(samples * width)
            self.written = samples
        return self.written, tail

    def blocks(self, samples: int = 1 << 16) -> list[NDArray[np.int16]]:
        """The finished samples, as a list of memory-mapped blocks (n, channels) of int16."""
        self._pcm.flush()
        if self.written == 0:
            return []
        pcm = np.memmap(self._path, "<i2", "r").reshape(-1, self.recipe.channels)
        return [pcm[start : start + samples] for start in range(0, len(pcm), samples)]

    def close(self) -> None:
        """Drop the scratch file."""
        self._pcm.close()
        self._path.unlink(missing_ok=True)


def write_flac(track: SoundTrack, path: Path) -> None:
    """Write the finished sound as 16-bit FLAC."""
    recipe = track.recipe
    with soundfile.SoundFile(path, "w", recipe.sample_rate, recipe.channels, "PCM_16", format="FLAC") as file:
        for block in track.blocks():
            file.write(block)

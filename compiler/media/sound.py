"""Sound: from decoded frames of any rate, format and layout to samples of the recipe on the picture's clock."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
import av.error
import numpy as np
import soundfile
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from javisc.compiler.media.edits import Edit
from javisc.compiler.media.mixing import Cancelling, mix_matrix
from javisc.compiler.media.pcm import IN_MEMORY, Pcm
from javisc.compiler.media.quality import Clipping
from javisc.compiler.media.resampler import Resampler
from javisc.compiler.media.runs import RUN, Run, Stamp
from javisc.compiler.media.stamps import Placed, SampleClock, Sound
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe

#: More channels than any layout has.
MAX_CHANNELS = 64
#: A longer silence is left out of resampling and of the scratch file, seconds.
LONG_SILENCE = 10
#: A sound without a picture that pauses for longer has no clock to pause on, seconds.
MAX_PAUSE = 30
#: More damaged packets than this share, and the file is refused.
MAX_DAMAGED_SOUND = 0.1
#: Sound that is decoded before the first picture is known is kept up to this many samples.
MAX_WAITING = 64 * 1024 * 1024
STAMP_COLUMNS = ("audio_wobble_ms", "audio_stretched_ms", "audio_repaired_ms")


class Witness(Protocol):
    """Watches what is decoded."""

    def hear(self, packet: av.Packet, frames: Sequence[Any] | None) -> None:
        """A packet was decoded to these frames; None: it could not be."""


class SoundTrack:
    """Collects the recipe's samples in a scratch file, frame by frame; memory does not grow with the clip's length.

    `take` names source channels that stand for a mixed one (by its number) whose channels cancel each other, see `Cancelling`.
    """

    def __init__(
        self, recipe: Recipe, scratch: Path, edit: Edit | None = None, take: Mapping[int, int] | None = None
    ) -> None:
        self.recipe = recipe
        self.edit = edit or Edit()
        self.take = take or {}
        self.clipping = Clipping()
        self.cancelling = Cancelling()
        self.first: Fraction | None = None
        self.last = Fraction(0)
        self.rate = 0
        self.channels = 0
        self.frames = 0
        self.packets = 0
        self.damaged = 0
        self.skipped = False
        self.message = ""
        self.pad_head = 0
        self.wobble = self.stretched = self.cut = 0.0
        self.written = 0
        self.limit: int | None = None
        self._pcm = Pcm(scratch / "sound.pcm")
        self._origin: Fraction | None = None
        self._waiting: list[tuple[Sound, int, Fraction | None]] = []
        self._waiting_samples = 0
        self.run: Run | None = None
        self.witness: Witness | None = None
        self._clock: SampleClock | None = None
        self._resampler: Resampler | None = None
        self._gaps: list[tuple[int, int]] = []  # silence inside the sound, samples of the recipe
        self._ended = False
        self._clip: tuple[object, Fraction, int | None] | None = None
        self._stamps: tuple[int, int | None] = (0, None)

    @property
    def full(self) -> bool:
        """True once `limit` samples are there, or no more can come before it."""
        return self._ended or (self.limit is not None and self.written >= self.limit)

    @property
    def origin(self) -> Fraction | None:
        """When the sample's time zero is, on the container's clock; None until `start` was called."""
        return self._origin

    @property
    def started(self) -> bool:
        """True once `start` was called."""
        return self._origin is not None

    def decode(self, packet: av.Packet) -> None:
        """Decode a packet of the sound's stream and add its frames. What does not decode is counted."""
        wanted = packet.size > 0 and self._wanted(packet)
        if packet.size > 0:
            self.packets += wanted
            self.skipped = self.skipped or (self.frames == 0 and packet.has_sidedata("skip_samples"))
        frames: list[Any] | None
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self.damaged += wanted
            self.message = self.message or f"decode sound: {error}"
            frames = None
        if self.witness is not None:
            self.witness.hear(packet, frames)
        for frame in frames or ():
            assert isinstance(frame, AudioFrame)
            self.push(frame)

    def _wanted(self, packet: av.Packet) -> bool:
        """True if a packet's sound belongs to the clip, as far as that is known."""
        if packet.pts is None or self._origin is None:
            return True
        clip = (packet.stream, self._origin, self.limit)
        if clip != self._clip:  # what of the clip's bounds in the packets' own units is the same for all of a stream's
            self._clip, unit = clip, packet.time_base
            first = (self._origin - self.edit.shift) / unit
            length = None if self.limit is None else Fraction(self.limit, self.recipe.sample_rate) / unit
            self._stamps = math.ceil(first), None if length is None else math.ceil(first + length)
        first_stamp, end = self._stamps
        return packet.pts >= first_stamp and (end is None or packet.pts < end)

    def push(self, frame: AudioFrame) -> None:
        """Add a decoded frame. Frames that follow each other are handled together: `settle` ends such a run."""
        if frame.samples <= 0 or frame.sample_rate <= 0:
            return
        kind = (frame.sample_rate, frame.format.name, frame.layout.name)
        run, stamp = self.run, Stamp.of(frame)
        if (run is None or run.kind != kind) and frame.layout.nb_channels > MAX_CHANNELS:
            raise Rejected("too_large", f"{frame.layout.nb_channels} channels")
        self.frames += 1
        if run is not None and (run.kind != kind or run.over or not run.continues(stamp)):
            self.settle()
            run = None
        if run is None:
            names = tuple(channel.name for channel in frame.layout.channels)
            if len(names) != frame.layout.nb_channels:
                names = ("?",) * frame.layout.nb_channels
            run = self.run = Run(kind, stamp, frame.format.is_planar, names)
        run.frames.append(frame)
        run.samples += frame.samples

    def settle(self) -> None:
        """Process the frames that wait to be handled together."""
        run, self.run = self.run, None
        if run is None:
            return
        time, rate = run.time, run.kind[0]
        first, last = 0, run.samples
        if time is not None:
            first, last, time = self._edited(run.samples, time + self.edit.shift, rate)
            if first >= last:
                return
            if self._passed(end := time + Fraction(last - first, rate)):
                self.last = end
                return
        self.add(run.sound()[:, first:last], run.names, rate, time)

    def _passed(self, end: Fraction) -> bool:
        """True if sound up to `end` is wholly before the clip: nothing of it is heard, counted or needed."""
        fresh = self._clock is None or self._clock.fresh
        return self.first is not None and self._origin is not None and fresh and end <= self._origin

    def add(self, source: Sound, names: tuple[str, ...], rate: int, time: Fraction | None) -> None:
        """Add decoded samples (channels, n) of the named channels, heard at `time`; None: right after the last."""
        if self.first is None:
            self.first = time = time if time is not None else Fraction(0)
            self.rate, self.channels = rate, source.shape[0]
        self.last = (self.last if time is None else time) + Fraction(source.shape[1], rate)
        inside = self._inside(source.shape[1], rate, time)
        self.clipping.push(source[:, inside])
        chunk = source
        if source.shape[0] > 1 or self.recipe.channels > 1:
            matrix = mix_matrix(names, self.recipe.channels)
            for row, channel in self.take.items():
                if channel < len(names):
                    matrix[row] = np.eye(len(names), dtype=np.float32)[channel]
            chunk = matrix @ source
            if source[:, inside].shape[1]:
                self.cancelling.push(source[:, inside], matrix, chunk[:, inside], rate)
        if self._origin is None:
            self._waiting.append((chunk, rate, time))
            self._waiting_samples += chunk.size
            if self._waiting_samples > MAX_WAITING:
                raise Rejected("too_large", "more sound before the first picture than a worker may hold")
        else:
            self._place(chunk, rate, time)

    def _inside(self, samples: int, rate: int, time: Fraction | None) -> slice:
        """Which of so many samples at `time` are inside the clip: what is only read to look ahead is not judged."""
        if self._origin is None or time is None:
            return slice(None)
        first = round((self._origin - time) * rate)
        end = samples
        if self.limit is not None:
            end = first + round(Fraction(self.limit * rate, self.recipe.sample_rate))
        return slice(max(first, 0), max(end, 0))

    def _edited(self, samples: int, time: Fraction, rate: int) -> tuple[int, int, Fraction]:
        """Which samples (from, to) lie inside the edit, and their time."""
        first = 0 if self.edit.start is None else max(round((self.edit.start - time) * rate), 0)
        last = samples if self.edit.end is None else min(round((self.edit.end - time) * rate), samples)
        return first, last, time + Fraction(first, rate)

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
            line = round(Fraction(self.written * rate, self.recipe.sample_rate))
            self._clock = SampleClock(rate, line, started=self.written > 0)
            self._open_resampler(rate)
        for placed in self._clock.push(chunk, None if time is None else time - self._origin):
            self._add(self._clock, placed)

    def _open_resampler(self, rate: int) -> None:
        if rate != self.recipe.sample_rate:
            self._resampler = Resampler(rate, self.recipe.sample_rate, self.recipe.channels)

    def _add(self, clock: SampleClock, placed: Placed) -> None:
        if self.full:
            return
        if placed.silence:
            self._silence(clock, clock.line - placed.sound.shape[1], placed.silence)
        if not self.full:
            self._resample(placed.sound)

    def _silence(self, clock: SampleClock, end: int, samples: int) -> None:
        """Be silent for `samples` of the source up to its sample `end`. However long it is, it takes no memory."""
        first, last = (round(Fraction(at * self.recipe.sample_rate, clock.rate)) for at in (end - samples, end))
        if self.limit is not None and last >= self.limit:
            self._ended = True  # what comes after it has no place in the clip
            return
        if first > 0:
            if samples > MAX_PAUSE * clock.rate and self.recipe.kind == "audio":
                where = f"at {(end - samples) / clock.rate:.3f} s and then at {end / clock.rate:.3f} s"
                raise Rejected("timestamps", f"the sound's time stamps leap: sound {where}")
            self._gaps.append((first, last))
        if samples <= LONG_SILENCE * clock.rate:
            while samples:
                part = min(samples, RUN * 16)
                self._resample(np.zeros((self.recipe.channels, part), np.float32))
                samples -= part
            return
        self._end_resampler()
        self._pcm.seek(last * 2 * self.recipe.channels)
        self.written = last
        self._open_resampler(clock.rate)

    def _resample(self, line: Sound) -> None:
        self._write(line if self._resampler is None else self._resampler.push(line))

    def _end_resampler(self) -> None:
        resampler, self._resampler = self._resampler, None
        if resampler is not None:
            self._write(resampler.end())

    def _write(self, line: Sound) -> None:
        if self.limit is not None:
            line = line[:, : max(self.limit - self.written, 0)]
        self.written += line.shape[1]
        samples = line.T * np.float32(32768)
        np.rint(samples, out=samples)
        np.minimum(np.maximum(samples, -32768, out=samples), 32767, out=samples)
        self._pcm.write(samples.astype("<i2", order="C").tobytes())

    def _flush(self) -> None:
        clock, self._clock = self._clock, None
        if clock is None:
            return
        for placed in clock.finish():
            self._add(clock, placed)
        self._end_resampler()
        if self.pad_head == 0:
            self.pad_head = round(Fraction(clock.silence_head * self.recipe.sample_rate, clock.rate))
        self.cut += clock.cut / clock.rate
        self.stretched += clock.stretched / clock.rate
        self.wobble = max(self.wobble, clock.wobble)

    def finish(self, samples: int | None) -> tuple[int, int]:
        """End the sound. With `samples`, pad or cut to that many. Returns (samples, samples of silence at the end)."""
        self.settle()
        self._flush()
        tail = 0
        if samples is not None:
            sound = next((first for first, last in self._gaps if first < samples <= last), self.written)
            tail = max(samples - sound, 0)
            width = 2 * self.recipe.channels
            self._pcm.resize(samples * width)
            self.written = samples
        self._gaps = [gap for gap in self._gaps if gap[1] < self.written]
        return self.written, tail

    def columns(self) -> dict[str, object]:
        """What the finished sound's stamps and packets were like: a part of SOURCE."""
        if not self.frames:
            return {**dict.fromkeys(STAMP_COLUMNS), "source_inverted": False, "damaged_sound": self._damage}
        filled = sum(last - first for first, last in self._gaps) / self.recipe.sample_rate
        return {
            "audio_wobble_ms": self.wobble * 1000,
            "audio_stretched_ms": self.stretched * 1000,
            "audio_repaired_ms": (filled + self.cut) * 1000,
            "source_inverted": bool(self.take),
            "damaged_sound": self._damage,
        }

    @property
    def _damage(self) -> float:
        return self.damaged / self.packets if self.packets else 0.0

    def check(self) -> None:
        """Raise `Rejected` if too much of the sound is damaged."""
        if self.damaged > MAX_DAMAGED_SOUND * max(self.packets, 1):
            raise Rejected(
                "corrupt", f"{self.damaged} of {self.packets} packets of the sound are damaged; {self.message}"
            )

    def blocks(self, samples: int = 1 << 18) -> list[NDArray[np.int16]]:
        """The finished samples, as a list of blocks (n, channels) of int16, memory-mapped where they are many."""
        if self.written == 0:
            return []
        pcm = self._pcm.samples().reshape(-1, self.recipe.channels)
        return [pcm[start : start + samples] for start in range(0, len(pcm), samples)]

    def close(self) -> None:
        """Drop the samples."""
        self._pcm.close()


def write_flac(track: SoundTrack, path: Path) -> None:
    """Write the finished sound as 16-bit FLAC.

    A short one is encoded in memory first: soundfile flushes a file that it closes to the disk, for which a build has no use.
    """
    recipe, blocks = track.recipe, track.blocks()
    short = sum(block.nbytes for block in blocks) <= IN_MEMORY
    target = io.BytesIO() if short else path
    with soundfile.SoundFile(target, "w", recipe.sample_rate, recipe.channels, "PCM_16", format="FLAC") as file:
        for block in blocks:
            file.write(block)
    if isinstance(target, io.BytesIO):
        path.write_bytes(target.getbuffer())

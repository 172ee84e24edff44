"""One decode of a source: pictures and sounds on one clock, in the recipe's form; a pure function of bytes and recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import av.error
from av.container import InputContainer
from av.video.frame import VideoFrame

from javisc.compiler.audio import SoundTrack, write_flac
from javisc.compiler.clock import Hold, samples_for
from javisc.compiler.probe import MAX_PIXELS, check_file, choose_audio, choose_video, open_source, orientation
from javisc.compiler.quality import SILENT_COLUMNS, PictureStatistics, small_luma, sound_columns
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe
from javisc.compiler.video import Converter, Deinterlacer, Encoder, is_full

#: A picture that holds longer than this, or times that run back by more, mean a broken clock.
MAX_HOLD = Fraction(30)
#: The longest clip, so that a lying clock cannot fill the disk.
MAX_SECONDS = Fraction(6 * 3600)
#: More damaged packets and pictures than this share, and the file is refused.
MAX_DAMAGE = 0.1
DUMMY_HEIGHT, DUMMY_WIDTH, DUMMY_FPS = 720, 1280, 24


@dataclass(frozen=True)
class Clip:
    """A compiled sample: files in the scratch folder and the manifest columns that are known by now."""

    mp4: Path | None
    flac: Path | None
    columns: dict[str, object] = field(default_factory=dict)


def transcode(source: Path, recipe: Recipe, scratch: Path, *, window: tuple[float, float] | None = None) -> Clip:
    """Compile one file into `scratch` (an empty folder of the caller's).

    `window` (start, end) takes a part: seconds on the sample clock of the whole file, whose zero is its first picture.
    Raises `Rejected`.
    """
    if recipe.kind == "audio":
        return transcode_audio(source, recipe, scratch, window=window)
    status = check_file(source)
    digest = _sha256(source)
    with open_source(source) as container:
        columns = _Pass(container, recipe, scratch, window).run()
    _unchanged(source, status.st_size, status.st_mtime_ns)
    columns |= {"source_sha256": digest, "source_bytes": status.st_size}
    flac = scratch / "clip.flac"
    return Clip(scratch / "clip.mp4", flac if flac.exists() else None, columns)


def _side_data(frame: VideoFrame) -> Iterable[Any]:
    return cast(Iterable[Any], frame.side_data)  # the stubs say a dictionary; it is a sequence of side data


class _Pass:
    """The single pass over an opened file."""

    def __init__(
        self, container: InputContainer, recipe: Recipe, scratch: Path, window: tuple[float, float] | None
    ) -> None:
        self.container, self.recipe, self.scratch = container, recipe, scratch
        video, self.audio = choose_video(container), choose_audio(container)
        if video is None:
            raise Rejected("no_video")
        if self.audio is None and not recipe.allow_silent:
            raise Rejected("no_audio", "no audio stream")
        self.video = video
        for stream in (self.video, self.audio):
            if stream is not None:
                stream.codec_context.thread_count = 1
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        start, end = (Fraction(0), None) if window is None else (Fraction(window[0]), Fraction(window[1]))
        self.start = start
        self.length = MAX_SECONDS if end is None else end - start
        if recipe.max_seconds is not None:
            self.length = min(self.length, Fraction(recipe.max_seconds))
        self.max_frames = max(round(self.length * recipe.rate), 1)
        self.sound = SoundTrack(recipe, scratch)
        self.sound.limit = samples_for(self.max_frames, recipe.sample_rate, recipe.rate)
        self.deinterlacer = Deinterlacer()
        self.hold: Hold[tuple[VideoFrame, object]] = Hold(recipe.rate)
        self.statistics = PictureStatistics()
        self.converter: Converter | None = None
        self.encoder: Encoder | None = None
        self.origin: Fraction | None = None
        self.times: list[Fraction] = []
        self.first = self.last = Fraction(0)
        self.longest = Fraction(0)
        self.intervals: dict[Fraction, int] = {}
        self.decoded = self.damaged = self.packets = 0
        self.message = ""
        self.done = False

    def run(self) -> dict[str, object]:
        """Decode everything; return the columns."""
        try:
            self._read()
            self._end()
            return self._finish()
        finally:
            self.sound.close()
            if self.encoder is not None:
                self.encoder.abandon()

    def _read(self) -> None:
        streams = [stream for stream in (self.video, self.audio) if stream is not None]
        try:
            for packet in self.container.demux(streams):
                if packet.stream_index == self.video.index:
                    if not self.done:
                        self._decode_video(packet)
                elif not self.sound.full:
                    self._decode_audio(packet)
                if self.done and (self.audio is None or self.sound.full):
                    return
        except (av.error.FFmpegError, OSError) as error:
            self.message = f"read: {error}"

    def _decode_video(self, packet: av.Packet) -> None:
        self.packets += packet.size > 0
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self.damaged += 1
            self.message = f"decode {self.video.codec_context.name}: {error}"
            return
        for frame in frames:
            assert isinstance(frame, VideoFrame)
            if frame.is_corrupt:
                self.damaged += 1
                continue
            for ready in self.deinterlacer.push(frame):
                self._picture(ready)

    def _decode_audio(self, packet: av.Packet) -> None:
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self.message = self.message or f"decode sound: {error}"
            return
        for frame in frames:
            assert isinstance(frame, av.AudioFrame)
            self.sound.push(frame)

    def _picture(self, frame: VideoFrame) -> None:
        if self.done:
            return
        stamp = frame.pts if frame.pts is not None else frame.dts
        if stamp is None or frame.time_base is None:
            time = self.last + 1 / (self.video.average_rate or Fraction(25))
        else:
            time = stamp * frame.time_base
        if self.origin is None:
            self.first = self.last = time
            self.origin = time + self.start
            self.sound.start(self.origin)
        else:
            interval = time - self.last
            if interval > MAX_HOLD or interval < -1:
                raise Rejected(
                    "timestamps", f"from {float(self.last):.3f} s to {float(time):.3f} s between two pictures"
                )
            if interval <= 0:
                return
            self.longest = max(self.longest, interval)
            self.intervals[interval] = self.intervals.get(interval, 0) + 1
            self.last = time
        self.decoded += 1
        self.duration = (frame.duration or 0) * (frame.time_base or Fraction(0))
        if self.converter is None:
            matrix = next((bytes(data) for data in _side_data(frame) if data.type.name == "DISPLAYMATRIX"), None)
            aspect = self.video.codec_context.sample_aspect_ratio or Fraction(1)
            self.converter = Converter(self.recipe, orientation(matrix), aspect)
            self.columns_of_first = self._source_columns(frame, aspect)
        luma = (
            small_luma(frame.planes[0], frame.width, frame.height, frame.planes[0].line_size, 8, is_full(frame))
            if frame.format.name.startswith(("yuv4", "yuvj4", "nv12")) and frame.format.components[0].bits == 8
            else None
        )
        if luma is not None:
            self.statistics.source(luma)
        for _tick, (shown, small) in self.hold.push((frame, luma), time - self.origin):
            self._show(shown, small)

    def _show(self, frame: VideoFrame, luma: object) -> None:
        if self.encoder is not None and self.encoder.frames >= self.max_frames:
            self.done = True
            return
        assert self.converter is not None
        converted = self.converter.convert(frame)
        if self.encoder is None:
            assert self.converter.size is not None
            self.encoder = Encoder(self.scratch / "clip.mp4", self.recipe, *self.converter.size)
        self.encoder.add(converted)
        if luma is not None:
            self.statistics.shown(luma, 1)  # type: ignore[arg-type]

    def _end(self) -> None:
        if not self.done:
            for ready in self.deinterlacer.finish():
                self._picture(ready)
        if self.origin is not None and not self.done:
            typical = max(self.intervals, key=lambda i: self.intervals[i]) if self.intervals else Fraction(1, 25)
            hold = self.duration if 0 < self.duration <= max(self.longest, Fraction(1)) else typical
            for _tick, (shown, small) in self.hold.finish(self.last + hold - self.origin):
                self._show(shown, small)

    def _finish(self) -> dict[str, object]:
        recipe, encoder = self.recipe, self.encoder
        if encoder is None or self.converter is None or self.converter.size is None:
            raise Rejected("corrupt", self.message or "no picture decodes")
        if self.damaged > MAX_DAMAGE * max(self.packets, 1):
            raise Rejected("corrupt", f"{self.damaged} of {self.packets} pictures are damaged; {self.message}")
        if encoder.frames < recipe.min_frames:
            raise Rejected("too_short", f"{encoder.frames} frames; {self.message}")
        width, height = self.converter.size
        samples = samples_for(encoder.frames, recipe.sample_rate, recipe.rate)
        heard = self.sound.written
        samples, tail = self.sound.finish(samples)
        has_sound = self.sound.frames > 0 and tail < samples
        if not has_sound and not recipe.allow_silent:
            raise Rejected(
                "no_audio", self.message or ("the sound does not overlap the picture" if heard else "no sound decodes")
            )
        encoder.close()
        self.encoder = None
        quality = dict(SILENT_COLUMNS)
        if has_sound:
            write_flac(self.sound, self.scratch / "clip.flac")
            quality = sound_columns(self.sound.blocks(), recipe.sample_rate, self.sound.clipping)
        return {
            "num_frames": encoder.frames,
            "height": height,
            "width": width,
            "aspect_ratio": height / width,
            "fps": float(recipe.rate),
            "resolution": height * width,
            "audio_fps": recipe.sample_rate,
            "num_samples": samples if has_sound else 0,
            "channels": recipe.channels if has_sound else 0,
            "duration": float(encoder.frames / recipe.rate),
            **self.columns_of_first,
            **self._clock_columns(),
            "pad_head": self.sound.pad_head if has_sound else 0,
            "pad_tail": tail if has_sound else 0,
            "copied": False,
            **quality,
            **self.statistics.columns(),
        }

    def _source_columns(self, frame: VideoFrame, aspect: Fraction) -> dict[str, object]:
        assert self.converter is not None
        declared = self.container.duration
        return {
            "source_container": self.container.format.name,
            "source_video_codec": self.video.codec_context.name,
            "source_audio_codec": self.audio.codec_context.name if self.audio else None,
            "source_pixel_format": frame.format.name,
            "source_height": frame.height,
            "source_width": frame.width,
            "source_rotation": self.converter.turn.clockwise,
            "source_declared_frames": self.video.frames or None,
            "source_declared_seconds": None if declared is None else declared / av.time_base,
            "source_audio_tracks": len(self.container.streams.audio),
        }

    def _clock_columns(self) -> dict[str, object]:
        assert self.converter is not None
        span = self.last - self.first
        rounding = 2 * (self.video.time_base or Fraction(1, 1000)) + Fraction(1, 1000)
        vfr = bool(self.intervals) and max(self.intervals) - min(self.intervals) > rounding
        return {
            "source_fps": float((self.decoded - 1) / span) if span > 0 else None,
            "source_vfr": vfr,
            "source_edit_list": False,
            "source_interlaced": self.deinterlacer.used,
            "source_hdr": self.converter.hdr,
            "source_decoded_frames": self.decoded,
            "source_video_start": float(self.first),
            "source_audio_start": None if self.sound.first is None else float(self.sound.first),
            "source_sample_rate": self.sound.rate or None,
            "source_channels": self.sound.channels or None,
        }


def transcode_audio(source: Path, recipe: Recipe, scratch: Path, *, window: tuple[float, float] | None = None) -> Clip:
    """Compile the sound of one file; no picture. Columns describe JavisDiT's placeholder video. Raises `Rejected`."""
    status = check_file(source)
    digest = _sha256(source)
    sound = SoundTrack(recipe, scratch)
    try:
        with open_source(source) as container:
            stream = choose_audio(container)
            if stream is None:
                raise Rejected("no_audio", "no audio stream")
            stream.codec_context.thread_count = 1
            start, end = (Fraction(0), None) if window is None else (Fraction(window[0]), Fraction(window[1]))
            length = MAX_SECONDS if end is None else end - start
            if recipe.max_seconds is not None:
                length = min(length, Fraction(recipe.max_seconds))
            sound.limit = round(length * recipe.sample_rate)
            message = _read_sound(container, stream, sound, start)
            declared = container.duration
            columns: dict[str, object] = {
                "source_container": container.format.name,
                "source_audio_codec": stream.codec_context.name,
                "source_audio_tracks": len(container.streams.audio),
            }
        samples, _ = sound.finish(None)
        duration = samples / recipe.sample_rate
        if samples == 0:
            raise Rejected("corrupt" if message else "no_audio", message or "no sound decodes")
        if int(duration * DUMMY_FPS) < recipe.min_frames:
            raise Rejected("too_short", f"{duration:.3f} s of sound")
        write_flac(sound, scratch / "clip.flac")
        quality = sound_columns(sound.blocks(), recipe.sample_rate, sound.clipping)
    finally:
        sound.close()
    _unchanged(source, status.st_size, status.st_mtime_ns)
    return Clip(
        None,
        scratch / "clip.flac",
        {
            "num_frames": int(duration * DUMMY_FPS),
            "height": DUMMY_HEIGHT,
            "width": DUMMY_WIDTH,
            "aspect_ratio": DUMMY_HEIGHT / DUMMY_WIDTH,
            "fps": float(DUMMY_FPS),
            "resolution": DUMMY_HEIGHT * DUMMY_WIDTH,
            "audio_fps": recipe.sample_rate,
            "num_samples": samples,
            "channels": recipe.channels,
            "duration": duration,
            **columns,
            "source_sha256": digest,
            "source_bytes": status.st_size,
            "source_declared_seconds": None if declared is None else declared / av.time_base,
            "source_audio_start": None if sound.first is None else float(sound.first),
            "source_sample_rate": sound.rate,
            "source_channels": sound.channels,
            "pad_head": sound.pad_head,
            "pad_tail": 0,
            "copied": False,
            **quality,
        },
    )


def _read_sound(container: InputContainer, stream: av.AudioStream, sound: SoundTrack, start: Fraction) -> str:
    message = ""
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                message = message or f"decode {stream.codec_context.name}: {error}"
                continue
            for frame in frames:
                assert isinstance(frame, av.AudioFrame)
                sound.push(frame)
                if sound.first is not None and sound._origin is None:
                    sound.start(sound.first + start)
            if sound.full:
                break
    except (av.error.FFmpegError, OSError) as error:
        message = f"read: {error}"
    return message


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise Rejected("vanished", str(error)) from error
    except OSError as error:
        raise Rejected("unreadable", str(error)) from error


def _unchanged(path: Path, size: int, mtime_ns: int) -> None:
    """Raise `Rejected` if the file changed between digest and decode."""
    status = check_file(path)
    if (status.st_size, status.st_mtime_ns) != (size, mtime_ns):
        raise Rejected("vanished", "the file changed while it was read")

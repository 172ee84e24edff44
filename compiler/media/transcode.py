"""One decode of a source: pictures and sounds on one clock, in the recipe's form; a pure function of bytes and recipe."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.video.frame import VideoFrame

from javisc.compiler.media.clock import Hold, Slots, nearest_tick, samples_for
from javisc.compiler.media.copying import Copier, NotCopyable
from javisc.compiler.media.edits import Edit
from javisc.compiler.media.encode import MAX_PIXELS, Converter, Crop, Deinterlacer, Encoder, pixel_aspect, small_luma
from javisc.compiler.media.open import Source, open_source
from javisc.compiler.media.orientation import display_matrix, orientation
from javisc.compiler.media.pictures import PictureClock
from javisc.compiler.media.quality import SILENT_COLUMNS, Luma, PictureStatistics, sound_columns
from javisc.compiler.media.sound import SoundTrack, write_flac
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe

#: The longest clip, so that a lying clock cannot fill the disk.
MAX_SECONDS = Fraction(6 * 3600)
#: More damaged packets and pictures than this share, and the file is refused.
MAX_DAMAGE = 0.1
#: A window is looked for from this many seconds before it, so that decoders and filters have settled when it begins.
RUN_UP = Fraction(2)
#: Containers with an index of key frames.
SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
DUMMY_HEIGHT, DUMMY_WIDTH, DUMMY_FPS = 720, 1280, 24


@dataclass(frozen=True)
class Clip:
    """A compiled sample: its members in the scratch folder, by extension, and the manifest columns that are known by now."""

    files: dict[str, Path]
    columns: dict[str, object] = field(default_factory=dict)

    @property
    def mp4(self) -> Path | None:
        """The pictures, where there are any."""
        return self.files.get("mp4")

    @property
    def flac(self) -> Path | None:
        """The sound, where there is any."""
        return self.files.get("flac")


def transcode(
    source: Path,
    recipe: Recipe,
    scratch: Path,
    *,
    window: tuple[float, float] | None = None,
    crop: Crop | None = None,
    sound: Path | None = None,
) -> Clip:
    """Compile one file into `scratch` (an empty folder of the caller's).

    `window` (start, end) takes a part: seconds on the sample clock of the whole file, whose zero is its first picture.
    `crop` says which part of each upright picture is wanted; the first picture's part decides the clip's size.
    `sound` is a file whose sound is taken instead of the source's own: its first sample is heard with the first picture.
    What decodes is what counts: damaged packets are skipped, the last good picture holds and missing sound is silence, until
    a tenth of the pictures is damaged. Raises `Rejected`.
    """
    if recipe.kind == "audio":
        return transcode_audio(source, recipe, scratch, window=window, sound=sound)

    def once(may_copy: bool) -> dict[str, object]:
        with open_source(source) as opened, nullcontext() if sound is None else open_source(sound) as beside:
            return _Pass(opened, recipe, scratch, window, crop, may_copy, beside).run()

    try:
        columns = once(may_copy=window is None and crop is None)
    except NotCopyable:
        columns = once(may_copy=False)
    made = {"mp4": scratch / "clip.mp4", "flac": scratch / "clip.flac"}
    return Clip({end: path for end, path in made.items() if path.exists()}, columns)


def _limits(recipe: Recipe, window: tuple[float, float] | None) -> tuple[Fraction, Fraction]:
    """(start, length) in seconds of what is wanted of a file. Raises `Rejected` if it is nothing."""
    if window is not None and not 0 <= window[0] < window[1]:
        raise Rejected("filtered", f"a window from {window[0]} s to {window[1]} s is empty")
    start = Fraction(0) if window is None else _seconds(window[0])
    end = None if window is None or math.isinf(window[1]) else _seconds(window[1])
    length = MAX_SECONDS if end is None else min(end - start, MAX_SECONDS)
    return start, length if recipe.max_seconds is None else min(length, _seconds(recipe.max_seconds))


def _seconds(value: float) -> Fraction:
    """The decimal that a float was written as: 0.1 means a tenth."""
    return Fraction(str(value))


class _Pass:
    """The single pass over an opened file."""

    def __init__(
        self,
        source: Source,
        recipe: Recipe,
        scratch: Path,
        window: tuple[float, float] | None,
        crop: Crop | None,
        may_copy: bool,
        beside: Source | None = None,
    ) -> None:
        self.container, self.recipe, self.scratch = source.container, recipe, scratch
        self.beside = beside
        heard = beside or source
        video, self.audio = source.video(), heard.audio()
        if video is None:
            raise Rejected("no_video")
        if self.audio is None and not recipe.allow_silent:
            raise Rejected("no_audio", "no audio stream")
        self.video = video
        if video.codec_context.width * video.codec_context.height > MAX_PIXELS:
            raise Rejected("too_large", f"pictures of {video.codec_context.width}x{video.codec_context.height}")
        for stream in (self.video, self.audio):
            if stream is not None:
                stream.codec_context.thread_count = 1
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self.start, length = _limits(recipe, window)
        self.max_frames = max(round(length * recipe.rate), 1)
        self.crop, self.first_tick = crop, nearest_tick(self.start, recipe.rate)
        self.audio_edit = Edit() if self.audio is None else heard.edit_of(self.audio)
        self.moved = not (source.edit_of(video).trivial and self.audio_edit.trivial)
        self.sound = SoundTrack(recipe, scratch, self.audio_edit)
        self.sound.limit = samples_for(self.max_frames, recipe.sample_rate, recipe.rate)
        self.slots = Slots() if self.container.format.name == "avi" else None
        self.clock = PictureClock(video, source.edit_of(video), self.slots, _seconds(recipe.max_hold))
        self.deinterlacer = Deinterlacer()
        self.hold: Hold[tuple[VideoFrame, Luma]] = Hold(recipe.rate)
        self.statistics = PictureStatistics()
        self.converter: Converter | None = None
        self.encoder: Encoder | None = None
        self.ticks = 0
        plain = may_copy and source.edit_of(video).trivial
        self.copier = Copier.of(self.container, video, recipe, scratch) if plain else None
        self.origin: Fraction | None = None
        self.file_start = Fraction(0)
        self.columns: dict[str, object] = {}
        self.damaged = self.packets = 0
        self.message = ""
        self.done = False
        self._shown: tuple[VideoFrame, VideoFrame] | None = None

    def run(self) -> dict[str, object]:
        """Decode everything; return the columns."""
        try:
            if self.start > 2 * RUN_UP and self.container.format.name in SEEKABLE:
                self._seek()
            self._read()
            self._end()
            if self.beside is not None and self.audio is not None:
                message, skipped = _read_sound(self.beside.container, self.audio, self.sound, self.start)
                self.message, self.moved = self.message or message, self.moved or skipped
            return self._finish()
        finally:
            self.sound.close()
            if self.encoder is not None:
                self.encoder.abandon()
            if self.copier is not None:
                self.copier.close()

    def _seek(self) -> None:
        """Go to shortly before the window, once the file's first picture has said where zero is."""
        first = self._first_picture()
        if first is None:
            return
        self.file_start, self.origin = first, first + self.start
        base = self.video.time_base or Fraction(1, 1000)
        for before in (self.start - RUN_UP, Fraction(0)):
            self.container.seek(round((first + before - self.clock.edit.shift) / base), stream=self.video)
            landed = self._first_picture()
            if landed is not None and (landed <= self.origin or before == 0):
                self.container.seek(round((first + before - self.clock.edit.shift) / base), stream=self.video)
                return

    def _first_picture(self) -> Fraction | None:
        """The time of the next picture that decodes, on a clock of its own; the place in the file is lost."""
        clock = PictureClock(self.video, self.clock.edit, None, self.clock.max_hold)
        try:
            for packet in self.container.demux(self.video):
                for frame in packet.decode():
                    assert isinstance(frame, VideoFrame)
                    clock.stamp(frame)
                    for _, time in clock.place(frame):
                        return time
        except (av.error.FFmpegError, OSError) as error:
            self.message = f"seek: {error}"
        return None

    def _read(self) -> None:
        audio = self.audio if self.beside is None else None
        streams = [stream for stream in (self.video, audio) if stream is not None]
        try:
            for packet in self.container.demux(streams):
                if packet.stream.index == self.video.index:  # a flush packet has stream_index 0, whatever its stream
                    if not self.done:
                        self._decode_video(packet)
                elif not self.sound.full:
                    self._decode_audio(packet)
                if self.done and (audio is None or self.sound.full):
                    return
        except (av.error.FFmpegError, OSError) as error:
            self.message = f"read: {error}"

    def _decode_video(self, packet: av.Packet) -> None:
        self.packets += packet.size > 0
        if self.slots is not None and packet.size > 0 and packet.dts is not None:
            self.slots.add(packet.dts * packet.time_base)
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            if self.copier is not None:
                raise NotCopyable(str(error)) from error
            self.damaged += 1
            self.message = f"decode {self.video.codec_context.name}: {error}"
            if self.slots is not None:
                self.slots.drop()
            return
        for frame in frames:
            assert isinstance(frame, VideoFrame)
            self.clock.stamp(frame)
            if frame.is_corrupt:
                self.damaged += 1
                continue
            for ready in self.deinterlacer.push(frame):
                self._picture(ready)
        if self.copier is not None and packet.size:
            self.copier.add(packet)
        if self.slots is not None:
            self.slots.settle(self.video.codec_context.reorder_depth)

    def _decode_audio(self, packet: av.Packet) -> None:
        self.moved = self.moved or (self.sound.frames == 0 and packet.size > 0 and packet.has_sidedata("skip_samples"))
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self.message = self.message or f"decode sound: {error}"
            return
        for frame in frames:
            assert isinstance(frame, av.AudioFrame)
            self.sound.push(frame)

    def _picture(self, frame: VideoFrame) -> None:
        for placed, time in self.clock.place(frame):
            self._placed(placed, time)

    def _placed(self, frame: VideoFrame, time: Fraction) -> None:
        if self.done:
            return
        if self.converter is None:
            if self.origin is None:
                self.file_start, self.origin = time, time + self.start
            if self.beside is None:
                self.sound.start(self.origin)
            self.converter = Converter(self.recipe, orientation(display_matrix(frame)), pixel_aspect(self.video))
            self.columns = self._source_columns(frame)
        assert self.origin is not None
        luma = small_luma(frame)
        inside = time >= self.origin
        if inside:
            self.statistics.source(luma)
        for _tick, (shown, small) in self.hold.push((frame, luma), time - self.origin):
            self._show(shown, small)

    def _show(self, frame: VideoFrame, luma: Luma) -> None:
        """Put one tick into the file."""
        if self.ticks >= self.max_frames:
            self.done = True
            return
        assert self.converter is not None
        repeated = self._shown is not None and self._shown[0] is frame
        if self.crop is not None:
            part = self.crop(self.first_tick + self.ticks, *self.converter.upright(frame))
            self._shown = (frame, self.converter.convert(frame, part))
        elif not repeated:
            self._shown = (frame, self.converter.convert(frame))
        assert self._shown is not None
        self.ticks += 1
        self.statistics.shown(luma)
        if self.copier is not None:
            if self._shown[1] is not frame:
                raise NotCopyable("the picture has to be converted")
            return
        if self.encoder is None:
            assert self.converter.size is not None
            self.encoder = Encoder(self.scratch / "clip.mp4", self.recipe, *self.converter.size)
        self.encoder.add(self._shown[1])

    def _end(self) -> None:
        if self.done:
            return
        for ready in self.deinterlacer.finish():
            self._picture(ready)
        for placed, time in self.clock.rest():
            self._placed(placed, time)
        if self.origin is not None and self.clock.first is not None:
            for _tick, (shown, small) in self.hold.finish(self.clock.end - self.origin):
                self._show(shown, small)

    def _finish(self) -> dict[str, object]:
        recipe, frames = self.recipe, self.ticks
        if self.copier is not None and self.copier.frames != frames:
            raise NotCopyable("not every packet is a tick")
        writer = self.encoder or self.copier
        if writer is None or frames == 0 or self.converter is None or self.converter.size is None:
            raise Rejected("corrupt", self.message or "no picture decodes")
        self.clock.check()
        if self.damaged > MAX_DAMAGE * max(self.packets, 1):
            raise Rejected("corrupt", f"{self.damaged} of {self.packets} pictures are damaged; {self.message}")
        if frames < recipe.min_frames:
            raise Rejected("too_short", f"{frames} frames; {self.message}")
        width, height = self.converter.size
        samples, tail = self.sound.finish(samples_for(frames, recipe.sample_rate, recipe.rate))
        has_sound = self.sound.pad_head + tail < samples
        if not has_sound and not recipe.allow_silent:
            why = "the sound does not overlap the picture" if self.sound.frames else "no sound decodes"
            raise Rejected("no_audio", self.message or why)
        writer.close()
        copied, self.encoder, self.copier = self.copier is not None, None, None
        quality = SILENT_COLUMNS
        if has_sound:
            write_flac(self.sound, self.scratch / "clip.flac")
            quality = sound_columns(self.sound.blocks(), recipe.sample_rate, self.sound.clipping)
        return {
            "num_frames": frames,
            "height": height,
            "width": width,
            "aspect_ratio": height / width,
            "fps": float(recipe.rate),
            "resolution": height * width,
            "audio_fps": recipe.sample_rate,
            "num_samples": samples if has_sound else 0,
            "channels": recipe.channels if has_sound else 0,
            "duration": float(frames / recipe.rate),
            **self.columns,
            **self._clock_columns(),
            "pad_head": self.sound.pad_head if has_sound else 0,
            "pad_tail": tail if has_sound else 0,
            "copied": copied,
            **quality,
            **self.statistics.columns(),
        }

    def _source_columns(self, frame: VideoFrame) -> dict[str, object]:
        """What is known at the first picture."""
        assert self.converter is not None
        return {
            "source_container": self.container.format.name,
            "source_video_codec": self.video.codec_context.name,
            "source_audio_codec": self.audio.codec_context.name if self.audio else None,
            "source_pixel_format": frame.format.name,
            "source_height": frame.height,
            "source_width": frame.width,
            "source_rotation": self.converter.turn.clockwise,
            "source_declared_frames": self.video.frames or None,
            "source_declared_seconds": declared_seconds(self.container),
            "source_audio_tracks": len((self.beside.container if self.beside else self.container).streams.audio),
        }

    def _clock_columns(self) -> dict[str, object]:
        """What is known after the last one."""
        assert self.converter is not None and self.clock.first is not None
        return {
            "source_fps": self.clock.fps,
            "source_vfr": self.clock.variable,
            "source_edit_list": self.moved,
            "source_interlaced": self.deinterlacer.used,
            "source_hdr": self.converter.hdr,
            "source_size_changes": self.converter.size_changes or None,
            "source_decoded_frames": self.clock.count,
            "source_video_start": float(self.file_start),
            "source_audio_start": None if self.sound.first is None else float(self.sound.first),
            "source_sample_rate": self.sound.rate or None,
            "source_channels": self.sound.channels or None,
        }


def transcode_audio(
    source: Path,
    recipe: Recipe,
    scratch: Path,
    *,
    window: tuple[float, float] | None = None,
    sound: Path | None = None,
) -> Clip:
    """Compile the sound of one file; no picture. Columns describe JavisDiT's placeholder video. Raises `Rejected`.

    Time zero is the first sound. `sound`: the file to take instead of `source`.
    """
    start, length = _limits(recipe, window)
    with open_source(sound or source) as opened:
        container, stream = opened.container, opened.audio()
        if stream is None:
            raise Rejected("no_audio", "no audio stream")
        stream.codec_context.thread_count = 1
        edit = opened.edit_of(stream)
        track = SoundTrack(recipe, scratch, edit)
        track.limit = round(length * recipe.sample_rate)
        try:
            message, skipped = _read_sound(container, stream, track, start)
            samples, _ = track.finish(None)
            duration = samples / recipe.sample_rate
            if samples == 0:
                raise Rejected("corrupt" if message else "no_audio", message or "no sound decodes")
            if int(duration * DUMMY_FPS) < recipe.min_frames:
                raise Rejected("too_short", f"{duration:.3f} s of sound; {message}")
            write_flac(track, scratch / "clip.flac")
            columns: dict[str, object] = {
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
                "source_container": container.format.name,
                "source_audio_codec": stream.codec_context.name,
                "source_audio_tracks": len(container.streams.audio),
                "source_declared_seconds": declared_seconds(container),
                "source_edit_list": skipped or not edit.trivial,
                "source_audio_start": None if track.first is None else float(track.first),
                "source_sample_rate": track.rate,
                "source_channels": track.channels,
                "pad_head": track.pad_head,
                "pad_tail": 0,
                "copied": False,
                **sound_columns(track.blocks(), recipe.sample_rate, track.clipping),
            }
        finally:
            track.close()
    return Clip({"flac": scratch / "clip.flac"}, columns)


def _read_sound(
    container: InputContainer, stream: av.AudioStream, sound: SoundTrack, start: Fraction
) -> tuple[str, bool]:
    """Decode until the end or the limit; return the library's complaint, if any, and whether samples were skipped."""
    message, skipped = "", False
    try:
        for packet in container.demux(stream):
            skipped = skipped or (sound.frames == 0 and packet.size > 0 and packet.has_sidedata("skip_samples"))
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                message = message or f"decode {stream.codec_context.name}: {error}"
                continue
            for frame in frames:
                assert isinstance(frame, av.AudioFrame)
                sound.push(frame)
                if not sound.started and sound.first is not None:
                    sound.start(sound.first + start)
            if sound.full:
                break
        sound.settle()
        if not sound.started and sound.first is not None:
            sound.start(sound.first + start)
    except (av.error.FFmpegError, OSError) as error:
        message = f"read: {error}"
    return message, skipped


def declared_seconds(container: InputContainer) -> float | None:
    """The duration that the header declares."""
    return None if container.duration is None else container.duration / av.time_base

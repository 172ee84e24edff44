"""One decode of a source: pictures and sounds on one clock, in the recipe's form; a pure function of bytes and recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.video.frame import VideoFrame

from javisc.compiler.media.clip import Clip, after_end, declared_seconds, limits, missing_tail, said, seconds
from javisc.compiler.media.clock import Hold, Slots, nearest_tick, samples_for
from javisc.compiler.media.copying import Copier, NotCopyable
from javisc.compiler.media.edits import Edit
from javisc.compiler.media.encode import MAX_PIXELS, Converter, Crop, Deinterlacer, Encoder, pixel_aspect
from javisc.compiler.media.landing import RUN_UP, SEEKABLE, land
from javisc.compiler.media.luma import Luma, LumaSampler
from javisc.compiler.media.onward import NotAlike, Onward, Passed, forget
from javisc.compiler.media.open import Source, open_source, packets
from javisc.compiler.media.orientation import display_matrix, orientation
from javisc.compiler.media.pictures import PictureClock
from javisc.compiler.media.quality import SILENT_COLUMNS, PictureStatistics, sound_columns
from javisc.compiler.media.renditions import Rendition, files_of, renditions_in, sizes_of
from javisc.compiler.media.sound import SoundTrack, write_flac
from javisc.compiler.media.sound_only import exactly, read_sound, transcode_audio
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe

#: More damaged packets and pictures than this share, and the file is refused.
MAX_DAMAGED_PICTURES = 0.1


def transcode(
    source: Path,
    recipe: Recipe,
    scratch: Path,
    *,
    window: tuple[float, float] | None = None,
    crop: Crop | None = None,
    sound: Path | None = None,
    renditions: Sequence[Recipe] = (),
    whole: bool = True,
) -> Clip:
    """Compile one file into `scratch` (an empty folder of the caller's).

    `window` (start, end) takes a part: seconds on the sample clock of the whole file, whose zero is its first picture.
    `crop` says which part of each upright picture is wanted; the first picture's part decides the clip's size.
    `renditions` are recipes of smaller pictures, made of the same decoded frames; with `whole` false they are all that is made.
    `sound` is a file whose sound is taken instead of the source's own: its first sample is heard with the first picture.
    What decodes is what counts: damaged packets are skipped, the last good picture holds and missing sound is silence, until
    a tenth of the pictures is damaged. Raises `Rejected`.
    """
    if recipe.kind == "audio":
        return transcode_audio(source, recipe, scratch, window=window, sound=sound)

    smaller: list[Rendition] = []

    def once(may_copy: bool) -> dict[str, object]:
        smaller[:] = renditions_in(scratch, renditions)
        with open_source(source) as opened, nullcontext() if sound is None else open_source(sound) as beside:
            return _Pass(opened, recipe, scratch, window, crop, may_copy, beside, smaller, whole).run()

    if window is None:
        forget()
    try:
        columns = once(may_copy=whole and window is None and crop is None)
    except (NotCopyable, NotAlike):
        forget()
        columns = once(may_copy=False)
    made = {"mp4": scratch / "clip.mp4", "flac": scratch / "clip.flac", **files_of(smaller)}
    return Clip({end: path for end, path in made.items() if path.exists()}, columns, sizes_of(smaller))


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
        renditions: Sequence[Rendition] = (),
        whole: bool = True,
    ) -> None:
        self.renditions, self.whole = renditions, whole
        self.container, self.recipe, self.scratch = source.container, recipe, scratch
        self.beside = beside
        self.heard = heard = beside or source
        video, self.audio = source.video(), heard.audio() if whole else None
        if video is None:
            raise Rejected("no_video")
        if self.audio is None and whole and not recipe.allow_silent:
            raise Rejected("no_audio", "no audio stream")
        self.video = video
        if video.codec_context.width * video.codec_context.height > MAX_PIXELS:
            raise Rejected("too_large", f"pictures of {video.codec_context.width}x{video.codec_context.height}")
        for stream in (self.video, self.audio):
            if stream is not None:
                stream.codec_context.thread_count = 1
                stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self.start, length = limits(recipe, window)
        self.max_frames = max(round(length * recipe.rate), 1)
        self.crop, self.first_tick = crop, nearest_tick(self.start, recipe.rate)
        self.audio_edit = Edit() if self.audio is None else heard.edit_of(self.audio)
        self.moved = not (source.edit_of(video).trivial and self.audio_edit.trivial)
        self.sound = SoundTrack(recipe, scratch, self.audio_edit)
        self.sound.limit = samples_for(self.max_frames, recipe.sample_rate, recipe.rate)
        self.slots = Slots() if self.container.format.name == "avi" else None
        self.clock = PictureClock(video, source.edit_of(video), self.slots, seconds(recipe.max_hold))
        self.deinterlacer = Deinterlacer()
        self.hold: Hold[tuple[VideoFrame, Luma]] = Hold(recipe.rate)
        self.luma = LumaSampler()
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
        self.done = self.inside = False
        self._shown: tuple[VideoFrame, VideoFrame] | None = None
        self.pictures: Onward | None = None
        self._passed = False

    def run(self) -> dict[str, object]:
        """Decode everything; return the columns."""
        try:
            if self.start > 2 * RUN_UP and self.container.format.name in SEEKABLE:
                zero, self.pictures, self.message = land(self.container, self.video, self.clock, self.start)
                if zero is not None:
                    self.file_start, self.origin = zero, zero + self.start
            self._read()
            self._end()
            if self.beside is not None and self.audio is not None:
                self._hear(self.sound.take)
            return self._finish()
        except Rejected as error:
            if self.pictures is not None and self.pictures.shared:
                raise NotAlike(f"{error.reason}: {error.message}") from error
            raise
        finally:
            self.sound.close()
            if self.encoder is not None:
                self.encoder.abandon()
            for rendition in self.renditions:
                rendition.abandon()
            if self.copier is not None:
                self.copier.close()

    def _read(self) -> None:
        audio = self.audio if self.beside is None else None
        streams = [stream for stream in (self.video, audio) if stream is not None]
        try:
            for packet in packets(self.container, *streams):
                if packet.stream.index == self.video.index:  # a flush packet has stream_index 0, whatever its stream
                    if not self.done:
                        self._decode_video(packet)
                elif not self.sound.full:
                    self.sound.decode(packet)
                if self.done and (audio is None or self.sound.full):
                    return
        except (av.error.FFmpegError, OSError) as error:
            self.message = f"read: {error}"

    def _decode_video(self, packet: av.Packet) -> None:
        self.packets += packet.size > 0
        if self.slots is not None and packet.size > 0 and packet.dts is not None:
            self.slots.add(packet.dts * packet.time_base)
        try:
            frames = packet.decode() if self.pictures is None else self.pictures.decode(packet)
        except av.error.FFmpegError as error:
            if self.copier is not None:
                raise NotCopyable(str(error)) from error
            self.damaged += 1
            self.message = f"decode {self.video.codec_context.name}: {error}"
            if self.slots is not None:
                self.slots.drop()
            return
        for frame in frames:
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

    def _picture(self, frame: VideoFrame) -> None:
        for placed, time in self.clock.place(frame):
            self._placed(placed, time)

    def _placed(self, frame: VideoFrame, time: Fraction) -> None:
        if self.done:
            return
        passed, self._passed = self._passed, isinstance(frame, Passed)
        if self._passed or passed:
            if self.converter is None or self.origin is None or time >= self.origin:
                raise NotAlike("a picture that is looked at has passed")
            if self._passed:
                return
        if self.converter is None:
            if self.origin is None:
                self.file_start, self.origin = time, time + self.start
            if self.beside is None:
                self.sound.start(self.origin)
            self.converter = Converter(self.recipe, orientation(display_matrix(frame)), pixel_aspect(self.video))
            self.columns = self._source_columns(frame)
        assert self.origin is not None
        luma = self.luma(frame)
        self.inside = self.inside or time >= self.origin
        if self.inside:
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
        if self.copier is not None and self._shown[1] is not frame:
            raise NotCopyable("the picture has to be converted")
        self._render(self._shown[1])
        if self.copier is not None or not self.whole:
            return
        if self.encoder is None:
            assert self.converter.size is not None
            self.encoder = Encoder(self.scratch / "clip.mp4", self.recipe, *self.converter.size)
        self.encoder.add(self._shown[1])

    def _render(self, frame: VideoFrame) -> None:
        try:
            for rendition in self.renditions:
                rendition.add(frame)
        except (av.error.FFmpegError, ValueError) as error:
            raise Rejected("unsupported", f"render {frame.width}x{frame.height}: {error}") from error

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
        if (writer is None and self.whole) or frames == 0 or self.converter is None or self.converter.size is None:
            raise Rejected("corrupt", self.message or "no picture decodes")
        self.clock.check()
        if self.damaged > MAX_DAMAGED_PICTURES * max(self.packets, 1):
            raise Rejected("corrupt", f"{self.damaged} of {self.packets} pictures are damaged; {self.message}")
        assert self.origin is not None
        if self.start and self.clock.end <= self.origin:  # the last picture was held into it for a tick
            raise Rejected("too_short", after_end(self.start, "video", self.message))
        if frames < recipe.min_frames:
            raise Rejected(
                "too_short", said(f"{frames} frames; at least {recipe.min_frames} are asked for", self.message)
            )
        width, height = self.converter.size
        for rendition in self.renditions:
            rendition.close()
        if writer is None:
            return {"num_frames": frames, "height": height, "width": width}
        wanted = samples_for(frames, recipe.sample_rate, recipe.rate)
        samples, tail = self.sound.finish(wanted)
        if self.sound.cancelling.found and not self.sound.take:
            self._hear(self.sound.cancelling.replacements())
            samples, tail = self.sound.finish(wanted)
        has_sound = self.sound.pad_head + tail < samples
        if not has_sound and not recipe.allow_silent:
            why = "the sound does not overlap the picture" if self.sound.frames else "no sound decodes"
            raise Rejected("no_audio", self.message or self.sound.message or why)
        self.sound.check()
        missing = self._missing_tail()
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
            "damaged_pictures": self.damaged / max(self.packets, 1),
            "missing_tail": missing,
            **self.sound.columns(),
            **quality,
            **self.statistics.columns(),
        }

    def _hear(self, take: Mapping[int, int]) -> None:
        """Read the sound by itself, with single channels in place of those that `take` names."""

        def once(leap: bool) -> None:
            limit = self.sound.limit
            self.sound.close()
            self.sound = SoundTrack(self.recipe, self.scratch, self.audio_edit, take)
            self.sound.limit = limit
            if self.beside is None and self.origin is not None:
                self.sound.start(self.origin)
            with open_source(self.heard.path) as opened:
                stream = opened.audio()
                if stream is not None:
                    pace = opened.movie.paces.get(stream.id)
                    read_sound(opened.container, stream, self.sound, self.start, pace, leap=leap)

        exactly(once)

    def _missing_tail(self) -> float | None:
        """The share of the wanted part that the header promises and that is not there. Raises `Rejected` if it is too much."""
        assert self.origin is not None
        ends = [self.clock.end] + ([self.sound.last] if self.sound.frames and self.beside is None else [])
        wanted = None if self.done else self.origin + self.max_frames / self.recipe.rate
        return missing_tail(self.container, self.origin, max(ends), wanted)

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
            "source_edit_list": self.moved or self.sound.skipped,
            "source_interlaced": self.deinterlacer.used,
            "source_hdr": self.converter.hdr,
            "source_size_changes": self.converter.size_changes or None,
            "source_decoded_frames": self.clock.count,
            "source_video_start": float(self.file_start),
            "source_audio_start": None if self.sound.first is None else float(self.sound.first),
            "source_sample_rate": self.sound.rate or None,
            "source_channels": self.sound.channels or None,
        }

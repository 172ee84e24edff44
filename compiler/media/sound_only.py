"""Sounds without pictures: one source makes one FLAC, described as JavisDiT's placeholder video."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import av.error
from av.container import InputContainer

from javisc.compiler.media.clip import Clip, after_end, declared_seconds, limits, missing_tail, said
from javisc.compiler.media.edits import Edit, Pace
from javisc.compiler.media.leap import NotExact, leaped
from javisc.compiler.media.open import check_file, open_source, packets
from javisc.compiler.media.plain import NotPlain, open_plain
from javisc.compiler.media.quality import sound_columns
from javisc.compiler.media.sound import SoundTrack, write_flac
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe

T = TypeVar("T")
DUMMY_HEIGHT, DUMMY_WIDTH, DUMMY_FPS = 720, 1280, 24


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
    path = sound or source
    check_file(path)
    track = _Track(recipe, scratch, window)
    try:
        columns = _twice(lambda take: track.plain(path, take))
    except NotPlain:
        columns = _twice(lambda take: exactly(lambda leap: track.any(path, take, leap)))
    return Clip({"flac": scratch / "clip.flac"}, columns)


class _Again(Exception):
    """Channels cancel each other: read once more and take single ones."""

    def __init__(self, take: dict[int, int]) -> None:
        super().__init__(str(take))
        self.take = take


def _twice(compile_once: Callable[[dict[int, int]], dict[str, object]]) -> dict[str, object]:
    try:
        return compile_once({})
    except _Again as again:
        return compile_once(again.take)


class _Track:
    """Makes one FLAC of a sound; the columns of its row are what each way of reading gives back."""

    def __init__(self, recipe: Recipe, scratch: Path, window: tuple[float, float] | None) -> None:
        self.recipe, self.scratch = recipe, scratch
        self.start, self.length = limits(recipe, window)

    def plain(self, path: Path, take: dict[int, int]) -> dict[str, object]:
        """Read a sound without a timeline. Raises `NotPlain`."""
        with open_plain(path) as opened, self._sound(Edit(), take) as sound:
            opened.read(sound, self.start)
            columns = self._finish(sound, "")
            return {
                **columns,
                "source_container": opened.container,
                "source_audio_codec": opened.codec,
                "source_audio_tracks": 1,
                "source_declared_seconds": opened.seconds,
                "source_edit_list": False,
                "missing_tail": 0.0,
            }

    def any(self, path: Path, take: dict[int, int], leap: bool) -> dict[str, object]:
        """Read a sound of any kind by FFmpeg. Raises `NotExact` where a leap is not."""
        with open_source(path) as opened:
            container, stream = opened.container, opened.audio()
            if stream is None:
                raise Rejected("no_audio", "no audio stream")
            edit = opened.edit_of(stream)
            with self._sound(edit, take) as sound:
                message = read_sound(container, stream, sound, self.start, opened.movie.paces.get(stream.id), leap=leap)
                columns = self._finish(sound, message)
                begin = (sound.first or Fraction(0)) + self.start
                wanted = None if sound.full else begin + self.length
                return {
                    **columns,
                    "source_container": container.format.name,
                    "source_audio_codec": stream.codec_context.name,
                    "source_audio_tracks": len(container.streams.audio),
                    "source_declared_seconds": declared_seconds(container),
                    "source_edit_list": sound.skipped or not edit.trivial,
                    "missing_tail": missing_tail(container, begin, sound.last, wanted),
                }

    @contextlib.contextmanager
    def _sound(self, edit: Edit, take: dict[int, int]) -> Iterator[SoundTrack]:
        sound = SoundTrack(self.recipe, self.scratch, edit, take)
        sound.limit = round(self.length * self.recipe.sample_rate)
        try:
            yield sound
        finally:
            sound.close()

    def _finish(self, sound: SoundTrack, message: str) -> dict[str, object]:
        """Write the FLAC; the columns that do not depend on how it was read. Raises `Rejected`, or `_Again`."""
        recipe = self.recipe
        samples, _ = sound.finish(None)
        duration = samples / recipe.sample_rate
        if samples == 0:
            why = after_end(self.start, "sound") if self.start and sound.first is not None else "no sound decodes"
            raise Rejected("corrupt" if message else "no_audio", message or why)
        if not sound.take and (take := sound.cancelling.replacements()):
            raise _Again(take)
        sound.check()
        if int(duration * DUMMY_FPS) < recipe.min_frames:
            least = recipe.min_frames / DUMMY_FPS
            raise Rejected(
                "too_short", said(f"{duration:.3f} s of sound; at least {least:.3f} s are asked for", message)
            )
        write_flac(sound, self.scratch / "clip.flac")
        return {
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
            "source_audio_start": None if sound.first is None else float(sound.first),
            "source_sample_rate": sound.rate,
            "source_channels": sound.channels,
            "pad_head": sound.pad_head,
            "pad_tail": 0,
            "copied": False,
            **sound.columns(),
            **sound_columns(sound.blocks(), recipe.sample_rate, sound.clipping),
        }


def read_sound(
    container: InputContainer,
    stream: av.AudioStream,
    sound: SoundTrack,
    start: Fraction,
    pace: Pace | None,
    *,
    leap: bool,
) -> str:
    """Decode until the end or the limit; return the library's complaint, if any.

    A track that has not been started begins `start` seconds after its first sound. leap: go there at once where that gives the
    same; raises `NotExact` where it turns out that it does not, and all of this is to be done again without. pace: see `leaped`.
    """
    stream.codec_context.thread_count = 1
    found = packets(container, stream)
    try:
        while (packet := next(found, None)) is not None:
            sound.decode(packet)
            if not sound.started and sound.first is not None:
                sound.start(sound.first + start)
            if sound.full:
                break
            if leap and sound.started and sound.first is not None:
                leap, found = False, leaped(container, stream, sound, found, packet, pace)
        sound.settle()
        if not sound.started and sound.first is not None:
            sound.start(sound.first + start)
    except (av.error.FFmpegError, OSError) as error:
        return f"read: {error}"
    return sound.message


def exactly(once: Callable[[bool], T]) -> T:
    """Call `once` with leaps allowed, and without where they are not exact."""
    try:
        return once(True)
    except NotExact:
        return once(False)

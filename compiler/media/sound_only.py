"""Sounds without pictures: one source makes one FLAC, described as JavisDiT's placeholder video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.container import InputContainer

from javisc.compiler.media.clip import Clip, declared_seconds, limits, missing_tail
from javisc.compiler.media.open import Source, open_source, packets
from javisc.compiler.media.quality import sound_columns
from javisc.compiler.media.sound import SoundTrack, write_flac
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe

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
    with open_source(sound or source) as opened:
        columns, take = _compile(opened, recipe, scratch, window, {})
    if take:
        with open_source(sound or source) as opened:
            columns, _ = _compile(opened, recipe, scratch, window, take)
    return Clip({"flac": scratch / "clip.flac"}, columns)


def _compile(
    opened: Source, recipe: Recipe, scratch: Path, window: tuple[float, float] | None, take: dict[int, int]
) -> tuple[dict[str, object], dict[int, int]]:
    """Write the FLAC; return its columns and what `SoundTrack.take` should have been, empty where it was right."""
    start, length = limits(recipe, window)
    container, stream = opened.container, opened.audio()
    if stream is None:
        raise Rejected("no_audio", "no audio stream")
    stream.codec_context.thread_count = 1
    edit = opened.edit_of(stream)
    sound = SoundTrack(recipe, scratch, edit, take)
    sound.limit = round(length * recipe.sample_rate)
    try:
        message = read_sound(container, stream, sound, start)
        samples, _ = sound.finish(None)
        duration = samples / recipe.sample_rate
        if samples == 0:
            raise Rejected("corrupt" if message else "no_audio", message or "no sound decodes")
        if sound.cancelling.found and not take:
            return {}, sound.cancelling.replacements()
        sound.check()
        if int(duration * DUMMY_FPS) < recipe.min_frames:
            raise Rejected("too_short", f"{duration:.3f} s of sound; {message}")
        begin = (sound.first or Fraction(0)) + start
        write_flac(sound, scratch / "clip.flac")
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
            "source_container": container.format.name,
            "source_audio_codec": stream.codec_context.name,
            "source_audio_tracks": len(container.streams.audio),
            "source_declared_seconds": declared_seconds(container),
            "source_edit_list": sound.skipped or not edit.trivial,
            "source_audio_start": None if sound.first is None else float(sound.first),
            "source_sample_rate": sound.rate,
            "source_channels": sound.channels,
            "pad_head": sound.pad_head,
            "pad_tail": 0,
            "copied": False,
            "missing_tail": missing_tail(container, begin, sound.last, None if sound.full else begin + length),
            **sound.columns(),
            **sound_columns(sound.blocks(), recipe.sample_rate, sound.clipping),
        }, {}
    finally:
        sound.close()


def read_sound(container: InputContainer, stream: av.AudioStream, sound: SoundTrack, start: Fraction) -> str:
    """Decode until the end or the limit; return the library's complaint, if any.

    A track that has not been started begins `start` seconds after its first sound.
    """
    stream.codec_context.thread_count = 1
    try:
        for packet in packets(container, stream):
            sound.decode(packet)
            if not sound.started and sound.first is not None:
                sound.start(sound.first + start)
            if sound.full:
                break
        sound.settle()
        if not sound.started and sound.first is not None:
            sound.start(sound.first + start)
    except (av.error.FFmpegError, OSError) as error:
        return f"read: {error}"
    return sound.message

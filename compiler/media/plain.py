"""Sounds without a timeline (WAV, FLAC, Ogg Vorbis): read in large blocks by libsndfile, sample after sample from zero.

libavformat's general probing and its small packets cost ten times the decoding of a short sound. Whatever is unusual here is
left to FFmpeg: more than two channels, other codings, headers that do not fit the file, anything that libsndfile complains of.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile

from javisc.compiler.media.runs import to_float
from javisc.compiler.media.sound import SoundTrack

#: libsndfile's formats and codings: FFmpeg's names of demuxer and codec, and the type that holds the samples as they are.
CODINGS = {
    ("WAV", "PCM_U8"): ("wav", "pcm_u8", "int16"),
    ("WAV", "PCM_16"): ("wav", "pcm_s16le", "int16"),
    ("WAV", "PCM_24"): ("wav", "pcm_s24le", "int32"),
    ("WAV", "PCM_32"): ("wav", "pcm_s32le", "int32"),
    ("WAV", "FLOAT"): ("wav", "pcm_f32le", "float32"),
    ("WAV", "DOUBLE"): ("wav", "pcm_f64le", "float64"),
    ("FLAC", "PCM_S8"): ("flac", "flac", "int16"),
    ("FLAC", "PCM_16"): ("flac", "flac", "int16"),
    ("FLAC", "PCM_24"): ("flac", "flac", "int32"),
}
NAMES = {1: ("FC",), 2: ("FL", "FR")}
#: Samples of a channel that are read at once.
BLOCK = 1 << 18
#: What frames of DTS and its kin begin with, which are stored as if they were PCM; FFmpeg looks for it, too. Of the codings in 14
#: bits the first four bytes are common in quiet sounds: six bytes tell.
DISGUISED = (
    (b"\xfe\x7f\x01\x80", b""),
    (b"\x7f\xfe\x80\x01", b""),
    (b"\xff\x1f\x00\xe8", rb"[\xf0-\xff]\x07"),
    (b"\x1f\xff\xe8\x00", rb"\x07[\xf0-\xff]"),
    (b"\x72\xf8\x1f\x4e", b""),
)
_WORDS = [np.frombuffer(mark, np.uint32)[0] for mark, _ in DISGUISED]
HEAD = 1 << 16
#: Two channels that are left and right, or of which nothing is said, as WAVE's extensible header has it.
STEREO_MASKS = (0, 3)


class NotPlain(Exception):
    """The file is none of these, or not a sound one: FFmpeg may tell more."""


@dataclass(frozen=True)
class Plain:
    """An opened sound, and what its header says."""

    file: soundfile.SoundFile
    container: str
    codec: str
    dtype: str

    @property
    def seconds(self) -> float:
        """What the header declares."""
        return float(Fraction(self.file.frames, self.file.samplerate))

    def read(self, sound: SoundTrack, start: Fraction) -> None:
        """Give everything from `start` seconds on to `sound`, until it is full. Raises `NotPlain` where too little is there."""
        rate, names, position = self.file.samplerate, NAMES[self.file.channels], 0
        while not sound.full and position < self.file.frames:
            try:
                if (
                    sound.origin is not None and sound.origin * rate >= position + BLOCK
                ):  # to the block where the window begins
                    position = int(sound.origin * rate) // BLOCK * BLOCK
                    if position >= self.file.frames:
                        break
                    self.file.seek(position)
                block = self.file.read(BLOCK, self.dtype, always_2d=True)
            except soundfile.SoundFileError as error:
                raise NotPlain(str(error)) from error
            if len(block) < min(BLOCK, self.file.frames - position):
                raise NotPlain("less sound than the header says")
            sound.frames += 1
            sound.add(to_float(block.T), names, rate, Fraction(position, rate))
            if not sound.started:
                sound.start(start)
            position += len(block)


@contextlib.contextmanager
def open_plain(path: Path) -> Iterator[Plain]:
    """Open a plain sound. Raises `NotPlain` for anything else."""
    try:
        with path.open("rb", buffering=0) as stream:
            head = stream.read(HEAD)
            wave = head.startswith(b"RIFF") and head[8:12] == b"WAVE"
            if not (wave or head.startswith(b"fLaC")) or (wave and not _usual(head, os.fstat(stream.fileno()).st_size)):
                raise NotPlain("another kind of file")
        file = soundfile.SoundFile(os.fspath(path))
    except (OSError, UnicodeError, soundfile.SoundFileError) as error:
        raise NotPlain(str(error)) from error
    with file:
        coding = CODINGS.get((file.format.removesuffix("EX"), file.subtype))
        if coding is None or file.channels not in NAMES or file.frames <= 0 or file.samplerate <= 0:
            raise NotPlain("another coding")
        yield Plain(file, *coding)


def _disguised(sound: bytes) -> bool:
    return _marked(sound) and any(re.search(re.escape(mark) + rest, sound, re.DOTALL) for mark, rest in DISGUISED)


def _marked(sound: bytes) -> bool:
    """True if one of the marks, which are four bytes long, stands anywhere; words are compared faster than texts are searched."""
    for begin in range(min(4, len(sound) - 3)):
        words = np.frombuffer(sound, np.uint32, (len(sound) - begin) // 4, begin)
        if any((words == word).any() for word in _WORDS):
            return True
    return False


def _usual(head: bytes, size: int) -> bool:
    """True for a WAVE file whose header fits the file and that holds what it says."""
    stream = io.BytesIO(head[12:])
    masked = False
    while len(start := stream.read(8)) == 8:
        kind, length = struct.unpack("<4sI", start)
        if kind == b"data":
            sound = head[12 + stream.tell() :]
            return not masked and 0 < length <= size - 12 - stream.tell() and not _disguised(sound)
        content = stream.read(length + length % 2)
        if kind == b"fmt " and len(content) >= 24 and content[:2] == b"\xfe\xff":
            masked = content[2] == 2 and struct.unpack_from("<I", content, 20)[0] not in STEREO_MASKS
    return False

"""Opening a source safely, choosing its streams, and what its headers say."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.container import InputContainer
from av.stream import Disposition

from javisc.compiler.media.edits import Edit, read_edits
from javisc.compiler.reasons import Rejected

#: Demuxers that read one file and nothing else. Playlists (hls, concat, dash, image sequences) would open other files.
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2",
    "matroska,webm",
    "avi",
    "mpegts",
    "mpeg",
    "mpegvideo",
    "m4v",
    "h264",
    "hevc",
    "flv",
    "asf",
    "mxf",
    "ogg",
    "wav",
    "w64",
    "mp3",
    "flac",
    "aac",
    "aiff",
    "caf",
    "au",
    "ac3",
    "eac3",
    "amr",
    "dv",
    "gif",
    "nut",
    "rm",
    "wtv",
    "y4m",
    "yuv4mpegpipe",
)
MAX_STREAMS = 64


@dataclass(frozen=True)
class Probe:
    """What the headers of a file say, without decoding. Seconds; None where the header says nothing."""

    container: str
    size: int
    duration: float | None
    video_codec: str | None
    width: int
    height: int
    fps: float | None
    declared_frames: int | None
    video_start: float | None
    audio_codec: str | None
    sample_rate: int
    channels: int
    audio_tracks: int
    audio_start: float | None

    @property
    def health(self) -> str | None:
        """The reason code that the headers already decide on for a video recipe, or None."""
        if self.video_codec is None:
            return "no_video"
        return "no_audio" if self.audio_codec is None else None


def probe(path: Path) -> Probe:
    """Open `path` once and read its headers. Raises `Rejected` if it is no readable media file."""
    with open_source(path) as source:
        container = source.container
        video, audio = choose_video(container), choose_audio(container)
        duration = None if container.duration is None else container.duration / av.time_base
        return Probe(
            container=container.format.name,
            size=path.stat().st_size,
            duration=duration,
            video_codec=video.codec_context.name if video else None,
            width=video.codec_context.width if video else 0,
            height=video.codec_context.height if video else 0,
            fps=_float(video.average_rate) if video else None,
            declared_frames=(video.frames or None) if video else None,
            video_start=_start(video, source) if video else None,
            audio_codec=audio.codec_context.name if audio else None,
            sample_rate=audio.codec_context.sample_rate if audio else 0,
            channels=audio.codec_context.layout.nb_channels if audio else 0,
            audio_tracks=len(container.streams.audio),
            audio_start=_start(audio, source) if audio else None,
        )


@dataclass(frozen=True)
class Source:
    """An opened file and the edits that its reader has to apply, by stream id (empty where FFmpeg applies them)."""

    container: InputContainer
    edits: dict[int, Edit]

    def edit_of(self, stream: av.VideoStream | av.AudioStream) -> Edit:
        """The edit of a stream; the trivial one where nothing is left to do."""
        return self.edits.get(stream.id, Edit())


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a media file read-only, alone: no other file, no network, no playlist. Raises `Rejected`."""
    check_file(path)
    edits = read_edits(path)
    options = {
        "format_whitelist": ",".join(DEMUXERS),
        "protocol_whitelist": "file",
        "max_streams": str(MAX_STREAMS),
        "analyzeduration": "10000000",
    }
    if edits:
        options["ignore_editlist"] = "1"
    try:
        container = av.open("file:" + os.fspath(path.absolute()), "r", options=options, metadata_errors="replace")
    except FileNotFoundError as error:
        raise Rejected("vanished", str(error)) from error
    except (av.error.FFmpegError, OSError, ValueError, UnicodeError) as error:
        raise Rejected(_reason_of_open(path, error), f"open: {error}") from error
    try:
        yield Source(container, edits)
    finally:
        container.close()


def check_file(path: Path) -> os.stat_result:
    """The file's status. Raises `Rejected` if it is not a readable regular file with content."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise Rejected("unreadable" if path.is_symlink() else "vanished", str(error)) from error
    except (OSError, ValueError) as error:
        raise Rejected("unreadable", str(error)) from error
    if not stat.S_ISREG(status.st_mode):
        raise Rejected("unreadable", f"{path} is not a regular file")
    if status.st_size == 0:
        raise Rejected("empty")
    if not os.access(path, os.R_OK):
        raise Rejected("unreadable", f"no permission to read {path}")
    return status


def _reason_of_open(path: Path, error: Exception) -> str:
    """`corrupt` if the first bytes belong to a media container, else `not_media`."""
    if isinstance(error, PermissionError):
        return "unreadable"
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return "unreadable"
    magic = head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"moof") or head.startswith(
        (
            b"\x1aE\xdf\xa3",
            b"RIFF",
            b"OggS",
            b"fLaC",
            b"ID3",
            b"FLV\x01",
            b"FORM",
            b"\x00\x00\x01\xba",
            b"\x00\x00\x01\xb3",
        )
    )
    return "corrupt" if magic else "not_media"


def choose_video(container: InputContainer) -> av.VideoStream | None:
    """The moving picture: the default track, else the first; never cover art or a still. None if there is none."""
    still = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    moving = [stream for stream in container.streams.video if not stream.disposition & still]
    return next(
        (stream for stream in moving if stream.disposition & Disposition.default), moving[0] if moving else None
    )


def choose_audio(container: InputContainer) -> av.AudioStream | None:
    """The sound: the track with the default disposition, else the first. None if there is none."""
    tracks = [stream for stream in container.streams.audio if stream.codec_context is not None]
    return next(
        (stream for stream in tracks if stream.disposition & Disposition.default), tracks[0] if tracks else None
    )


@dataclass(frozen=True)
class Orientation:
    """What a display matrix asks for: mirror left-right first if `flip`, then turn `clockwise` degrees."""

    clockwise: int = 0
    flip: bool = False


def orientation(matrix: bytes | None) -> Orientation:
    """Read a display matrix (nine native int32, 16.16 and 2.30 fixed point). Angles snap to quarter turns."""
    if matrix is None or len(matrix) < 36:
        return Orientation()
    a, b, _, c, d, _, _, _, _ = struct.unpack("=9i", matrix[:36])
    flip = a * d - b * c < 0
    if flip:  # a mirror applied to the picture first negates the matrix's first row
        a, b = -a, -b
    if a == b == 0:
        return Orientation()
    return Orientation(clockwise=round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90, flip=flip)


def _float(value: Fraction | None) -> float | None:
    return None if value is None else float(value)


def _start(stream: av.VideoStream | av.AudioStream, source: Source) -> float | None:
    if stream.start_time is None or stream.time_base is None:
        return None
    edit = source.edit_of(stream)
    return float(max(stream.start_time * stream.time_base + edit.shift, edit.start or Fraction(-(10**6))))

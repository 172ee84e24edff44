"""Opening a source safely, choosing its streams, and what its headers say."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
from av.container import InputContainer

from javisc.compiler.media.edits import Edit, Movie, read_movie
from javisc.compiler.media.tracks import choose_audio, choose_video
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
#: Demuxers of streams without a container. They give every picture 1/25 s, unless told otherwise.
ELEMENTARY = ("h264", "hevc", "m4v", "mpegvideo")
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
        container, video, audio = source.container, source.video(), source.audio()
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
    path: Path
    movie: Movie

    def video(self) -> av.VideoStream | None:
        """The track of pictures to take. Raises `Rejected` if there are some and none can be decoded."""
        return choose_video(self.container, self.path, self.movie.locked)

    def audio(self) -> av.AudioStream | None:
        """The track of sound to take. Raises `Rejected` if there are some and none can be decoded."""
        return choose_audio(self.container, self.path, self.movie.locked)

    def edit_of(self, stream: av.VideoStream | av.AudioStream) -> Edit:
        """The edit of a stream; the trivial one where nothing is left to do."""
        return self.movie.edits.get(stream.id, Edit())


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """Open a media file read-only, alone: no other file, no network, no playlist. Raises `Rejected`."""
    check_file(path)
    movie = read_movie(path)
    options = {
        "format_whitelist": ",".join(DEMUXERS),
        "protocol_whitelist": "file",
        "max_streams": str(MAX_STREAMS),
        "analyzeduration": "10000000",
    }
    if movie.edits:
        options["ignore_editlist"] = "1"
    container = _open(path, options)
    try:
        if container.format.name in ELEMENTARY and (rate := _coded_rate(container)) is not None:
            container.close()
            container = _open(path, {**options, "framerate": str(rate)})
        yield Source(container, path, movie)
    finally:
        container.close()


def _open(path: Path, options: dict[str, str]) -> InputContainer:
    try:
        return av.open("file:" + os.fspath(path.absolute()), "r", options=options, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError, UnicodeError) as error:
        raise Rejected(_reason_of_open(path), f"open: {error}") from error


def _coded_rate(container: InputContainer) -> Fraction | None:
    """The rate that a stream without a container says in its own headers, which its demuxer does not ask; None if it is that.

    Raises `Rejected` if they say none: any rate would be a guess.
    """
    track = next(iter(container.streams.video), None)
    if track is None or track.codec_context is None:
        return None
    rate = track.codec_context.framerate
    if not rate or not 1 <= rate <= 240:
        raise Rejected(
            "timestamps",
            f"a raw {container.format.name} stream whose headers tell no rate of pictures: put it into a container that does",
        )
    return None if rate == track.average_rate else Fraction(rate)


def packets(container: InputContainer, *streams: av.VideoStream | av.AudioStream) -> Iterator[av.Packet]:
    """The packets of some streams, then an empty one of each to flush its decoder.

    Where further streams appear midway, as MPEG-TS may have them, PyAV wants to flush these as well, which it does not know: it
    raises IndexError, after all that was asked for.
    """
    found = container.demux(list(streams))
    while True:
        try:
            packet = next(found)
        except (StopIteration, IndexError):
            return
        yield packet


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


def _reason_of_open(path: Path) -> str:
    """`corrupt` if the first bytes belong to a media container, else `not_media`.

    The file itself is asked whether it can be read: FFmpeg says EPERM, EIO and ENOENT of content that it does not like, too.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError:
        return "vanished"
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


def _float(value: Fraction | None) -> float | None:
    return None if value is None else float(value)


def _start(stream: av.VideoStream | av.AudioStream, source: Source) -> float | None:
    if stream.start_time is None or stream.time_base is None:
        return None
    edit = source.edit_of(stream)
    return float(max(stream.start_time * stream.time_base + edit.shift, edit.start or Fraction(-(10**6))))

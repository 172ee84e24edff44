"""Copying a video stream that is already what the recipe would make.

The proof: x264 wrote it with the very settings that the recipe sets (its parameter sets and the settings it notes in the
stream are byte for byte those of a reference encoded here), and every packet lies on the grid, key frames where the recipe's are.
"""

from __future__ import annotations

import tempfile
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
from av.container import InputContainer
from av.video.frame import VideoFrame

from javisc.compiler.media.boxes import IDR, SEI, BoxError, nal_units
from javisc.compiler.media.encode import MP4_OPTIONS, Encoder
from javisc.compiler.recipe import Recipe


class NotCopyable(Exception):
    """The stream is not what the recipe makes: encode it."""


@lru_cache(maxsize=64)
def reference(recipe: Recipe, width: int, height: int) -> tuple[bytes, bytes]:
    """(parameter sets, x264's note of its settings) of a stream that the recipe makes at this size."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.mp4"
        encoder = Encoder(path, recipe, width, height)
        encoder.add(VideoFrame(width, height, "yuv420p"))
        encoder.close()
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            packet = next(container.demux(stream))
            note = b"".join(content for kind, content in nal_units(bytes(packet)) if kind == SEI)
            return stream.codec_context.extradata or b"", note


class Copier:
    """Puts the packets of a stream into an MP4, as they are, as long as each is where the recipe would have put it."""

    def __init__(self, path: Path, recipe: Recipe, stream: av.VideoStream, note: bytes) -> None:
        self.frames = 0
        self._gop, self._tick, self._note = recipe.gop, 1 / recipe.rate, note
        self._first: Fraction | None = None
        self._container = av.open(str(path), "w", format="mp4", options=MP4_OPTIONS)
        self._stream = self._container.add_stream_from_template(stream)

    @classmethod
    def of(cls, container: InputContainer, stream: av.VideoStream, recipe: Recipe, scratch: Path) -> Copier | None:
        """A copier, if the headers allow it."""
        context = stream.codec_context
        if (
            not container.format.name.startswith("mov,")
            or not (context.name == recipe.codec == "h264")
            or context.width * context.height == 0
        ):
            return None
        if context.width % 2 or context.height % 2 or context.width * context.height > 1 << 24 or not context.extradata:
            return None
        parameters, note = reference(recipe, context.width, context.height)
        return cls(scratch / "clip.mp4", recipe, stream, note) if parameters == context.extradata else None

    def add(self, packet: av.Packet) -> None:
        """Append a packet that has been decoded without complaint. Raises `NotCopyable`."""
        if packet.pts is None or packet.pts != packet.dts:
            raise NotCopyable("no time stamps, or reordered pictures")
        time = packet.pts * packet.time_base
        self._first = time if self._first is None else self._first
        opens = self.frames % self._gop == 0
        try:
            parts = nal_units(bytes(packet))
        except BoxError as error:
            raise NotCopyable(str(error)) from error
        if time - self._first != self.frames * self._tick:
            raise NotCopyable("another grid")
        if packet.is_keyframe != opens or any(kind == IDR for kind, _ in parts) != opens:
            raise NotCopyable("other GOPs")
        if self.frames == 0 and b"".join(content for kind, content in parts if kind == SEI) != self._note:
            raise NotCopyable("other settings of the encoder")
        packet.stream = self._stream
        self._container.mux(packet)
        self.frames += 1

    def close(self) -> None:
        """Finish the file."""
        self._container.close()

"""What a compiled member says of itself, for samples that no recipe made: sizes, rates and lengths."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import soundfile

from javisc.manifests.errors import UserError


def _opened(content: bytes | Path) -> Any:
    return io.BytesIO(content) if isinstance(content, bytes) else str(content)


def of_pictures(content: bytes | Path) -> dict[str, Any]:
    """Manifest columns of an MP4's pictures; frames are counted by their packets, the rate is the header's. Raises UserError."""
    try:
        with av.open(_opened(content), "r") as container:
            stream = container.streams.video[0]
            frames = sum(packet.size > 0 for packet in container.demux(stream))
            rate = stream.average_rate
            if not rate or not frames or not stream.codec_context.height:
                raise UserError("a member mp4 has no pictures")
            height, width = stream.codec_context.height, stream.codec_context.width
    except (av.FFmpegError, IndexError, OSError) as error:
        raise UserError(f"a member mp4 cannot be read: {error}") from error
    return {
        "num_frames": frames,
        "height": height,
        "width": width,
        "aspect_ratio": height / width,
        "resolution": height * width,
        "fps": float(rate),
        "duration": float(frames / rate),
    }


def of_sound(content: bytes | Path) -> dict[str, Any]:
    """Manifest columns of a FLAC's sound; `num_frames` is what JavisDiT counts for sounds alone. Raises UserError."""
    try:
        found = soundfile.info(_opened(content))
    except (soundfile.LibsndfileError, OSError) as error:
        raise UserError(f"a member flac cannot be read: {error}") from error
    seconds = found.frames / found.samplerate
    return {
        "num_samples": found.frames,
        "audio_fps": found.samplerate,
        "channels": found.channels,
        "duration": seconds,
        "num_frames": int(seconds * 24),
    }

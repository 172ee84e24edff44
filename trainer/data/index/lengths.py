"""How long things are: frames, samples, mel frames and latents of a clip, as JavisDiT counts them."""

from __future__ import annotations

import math
from dataclasses import dataclass

MEL_HOP = 160
MEL_RATE = 100
LATENT_RATE = 4


def latent_frames(frames: int) -> int:
    """Video latent frames: 5 for every whole 17, ceil(rest / 4) for the rest."""
    return frames // 17 * 5 + -(-(frames % 17) // 4)


def mel_frames(seconds: float) -> int:
    """Mel frames of a clip before padding: 100 a second, cut."""
    return int(seconds * MEL_RATE)


def padded(length: int, multiple: int) -> int:
    """`length` rounded up."""
    return -(-length // multiple) * multiple


@dataclass(frozen=True)
class AudioLengths:
    """Of `frames` at `fps`: mel frames as they are and padded, and audio latent frames."""

    mel: int
    mel_padded: int
    latent: int


def audio_lengths(frames: int, fps: float, *, multiple: int = 32) -> AudioLengths:
    """`multiple` is 32 in v0.1 and 8 in v1.0."""
    mel = mel_frames(frames / fps)
    return AudioLengths(mel, padded(mel, multiple), padded(mel, multiple) // LATENT_RATE)


def waveform_samples(frames: int, fps: float, rate: int = 16000) -> int:
    """Samples a decoded waveform is cut to: int(seconds · rate)."""
    return int(frames / fps * rate)


@dataclass(frozen=True)
class Crop:
    """The samples that belong to a crop of frames: `count` samples spread over start … end − 1 (every one if interval is 1)."""

    start: int
    end: int
    count: int

    def indices(self) -> list[int]:
        """The sample numbers; with an interval above 1, evenly picked from start to end − 1."""
        if self.count == self.end - self.start:
            return list(range(self.start, self.end))
        step = (self.end - 1 - self.start) / max(self.count - 1, 1)
        return [int(self.start + i * step) for i in range(self.count)]


def reference_audio_crop(audio_length: int, total_frames: int, end: int, frames: int, interval: int = 1) -> Crop:
    """JavisDiT's rule: with a = samples per frame, the crop ends at round(end · a) and has round(frames · a) samples.

    New trainings take the exact window (`windows`): 3 frames are 2000 samples.
    """
    per_frame = audio_length / total_frames
    last = round(end * per_frame)
    count = round(frames * per_frame)
    return Crop(last - count * interval, last, count)


def source_samples(total_frames: int, fps: float, rate: int) -> int:
    """Samples a file's sound is cut or padded to before cropping: ceil(frames / fps · rate)."""
    return math.ceil(total_frames / fps * rate)

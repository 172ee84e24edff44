"""Clips as files that play anywhere."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame

from javisc.manifests.files import published
from javisc.trainer.use.generate.pipeline import SAMPLE_RATE, Generated

_BLOCK = 1024


def write_clip(clip: Generated, path: Path) -> Path:
    """Write `path` with the fitting ending: .mp4 (H.264, and the mono sound on both channels as AAC), or .wav for sound alone.

    The file appears whole or not at all. Odd sizes lose their last row or column, which 4:2:0 video cannot hold.
    """
    if clip.frames is None:
        path = path.with_suffix(".wav")
        with published(path) as temporary:
            soundfile.write(temporary, clip.wave.numpy(), SAMPLE_RATE, format="WAV", subtype="PCM_16")
        return path
    path = path.with_suffix(".mp4")
    with (
        published(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as file,
    ):
        frames = clip.frames[:, : clip.frames.shape[1] // 2 * 2, : clip.frames.shape[2] // 2 * 2].numpy()
        rate = Fraction(clip.fps).limit_denominator(1001)
        # x264's macroblock tree reads memory that nothing was written to: equal pictures become different files.
        options = {"crf": "17", "preset": "medium", "mbtree": "0"}
        video = file.add_stream("libx264", rate=rate, options=options)
        video.height, video.width, video.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        video.codec_context.thread_count = 1  # with several, equal frames become different files
        sound = file.add_stream("aac", rate=SAMPLE_RATE, layout="stereo", options={"b": "128k"})
        for number, picture in enumerate(frames):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, 1 / rate
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        wave = np.repeat(clip.wave.numpy()[None], 2, axis=0)
        for start in range(0, wave.shape[1], _BLOCK):
            block = AudioFrame.from_ndarray(
                np.ascontiguousarray(wave[:, start : start + _BLOCK]), format="fltp", layout="stereo"
            )
            block.sample_rate, block.pts, block.time_base = SAMPLE_RATE, start, Fraction(1, SAMPLE_RATE)
            file.mux(sound.encode(block))
        file.mux(sound.encode(None))
    return path

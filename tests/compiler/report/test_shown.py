"""What a sample's card draws is the sample: its pictures in their order, its sound's outline, its pitch at its height."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from javisc.compiler.report import media
from javisc.compiler.report.media import SPECTROGRAM_SIZE, STRIP_FRAMES, preview


def picture(path: Path) -> NDArray[np.float64]:
    with av.open(str(path)) as file:
        return next(file.decode(video=0)).to_ndarray(format="gray").astype(float)


def brightening(seconds: int = 2, fps: int = 24) -> bytes:
    """Grey that goes from dark to light."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "g": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in np.linspace(40, 200, seconds * fps):
            planes = np.full((72, 64), 128, np.uint8)
            planes[:48] = round(level)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(planes, "yuv420p")))
        file.mux(stream.encode(None))
    return out.getvalue()


def test_a_card_shows_the_samples_pictures_outline_and_pitch(tmp_path: Path) -> None:
    """Silence, then a tone of 2 kHz that is never below nothing: an outline from 0 upwards, a line at a quarter of 8 kHz."""
    rate = 16000
    tone = 0.25 + 0.25 * np.sin(2 * np.pi * 2000 * np.arange(rate) / rate)
    flac = io.BytesIO()
    soundfile.write(flac, np.concatenate([np.zeros(rate), tone]), rate, format="FLAC")
    made = preview("k", brightening(), flac.getvalue(), tmp_path)
    assert made.strip is not None and made.poster is not None and made.spectrogram is not None
    strip = picture(tmp_path / made.strip)
    width = (strip.shape[1] + 4) // STRIP_FRAMES  # four columns of grey lie between two
    tiles = [float(strip[:, at : at + width - 4].mean()) for at in range(0, strip.shape[1], width)]
    assert len(tiles) == STRIP_FRAMES and all(later - earlier > 8 for earlier, later in pairwise(tiles)), (
        "evenly spread over the whole clip"
    )
    assert abs(float(picture(tmp_path / made.poster).mean()) - tiles[0]) < 6
    half = len(made.peaks) // 2
    assert all(low == high == 0 for low, high in made.peaks[: half - 1])
    assert all(low < 0.05 and abs(high - 0.5) < 0.05 for low, high in made.peaks[half + 1 :])
    shown = picture(tmp_path / made.spectrogram)
    columns, height = SPECTROGRAM_SIZE
    assert shown.shape == (height, columns)
    heard, silent = shown[:, columns * 5 // 8 :].mean(axis=1), shown[:, : columns * 3 // 8].mean(axis=1)
    brightest = int(np.argmax(heard[: height * 15 // 16]))  # what is not around zero is loudest at 0 Hz, at the bottom
    assert abs(brightest - height * 3 / 4) <= 2, "low frequencies are at the bottom"
    assert silent.max() < 0.3 * heard.max()


def test_no_more_is_drawn_than_a_clip_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "MAX_SECONDS", 0.5)
    flac = io.BytesIO()
    soundfile.write(flac, np.zeros(32000, np.float32), 16000, format="FLAC")
    made = preview("k", brightening(), flac.getvalue(), tmp_path)
    with av.open(str(tmp_path / made.clip)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 12
        file.seek(0)
        assert abs(sum(frame.samples for frame in file.decode(audio=0)) - 8000) <= 1024

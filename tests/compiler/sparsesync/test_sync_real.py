"""A real clip beside SparseSync's own re-encoding of it: the same pictures and the same sound at the same times."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from javisc.compiler.media.transcode import transcode
from javisc.compiler.recipe import PRESETS
from support.shared import SHARED, need

MEDIA = SHARED / "media/sparsesync"
CLIP = "ZYc410CE4Rg_0_10000"


def pictures(path: Path, count: int) -> NDArray[np.float32]:
    """The first pictures as luma, decoded."""
    with av.open(str(path)) as source:
        frames = source.decode(video=0)
        return np.stack([next(frames).to_ndarray(format="gray")[::4, ::4] for _ in range(count)]).astype(np.float32)


def sound(path: Path) -> NDArray[np.float32]:
    with av.open(str(path)) as source:
        parts = [frame.to_ndarray().mean(axis=0) for frame in source.decode(audio=0)]
    return np.concatenate(parts).astype(np.float32)


def test_pictures_and_sound_lie_where_sparsesyncs_own_files_have_them(tmp_path: Path) -> None:
    theirs = need(MEDIA / f"25fps_256side/{CLIP}.mp4")
    clip = transcode(MEDIA / f"{CLIP}.mp4", PRESETS["sync"].replace(max_seconds=4.0), tmp_path)
    assert clip.mp4 is not None and clip.flac is not None
    ours = pictures(clip.mp4, 100)
    reference = pictures(theirs, 101)
    assert ours.shape[1:] == reference.shape[1:]
    # A picture of ours shows theirs of the same tick, give or take the half tick by which the two clocks round.
    nearest = []
    for tick in range(5, 95):
        errors = [float(np.abs(ours[tick] - reference[other]).mean()) for other in range(tick - 3, tick + 4)]
        nearest.append(int(np.argmin(errors)) - 3)
    assert abs(float(np.mean(nearest))) <= 0.6 and max(map(abs, nearest)) <= 1
    heard, _ = soundfile.read(clip.flac, dtype="float32")
    expected = sound(theirs)[: len(heard)]
    size = 1 << 18
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(expected, size))
    lag = int(np.argmax(np.fft.irfft(spectrum, size)))
    lag = lag - size if lag > size // 2 else lag
    assert abs(lag) <= 32, f"{lag} samples, {lag / 16:.1f} ms"

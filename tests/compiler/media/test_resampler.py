"""A resampler that has served another sound gives what a new one gives, to the bit."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from javisc.compiler.media import resampler
from javisc.compiler.media.resampler import SPARE, Resampler


def through(made: Resampler, sound: np.ndarray, piece: int) -> np.ndarray:
    parts = [made.push(sound[:, at : at + piece]) for at in range(0, sound.shape[1], piece)]
    return np.concatenate([*parts, made.end()], axis=1)


@pytest.mark.parametrize(
    ("rate", "target", "channels"),
    [(44100, 16000, 1), (48000, 16000, 2), (8000, 16000, 1), (22050, 48000, 2), (11025, 44100, 1), (96001, 16000, 1)],
)
def test_one_that_has_ended_serves_again_as_if_new(rate: int, target: int, channels: int) -> None:
    rng = np.random.default_rng(rate)
    loud, sound = (rng.standard_normal((channels, length)).astype(np.float32) for length in (rate, rate // 2 + 7))
    whole = soxr.ResampleStream(rate, target, channels, dtype="float32", quality="VHQ")
    wanted = whole.resample_chunk(np.ascontiguousarray(sound.T), last=True).T
    first = Resampler(rate, target, channels)
    stream = first._stream
    through(first, loud, 3001)
    again = Resampler(rate, target, channels)
    assert again._stream is stream
    assert np.array_equal(through(again, sound, 8192), wanted)
    unheard = Resampler(rate, target, channels)
    unheard.end()
    assert np.array_equal(through(Resampler(rate, target, channels), sound, len(wanted.T)), wanted)


def test_few_wait_and_two_at_once_are_two() -> None:
    made = [Resampler(8000 + rate, 16000, 1) for rate in range(SPARE + 3)]
    other = Resampler(8000, 16000, 1)
    assert other._stream is not made[0]._stream
    for one in made:
        one.end()
    assert len(resampler._spare) <= SPARE

"""Acts: irregular events that are seen and heard at the same moments, kind by kind."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.demo.acts import GAPS, HELD_OUT, LEARNT, Act, event_times
from javisc.compiler.demo.jav import onset, write_scene
from javisc.compiler.demo.scenes import act_scene


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1 << 30), seconds=st.floats(0.5, 20))
def test_events_are_irregular_and_cover_the_clip(seed: int, seconds: float) -> None:
    times = event_times(np.random.default_rng(seed), seconds)
    gaps = np.diff(times)
    assert times[0] <= 0 and times[-1] >= seconds > times[-2]
    assert GAPS[0] <= gaps.min() and gaps.max() <= GAPS[1]
    assert len(gaps) < 3 or gaps.std() > 0


def surprise(act: Act, time: float, step: float = 0.012) -> float:
    """How much the picture's change turns within a moment: 0 for even motion, 1 for a jump or a motion reversed."""
    canvas = [np.full((288, 288, 3), 120, np.uint8) for _ in range(3)]
    for picture, when in zip(canvas, (time - step, time, time + step), strict=True):
        act.draw(picture, when, 16)
    before, now, after = (picture.astype(float) for picture in canvas)
    return float(
        np.abs(after - 2 * now + before).sum() / (np.abs(after - now).sum() + np.abs(now - before).sum() + 1000)
    )


@pytest.mark.parametrize("kind", (*LEARNT, *HELD_OUT))
def test_an_event_is_sudden_in_the_picture_and_in_the_sound_at_its_time(kind: str) -> None:
    at, between = [], []
    for seed in range(4):
        made = act_scene(seed, kind, seconds=3.0, plain=True)
        act = made.balls[0]
        assert isinstance(act, Act)
        inside = [(a, b) for a, b in pairwise(act.times) if a > 0.1 and b < 2.9]
        at += [surprise(act, start) for start, _ in inside]
        between += [surprise(act, start + share * (stop - start)) for start, stop in inside for share in (0.35, 0.5)]
        wave, times = made.sound(16000), np.array([hit.time for hit in made.hits])
        alone = [t for t in times if 0.1 < t < 2.9 and np.sum(np.abs(times - t) < 0.12) == 1]
        assert alone and max(abs(onset(wave, 16000, t) - t) for t in alone) < 0.003
    assert 2 * (1 - np.median(at)) < 1 - np.median(between)


def test_kinds_of_the_test_are_not_learnt_and_a_seed_decides_all() -> None:
    assert not set(LEARNT) & set(HELD_OUT)
    for kind in (LEARNT[0], HELD_OUT[0]):
        one, again, other = (act_scene(seed, kind, seconds=0.4) for seed in (7, 7, 8))
        assert one == again != other and kind in one.caption
        assert np.array_equal(np.stack(list(one.pictures())), np.stack(list(again.pictures())))
        assert np.array_equal(one.sound(8000), again.sound(8000))
    with pytest.raises(ValueError, match="allowed are juggle"):
        act_scene(0, "yodel")


def test_distractors_are_only_seen_or_only_heard() -> None:
    made = next(scene for scene in (act_scene(seed, "lamp", seconds=2.0) for seed in range(50)) if scene.calls)
    quiet = act_scene(made.seed, "lamp", seconds=2.0, plain=True)
    assert made.hits == quiet.hits and (quiet.calls, quiet.distractors, quiet.shake, quiet.grain) == (0, 0, 0, 0)
    extra = made.sound(16000) - quiet.sound(16000)
    assert np.abs(extra).max() > 0.05
    # Nothing of what is only heard begins suddenly: no step of its loudness within two milliseconds.
    loud = np.sqrt(np.convolve(extra**2, np.ones(160) / 160, "same"))
    assert np.abs(loud[32:] - loud[:-32]).max() < 0.05


def test_a_late_sound_is_late_by_so_much(tmp_path: Path) -> None:
    made = act_scene(3, "juggle", seconds=2.0, plain=True)
    waves = {}
    for late in (0.0, 0.3):
        path = tmp_path / f"{late}.mp4"
        write_scene(made, path, late=late)
        with av.open(str(path)) as container:
            waves[late] = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    shift = round(0.3 * 44100)
    a, b = waves[0.0][4000 : 88200 - shift - 4000], waves[0.3][4000 + shift : 88200 - 4000]
    assert np.corrcoef(a, b)[0, 1] > 0.95

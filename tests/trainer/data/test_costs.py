"""Predicted costs against the published counts of the joint transformer."""

from __future__ import annotations

import pytest

from javisc.trainer.data.index.assign import Bucket
from javisc.trainer.data.index.costs import joint_dit_cost


# TFLOP of one forward pass of 2 rows through 28 layers, 60 text tokens, prior keys not repeated.
@pytest.mark.parametrize(
    ("frames", "height", "width", "published"),
    [
        (51, 240, 426, 40),
        (102, 240, 426, 81),
        (51, 480, 854, 161),
        (102, 480, 854, 326),
        (51, 720, 1280, 392),
        (102, 720, 1280, 790),
    ],
)
def test_costs_follow_the_published_counts(frames: int, height: int, width: int, published: float) -> None:
    got = 2 * 28 * joint_dit_cost()(Bucket(frames, height, width, 1)) / 1e12
    assert got == pytest.approx(published, rel=0.04)


def test_audio_alone_is_a_small_share() -> None:
    bucket = Bucket(102, 240, 426, 1)
    assert 0.01 < joint_dit_cost(audio_only=True)(bucket) / joint_dit_cost()(bucket) < 0.04

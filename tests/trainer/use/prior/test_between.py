"""Masks between annotations: exact where annotated, near the truth elsewhere, on drawn scenes and on SA-V's published example."""

from __future__ import annotations

import json
import os
import random
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.trainer.use.prior.objects import rle
from javisc.trainer.use.prior.objects.between import Track
from javisc.trainer.use.prior.objects.sav import placed, read, stride
from support.annotated import Masks, moving
from support.shared import SHARED, need

SEED = random.Random(os.environ.get("JAVISC_TEST_SEED")).randrange(10_000)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    whole = (one | other).sum()
    return float((one & other).sum() / whole) if whole else 1.0


def track(masks: Masks, every: int = 4) -> Track:
    ticks = list(range(0, len(masks), every))
    return Track(ticks, [rle.encode(masks[tick]) for tick in ticks])


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_run_lengths_give_the_mask_back(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    packed = rle.encode(mask)
    assert np.array_equal(rle.decode(packed), mask)
    plain = [len(run) for run in np.split(mask.T.ravel(), np.flatnonzero(np.diff(mask.T.ravel())) + 1)]
    plain = plain if not mask.T.ravel()[0] else [0, *plain]
    assert np.array_equal(rle.decode({**packed, "counts": plain}), mask)
    found = rle.tight(mask)
    assert (found is None) == (not mask.any())
    if found is not None:
        x, y, w, h = found
        assert mask[y : y + h, x : x + w].sum() == mask.sum() and mask[y].any() and mask[:, x + w - 1].any()


@pytest.mark.parametrize(
    "hostile",
    [
        None, 7, [], {}, {"size": [4, 4]}, {"size": [4, 4], "counts": "\xff"}, {"size": [4, 4], "counts": [4, -4, 16]},
        {"size": [4, 4], "counts": [15]}, {"size": [1 << 20, 1 << 20], "counts": [1 << 40]},
        {"size": [4, 4], "counts": "oooooooooo"},
        {"size": [True, 4], "counts": [4]}, {"size": [4, 4], "counts": [1.5, 14.5]}, {"size": [0, 4], "counts": []},
    ],
)  # fmt: skip
def test_what_is_no_mask_is_said_to_be_none(hostile: Any) -> None:
    with pytest.raises(ValueError, match="mask"):
        rle.decode(hostile)


@pytest.mark.parametrize("nth", range(3))
def test_hidden_frames_of_drawn_scenes(nth: int) -> None:
    seed = SEED + nth  # drawn anew in each run, so not in the test's name
    masks = moving(seed, 49)
    made = track(masks)
    assert all(np.array_equal(made.at(tick), masks[tick]) for tick in range(0, 49, 4))
    hidden = [tick for tick in range(49) if tick % 4]
    found = np.mean([iou(made.at(tick), masks[tick]) for tick in hidden])
    held = np.mean([iou(masks[tick // 4 * 4], masks[tick]) for tick in hidden])
    assert found > 0.85 and found > held + 0.2, (seed, found, held)


def test_savs_example_with_every_annotation_left_out_once() -> None:
    """A sixth of a second is hidden on either side. Holding the last annotation gives 0.267, this 0.512 over all of them."""
    told = json.loads(need(SHARED / "annotations/SA-V/example/sav_000001_manual.json").read_text())["masklet"]
    found, held = [], []
    for number in range(len(told[0])):
        masks = [row[number] for row in told]
        assert rle.encode(rle.decode(masks[60])) == masks[60], "the same letters as COCO's"
        for at in range(1, len(masks) - 1, 5):
            left = [place for place in range(max(0, at - 5), min(len(masks), at + 6)) if place != at]
            truth = rle.decode(masks[at])
            if truth.any():
                made = Track([4 * place for place in left], [masks[place] for place in left])
                found.append(iou(made.at(4 * at), truth))
                held.append(iou(rle.decode(masks[at - 1]), truth))
    assert np.mean(found) > 0.457 and np.mean(found) > np.mean(held) + 0.15, (np.mean(found), np.mean(held))


def test_an_object_comes_and_goes_half_way_and_keeps_its_speed() -> None:
    masks = np.zeros((17, 60, 90), bool)
    for tick in range(9):
        masks[tick, 20:40, 5 * tick : 5 * tick + 20] = True
    made = track(masks)
    assert [bool(made.at(tick).any()) for tick in range(17)] == [True] * 10 + [False] * 7
    assert rle.tight(made.at(9)) == (45, 20, 20, 20)


def test_one_annotation_is_itself() -> None:
    mask = moving(3, 1)[0]
    assert np.array_equal(Track([5], [rle.encode(mask)]).at(5), mask)


@pytest.mark.parametrize(
    ("frames", "annotated", "seconds", "found"),
    [
        (483.0, 121, 20.125, 4), (100, 25, 100 / 24, 4), (300, 60, 10.0, 5), (50, 50, 2.0, 1), (8, 2, 8 / 24, 4), (8, 2, None, 4),
        (1, 1, None, 1), (61, 31, 61 / 12, 2), (100, 24, 4.0, 100 / 24), (None, 7, None, 1), (float("nan"), 7, 1.0, 1),
    ],
)  # fmt: skip
def test_the_rate_of_annotations_is_their_own(frames: Any, annotated: int, seconds: Any, found: float) -> None:
    assert stride(frames, annotated, seconds) == pytest.approx(found)


def test_annotations_of_a_video_that_was_given_another_rate_go_by_the_time() -> None:
    masks = [{"size": [1, 1], "counts": [number]} for number in range(6)]
    rows = [[mask] for mask in masks]
    raw = {"video_frame_count": 24.0, "video_duration": 1.0, "masklet": rows}
    [each] = read("manual", json.dumps(raw).encode())
    for fps in (30, 25, 12, 50):  # of 24 a second by then: every fourth tick, as it was
        found = placed(each, [Fraction(number, fps) for number in range(fps)], Fraction(24))
        assert found == dict(zip(range(0, 24, 4), masks, strict=True)), fps
    cut = placed(each, [Fraction(number, 24) for number in range(14)], Fraction(24))
    assert cut == dict(zip((0, 4, 8, 12), masks, strict=False)), "a part of the same video: by its frames"
    uneven = [Fraction(number**2, 480) for number in range(24)]  # as many frames as were annotated: by these
    assert list(placed(each, uneven, Fraction(24))) == [0, 1, 3, 7, 13, 20]
    del raw["video_duration"]
    [each] = read("manual", json.dumps(raw).encode())
    assert list(placed(each, [Fraction(number, 30) for number in range(30)], Fraction(24))) == [0, 3, 6, 10, 13, 16]

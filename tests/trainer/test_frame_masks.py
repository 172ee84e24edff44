"""Stage 3's frame masks against the published probabilities, counted from the masks alone, from fixed seeds."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from javisc.trainer.objectives.frame_masks import STAGE3_RATIOS, draw_masks, frame_masks

T, R = 20, 56
DRAWS = 12000


def sort_of(video: Tensor, audio: Tensor) -> str:
    """What a pair of masks looks like; kinds that may look alike share a name."""
    given = [i for i, keep in enumerate(video.tolist()) if not keep]
    follows = audio.tolist() == [bool(video[j * T // R]) for j in range(R)]
    if not audio.any():
        return {0: "audio_to_video", 1: "sound_image_animate"}.get(len(given), "?")
    if not given:
        return "identity"
    if len(given) == T:
        return "video_to_audio"
    if given in (list(range(0, T, 2)), list(range(1, T, 2))) and follows:
        return "intepolate"
    if audio.all() and not follows:
        return "image"
    run = given == list(range(given[0], given[-1] + 1)) and len(given) <= T // 4
    ends = 0 in given and T - 1 in given
    if follows and (run or (ends and len(given) <= 2 * (T // 4))):
        return "quarter"
    return "random" if follows else "?"


def test_kinds_come_as_often_as_published() -> None:
    assert sum(STAGE3_RATIOS.values()) == pytest.approx(0.30)
    drawn = draw_masks(DRAWS, T, R, STAGE3_RATIOS, [7919 * i + 13 for i in range(DRAWS)])
    assert drawn is not None
    seen = Counter(sort_of(video, audio) for video, audio in zip(*drawn, strict=True))
    expected = {
        "identity": 0.70,
        "video_to_audio": 0.05,
        "audio_to_video": 0.05,
        "sound_image_animate": 0.03,
        "intepolate": 0.03,
        "quarter": 0.05 + 3 * 0.005,
        "image": 0.05 + 3 * 0.005,
        "random": 0.01,
    }
    assert set(seen) == set(expected)
    for name, share in expected.items():
        # four standard deviations; a random mask looks like another kind once in a hundred times, or less
        spread = 4 * (share * (1 - share) / DRAWS) ** 0.5 + 2e-4
        assert abs(seen[name] / DRAWS - share) < spread, (name, seen[name] / DRAWS)


def counted(kind: str, draws: int = 4000) -> list[list[int]]:
    """The given frames of many masks of a kind."""
    rng = random.Random(3)
    masks = [frame_masks(kind, T, R, rng)[0] for _ in range(draws)]
    return [(~mask).nonzero().flatten().tolist() for mask in masks]


def even(values: list[int], choices: int) -> bool:
    """Whether all choices are taken equally often, within five standard deviations."""
    counts, n = Counter(values), len(values)
    spread = 5 * (n / choices * (1 - 1 / choices)) ** 0.5
    return len(counts) == choices and all(abs(count - n / choices) <= spread for count in counts.values())


@pytest.mark.parametrize("where", ["head", "tail", "random", "head_tail"])
@pytest.mark.parametrize("shape", ["quarter", "image"])
def test_stretches_are_drawn_evenly(shape: str, where: str) -> None:
    given = counted(f"{shape}_{where}")
    lengths = [len(frames) // (2 if where == "head_tail" else 1) for frames in given]
    assert even(lengths, T // 4 if shape == "quarter" else 1)
    for frames, length in zip(given, lengths, strict=True):
        head, tail = list(range(length)), list(range(T - length, T))
        wanted = {"head": head, "tail": tail, "head_tail": head + tail, "random": None}[where]
        assert frames == (wanted or list(range(frames[0], frames[0] + length)))
    if where == "random":
        for length in set(lengths):
            starts = [frames[0] for frames, own in zip(given, lengths, strict=True) if own == length]
            assert even(starts, T - length + 1)


def test_random_frames_and_every_second_one() -> None:
    assert even([frames[0] for frames in counted("intepolate")], 2)
    shares = torch.tensor([len(frames) / T for frames in counted("random")])
    # The share p is uniform from 0.1 to 0.9, frames follow it: mean 1/2, variance 0.8^2/12 + E[p (1 - p)] / T.
    variance = 0.8**2 / 12 + (0.25 - 0.8**2 / 12) / T
    assert shares.mean() == pytest.approx(0.5, abs=0.02) and shares.var() == pytest.approx(variance, rel=0.08)
    assert shares.max() <= (T - 1) / T  # something is always generated

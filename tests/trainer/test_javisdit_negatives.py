"""The prior's negatives: reproducible, of the right shape, really wrong, and never an error."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.transforms import javisdit_audio_negatives as audio
from javisc.trainer.transforms import javisdit_negatives as negatives
from javisc.trainer.transforms import javisdit_video_negatives as video
from javisc.trainer.transforms.draws import Draws, SeededDraws

RATE = 4000


class Pool:
    """Two foreign sounds, and one separated track of the clip's own file."""

    def __init__(self, track: Tensor | None = None) -> None:
        self.track = track

    def source(self, draws: Draws, apart_from: str) -> tuple[Tensor, list[audio.Span]]:
        assert apart_from == "own"
        tone = torch.sin(torch.arange(6000) * (0.1 + 0.1 * draws.integer("pool", 0, 1)))
        return tone, [(1000, 5000)]

    def separated(self, name: str) -> list[tuple[Tensor, list[audio.Span]]]:
        assert name == "own"
        return [] if self.track is None else [(self.track, [(0, len(self.track))])]


def masklet(frames: int = 20) -> video.Masklet:
    boxes = torch.tensor([[10.0 + i, 8.0, 12.0, 10.0] for i in range(frames)])
    ones = torch.ones(frames, 6, 6, dtype=torch.bool)
    white = torch.full((frames, 3, 6, 6), 255, dtype=torch.uint8)
    return video.Masklet(white, ones, boxes, torch.ones(frames, dtype=torch.bool), (40, 60))


class Objects:
    """A pool of one object."""

    def __init__(self, only: video.Masklet) -> None:
        self.only = only

    def masklet(self, draws: Draws, frames: int) -> video.Masklet:
        return self.only


def source(seed: int = 0, frames: int = 26, unpaired: Tensor | None = None) -> negatives.Source:
    generator = torch.Generator().manual_seed(seed)
    clip = torch.rand(frames, 3, 24, 36, generator=generator) * 2 - 1
    whole = torch.rand(3 * RATE, generator=generator) - 0.5
    return negatives.Source(clip, whole[1000 : 1000 + RATE], RATE, whole, 1000, "own", unpaired)


@pytest.mark.parametrize("rule", ["corrected", "reference"])
@pytest.mark.parametrize("seed", range(6))
def test_negatives_are_a_function_of_the_seed(seed: int, rule: str) -> None:
    config = negatives.NegativesConfig(repetitions=2, rule=rule)
    made = [negatives.make_negatives(source(), s, config, Objects(masklet()), Pool()) for s in (seed, seed, seed + 100)]
    for aspect in ("spatial", "temporal"):
        assert made[0].video[aspect].shape == (2, 26, 3, 24, 36)
        assert made[0].audio[aspect].shape == (2, RATE)
        assert torch.equal(made[0].video[aspect], made[1].video[aspect])
        assert torch.equal(made[0].audio[aspect], made[1].audio[aspect])
        assert not torch.equal(made[0].video[aspect], made[2].video[aspect])
        for kind, original in ((made[0].video, source().clip), (made[0].audio, source().wave)):
            assert all(not torch.equal(row, original) for row in kind[aspect])
            assert torch.isfinite(kind[aspect]).all() and kind[aspect].abs().max() <= 1.5


@pytest.mark.parametrize("name", negatives.AUDIO_SPATIAL + negatives.AUDIO_TEMPORAL)
def test_every_audio_augmentation_alone(name: str) -> None:
    if name in negatives.AUDIO_SPATIAL:
        config = negatives.NegativesConfig(audio_spatial=(name,))
    else:
        config = negatives.NegativesConfig(audio_temporal=(name,))
    aspect = "spatial" if name in negatives.AUDIO_SPATIAL else "temporal"
    made = negatives.make_negatives(source(), 5, config, None, Pool(source().whole * 0.5)).audio[aspect][0]
    assert made.shape == (RATE,) and not torch.equal(made, source().wave)


@pytest.mark.parametrize("name", negatives.VIDEO_SPATIAL + negatives.VIDEO_TEMPORAL)
def test_every_video_augmentation_alone(name: str) -> None:
    if name in negatives.VIDEO_SPATIAL:
        config = negatives.NegativesConfig(video_spatial=(name,))
    else:
        config = negatives.NegativesConfig(video_temporal=(name,))
    aspect = "spatial" if name in negatives.VIDEO_SPATIAL else "temporal"
    made = negatives.make_negatives(source(), 5, config, Objects(masklet())).video[aspect][0]
    assert made.shape == source().clip.shape and not torch.equal(made, source().clip)


@settings(deadline=None, max_examples=30)
@given(frames=st.integers(1, 30), samples=st.integers(1, 3000), seed=st.integers(0, 2**62), silent=st.booleans())
def test_no_length_is_an_error(frames: int, samples: int, seed: int, silent: bool) -> None:
    wave = torch.zeros(samples) if silent else torch.sin(torch.arange(samples) * 0.3)
    given_source = negatives.Source(torch.zeros(frames, 3, 5, 7), wave, RATE, wave, 0, "own")
    made = negatives.make_negatives(given_source, seed, negatives.NegativesConfig(), Objects(masklet(3)), Pool())
    assert made.audio["temporal"].shape == (1, samples)
    assert made.video["spatial"].shape == (1, frames, 3, 5, 7)


def test_unpaired_sound_is_used_once_at_most() -> None:
    tone = torch.full((RATE + 7,), 0.25)
    config = negatives.NegativesConfig(repetitions=3, unpaired=1.0)
    made = negatives.make_negatives(source(unpaired=tone), 3, config, None, Pool())
    used = sum(bool((row == 0.25).all()) for by in made.audio.values() for row in by)
    assert used == 1
    assert all(
        not bool((row == 0.25).all())
        for row in negatives.make_negatives(source(unpaired=torch.zeros(0)), 3, config, None, Pool()).audio["spatial"]
    )


def test_removing_a_sound_leaves_the_rest() -> None:
    background, event = source().wave * 0.1, source(1).wave
    mixed = background + event
    span = (500, 1500)
    kept = audio.remove_sound(mixed, span, event)
    assert torch.allclose(kept[500:1500], background[500:1500], atol=1e-6)
    assert torch.equal(kept[1500:], mixed[1500:])
    assert torch.allclose(audio.remove_sound(mixed, span, event, rule="reference")[500:1500], -kept[500:1500])
    assert (audio.remove_sound(mixed, span, None)[500:1500] == 0).all()


def test_other_crops_reach_the_end_of_the_file_only_when_corrected() -> None:
    whole = torch.arange(10.0)
    for rule, expected in (("corrected", {0, 1, 3, 4, 5, 6}), ("reference", {0, 1, 3})):
        crops = [audio.other_crop(whole, 2, 4, SeededDraws(seed), rule=rule) for seed in range(200)]
        assert {int(crop[0]) for crop in crops if crop is not None} == expected
    assert audio.other_crop(whole, 0, 10, SeededDraws(1)) is None
    assert audio.other_crop(whole, 6, 4, SeededDraws(1), rule="reference") is None


def test_a_volume_is_scaled_in_its_window_alone_when_corrected() -> None:
    """The reference multiplies seconds by the crop's length: of two seconds, twice as much as was drawn."""
    clip = source()
    clip = dataclasses.replace(clip, wave=clip.whole[1000 : 1000 + 2 * RATE])
    spans: dict[str, list[tuple[int, int]]] = {"corrected": [], "reference": []}
    for rule, found in spans.items():
        config = negatives.NegativesConfig(audio_spatial=("scale_volume",), rule=rule)
        for seed in range(20):
            made = negatives.make_negatives(clip, seed, config).audio["spatial"][0]
            changed = (made != clip.wave).nonzero().ravel()
            found.append((int(changed[0]), int(changed[-1]) + 1))
    for (first, last), (same, later) in zip(*spans.values(), strict=True):
        assert abs(first - same) < 3 and abs(later - min(2 * RATE, first + 2 * (last - first))) < 6
    assert sum(last < 2 * RATE - 100 for _, last in spans["corrected"]) > 10


def test_windows_prefer_loud_places() -> None:
    wave = torch.zeros(1000)
    wave[400:900] = 0.5
    assert audio.loud_spans(wave) == [(400, 900)]
    for seed in range(50):
        start, end = audio.window(wave, SeededDraws(seed), 0.2, 0.4)
        assert 400 <= start < end <= 900


def test_a_masklet_lands_inside_the_picture_and_hidden_ones_are_left_out() -> None:
    clip = torch.zeros(26, 3, 24, 36)
    made = video.add_masklet(clip, Objects(masklet(26)), SeededDraws(4))
    touched = (made != 0).any(1).flatten(1).any(1)
    assert 12 <= int(touched.sum()) <= 26
    hidden = masklet(26)
    hidden.visible[2:20] = False
    assert video.longest_gap(hidden.visible) == 18
    left_out = video.add_masklet(clip + 1, Objects(hidden), SeededDraws(4))
    assert torch.equal(left_out, video.random_mask(clip + 1, SeededDraws(4)))
    assert torch.equal(video.add_masklet(clip + 1, None, SeededDraws(4)), video.random_mask(clip + 1, SeededDraws(4)))


def test_unknown_augmentations_are_refused() -> None:
    with pytest.raises(UserError, match="video_spatial is \\['blur'\\]"):
        negatives.NegativesConfig(video_spatial=("blur",))

"""What the parity sets cannot show of the transforms: the draws' laws, effects without fixtures, feasibility, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.transforms import sync_audio, sync_offsets, sync_video
from javisc.trainer.transforms.draws import SeededDraws, happens
from javisc.trainer.transforms.sync_chain import (
    AudioClipTransforms,
    FixedOffset,
    SyncTransforms,
    apply,
    audio_clip,
    plan,
)
from javisc.trainer.transforms.sync_window import ClassGrid, CropRule, InfeasibleCrop, Lengths, Window

RATE = 16000


def tone(hertz: float, seconds: float = 1.0) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * RATE)) / RATE)


def loudest_hertz(wave: Tensor) -> float:
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
    return float(spectrum.argmax()) * RATE / len(wave)


def test_draws_depend_on_seed_and_name_alone() -> None:
    a, b = SeededDraws(5), SeededDraws(5)
    b.uniform("another", 0, 1)
    assert a.uniform("x", -2, 3) == b.uniform("x", -2, 3)
    assert torch.equal(a.normal("n", (7,)), b.normal("n", (7,)))
    assert a.order("o", 20) == b.order("o", 20) and sorted(a.order("o", 20)) == list(range(20))
    assert a.uniform("x", 0, 1) != a.uniform("y", 0, 1) != SeededDraws(6).uniform("y", 0, 1)


def test_draws_are_spread_as_they_say() -> None:
    draws = [SeededDraws(seed) for seed in range(4000)]
    numbers = torch.tensor([d.uniform("u", -1, 3) for d in draws])
    assert numbers.min() >= -1 and numbers.max() < 3 and abs(float(numbers.mean()) - 1) < 0.1
    counts = torch.bincount(torch.tensor([d.integer("i", 2, 6) for d in draws]))
    assert len(counts) == 7 and not counts[:2].any() and (counts[2:] - 800).abs().max() < 120
    assert abs(sum(happens(d, "h", 0.2) for d in draws) / 4000 - 0.2) < 0.03
    assert not any(happens(d, "h", p) for d in draws[:50] for p in (0, None))
    assert all(happens(d, "h", 1) for d in draws[:50])


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**62),
    st.integers(225, 270),
    st.integers(-900, 900),
    st.sampled_from([(2, 21), (1, 3)]),
    st.booleans(),
)
def test_random_windows_lie_in_the_clip_and_keep_their_class(
    seed: int, frames: int, extra: int, grid: tuple[int, int], jitter: bool
) -> None:
    """A clip that holds the crop and the largest offset always gives a window, within a frame and the jitter of its offset."""
    config = SyncTransforms(max_off_sec=grid[0], classes=grid[1], audio_jitter_sec=0.05 if jitter else 0.0)
    clip = Lengths(frames, frames * 640 + extra, 25.0, RATE)
    if frames * 640 + extra < (5 + grid[0]) * RATE:
        return
    window = plan(config, clip, SeededDraws(seed), train=True)
    assert window.v_first >= 0 and window.v_first + 125 <= clip.frames
    assert window.a_first >= 0 and window.a_first + 80000 <= clip.samples
    assert window.offset_sec is not None and window.offset_target is not None
    real = window.a_first / RATE - window.v_first / 25
    assert abs(real - window.offset_sec) <= (0.05 if jitter else 0) + 1 / 25 + 1 / RATE
    assert abs(ClassGrid(*grid).values[window.offset_target] - window.offset_sec) < 1e-6
    assert window == plan(config, clip, SeededDraws(seed), train=True)


def test_offsets_are_drawn_evenly() -> None:
    config, clip = SyncTransforms(), Lengths(250, 160000, 25.0, RATE)
    targets = [plan(config, clip, SeededDraws(seed), train=True).offset_target for seed in range(4200)]
    counts = torch.bincount(torch.tensor(targets), minlength=21)
    assert float(((counts - 200.0) ** 2 / 200).sum()) < 50  # χ² with 20 degrees of freedom: below 45 in 99.9 %


def test_short_clips_are_refused() -> None:
    rule = CropRule(ClassGrid(2, 21), 5)
    with pytest.raises(InfeasibleCrop, match="too short"):
        for seed in range(50):
            rule.random(Lengths(130, 83200, 25.0, RATE), SeededDraws(seed))
    with pytest.raises(InfeasibleCrop, match="samples 32000 to 112000 of 100000"):
        rule.fixed(Lengths(250, 100000, 25.0, RATE), 2.0, 0.0)
    with pytest.raises(InfeasibleCrop, match="no whole number"):
        CropRule(ClassGrid(2, 21), 5.01).fixed(Lengths(250, 160000, 25.0, RATE), 0.0, 0.0)
    with pytest.raises(ValueError, match="at least 3"):
        ClassGrid(1, 2)
    with pytest.raises(ValueError, match="linspace or uniform"):
        ClassGrid(1, 3, "log")


def clip_and_window(size: int = 40) -> tuple[Tensor, Tensor, Window]:
    generator = torch.Generator().manual_seed(3)
    video = torch.randint(0, 256, (25, 3, size, size + 8), generator=generator, dtype=torch.uint8)
    wave = torch.rand(RATE, generator=generator) - 0.5
    return video, wave, Window(0, 25, 0, RATE, 0.0, 0.0, 0.0, 10)


def test_the_train_chain_is_a_function_of_the_seed_and_augments() -> None:
    video, wave, window = clip_and_window()
    config = SyncTransforms(
        crop_len_sec=1,
        input_size=28,
        upscaled_from=24,
        p_color_jitter=0.5,
        p_gray_scale=0.5,
        sometimes_upscale_p=0.5,
        p_audio_aug=0.5,
    )
    samples = [apply(config, video, wave, window, RATE, SeededDraws(seed), train=True) for seed in range(12)]
    again = apply(config, video, wave, window, RATE, SeededDraws(4), train=True)
    assert torch.equal(again.vis, samples[4].vis) and torch.equal(again.aud, samples[4].aud)
    assert len({float(s.vis.sum()) for s in samples}) == 12 and len({float(s.aud.sum()) for s in samples}) == 12
    for sample in samples:
        assert sample.vis.shape == (25, 3, 28, 28) and sample.aud.shape == (1, 257, 126)
        assert sample.vis.isfinite().all() and sample.aud.isfinite().all()
    assert torch.equal(video, clip_and_window()[0]) and torch.equal(wave, clip_and_window()[1])  # inputs are left alone


def test_every_augmentation_is_met_at_its_rate() -> None:
    """With probability p, the parts of the chain that differ from the plain one do so in a share p of the samples."""
    video, wave, window = clip_and_window(28)
    plain = SyncTransforms(crop_len_sec=1, input_size=28, p_horizontal_flip=0.0)
    flipping = SyncTransforms(crop_len_sec=1, input_size=28, p_horizontal_flip=0.5)
    video = video[..., :28]
    base = apply(plain, video, wave, window, RATE, SeededDraws(0), train=True)
    flipped = 0
    for seed in range(60):
        vis = apply(flipping, video, wave, window, RATE, SeededDraws(seed), train=True).vis
        assert torch.equal(vis, base.vis) or torch.equal(vis, base.vis.flip(-1))
        flipped += not torch.equal(vis, base.vis)
    assert 15 < flipped < 45


def test_freeze_and_corrupt_in_the_chain() -> None:
    video, wave, window = clip_and_window(28)
    config = SyncTransforms(
        crop_len_sec=1,
        max_off_sec=0.2,
        active_min_overlap_sec=0.2,
        input_size=28,
        to_freeze_frames=True,
        to_corrupt_audio=True,
        corrupt_type="rand",
        p_horizontal_flip=0.0,
    )
    sample = apply(config, video, wave, window, RATE, SeededDraws(1), train=False)
    changed = (sample.vis[1:] != sample.vis[:-1]).flatten(1).any(1)
    assert 9 <= int(changed.sum()) <= 11  # 10 kept frames and a step into the frozen ones on either side
    noise = sync_audio.corrupt_outside(torch.zeros(20000), (5000, 8000), "rand", SeededDraws(1))
    assert (
        not noise[5000:8000].any()
        and noise.abs().max() <= 1
        and abs(float(noise.std()) - math.sqrt(17000 / 60000)) < 0.02
    )
    with pytest.raises(ValueError, match="mute or rand"):
        sync_audio.corrupt_outside(torch.zeros(10), (0, 5), "hum", SeededDraws(1))


def reverb_by_definition(wave: Tensor, rate: int) -> Tensor:
    """Freeverb sample by sample, as its delay lines run."""
    k = -1 / math.log(1 - 0.3)
    base = 100 / (math.log(1 - 0.98) * k + 1)
    feedback, damping = 1 - math.exp((50 - base) / (k * base)), 0.35
    channels = []
    for spread in (0, 12):
        sign, out = 1, [0.0] * len(wave)
        for delay in (1116, 1188, 1277, 1356, 1422, 1491, 1557, 1617):
            line, store = [0.0] * int(rate / 44100 * (delay + sign * spread) + 0.5), 0.0
            for n, x in enumerate(wave.tolist()):
                y = line[n % len(line)]
                store = y + (store - y) * damping
                line[n % len(line)] = x + store * feedback
                out[n] += y
            sign = -sign
        for delay in (225, 341, 441, 556):
            line = [0.0] * int(rate / 44100 * (delay + sign * spread) + 0.5)
            for n, x in enumerate(out):
                y = line[n % len(line)]
                line[n % len(line)] = x + y * 0.5
                out[n] = y - x
            sign = -sign
        channels.append(torch.tensor(out) * 0.015)
    return torch.stack(channels).mean(0).clamp(-1, 1)


def test_reverb_is_the_filters_it_is_made_of() -> None:
    wave = torch.rand(6000, generator=torch.Generator().manual_seed(0)) - 0.5
    got, want = sync_audio.reverb(wave, 4000), reverb_by_definition(wave, 4000)
    assert want.abs().max() > 0.01
    assert float((got - want).abs().max() / want.abs().max()) < 1e-4


def test_reverb_starts_after_the_shortest_delay_and_echoes() -> None:
    click = torch.zeros(RATE)
    click[0] = 1
    wet = sync_audio.reverb(click, RATE)
    shortest = int(1116 * RATE / 44100)
    assert wet[: shortest - 20].abs().max() < 1e-6 < wet[shortest - 20 : shortest + 200].abs().max()
    assert wet[8000:].abs().max() > 0


@pytest.mark.parametrize("hertz", [220.0, 500.0, 1200.0])
def test_the_pitch_rises_and_the_length_stays(hertz: float) -> None:
    raised = sync_audio.raise_pitch(tone(hertz), RATE)
    assert len(raised) == RATE
    assert loudest_hertz(raised) == pytest.approx(hertz * 2 ** (1000 / 1200), rel=0.02)


def test_raising_the_pitch_leaves_events_where_they_are() -> None:
    """Sync is what is learnt: a burst must not move by more than a segment's slack."""
    wave = torch.zeros(3 * RATE)
    starts = (4000, 20000, 40000)
    for start in starts:
        wave[start : start + 1600] = tone(600, 0.1)
    raised = sync_audio.raise_pitch(wave, RATE)
    loud = (raised.abs() > 0.2).nonzero().flatten()
    for start in starts:
        nearest = loud[(loud >= start - 4000) & (loud < start + 6000)]
        assert abs(int(nearest[0]) - start) < 0.05 * RATE


def test_stretching_keeps_the_pitch() -> None:
    longer = sync_audio.stretch(tone(440), 1.5, RATE)
    assert len(longer) == int(RATE * 1.5)
    assert loudest_hertz(longer) == pytest.approx(440, rel=0.01)


def test_noise_and_volume() -> None:
    quiet = torch.zeros(20000)
    noisy = sync_audio.add_noise(quiet, SeededDraws(1))
    assert float(noisy.std()) == pytest.approx(0.01, rel=0.05)
    assert torch.equal(sync_audio.louder(torch.tensor([0.3, -0.6, 0.5])), torch.tensor([0.6, -1.0, 1.0]))


def test_audio_only_chain() -> None:
    config = AudioClipTransforms(p_audio_aug=0.0)
    wave = torch.rand(3 * RATE, generator=torch.Generator().manual_seed(0)) - 0.5
    test = audio_clip(config, wave, RATE, SeededDraws(1), train=False)
    assert test.shape == (1, 257, 626)
    assert torch.equal(test, audio_clip(config, wave, RATE, SeededDraws(2), train=False))
    train = [audio_clip(config, wave, RATE, SeededDraws(seed), train=True) for seed in (1, 2)]
    assert train[0].shape == (1, 257, 626) and not torch.equal(*train)
    with pytest.raises(ValueError, match="even when tiled"):
        audio_clip(config, wave[:4000], RATE, SeededDraws(1), train=True)


def test_pictures_that_are_too_small_are_refused() -> None:
    video, wave, window = clip_and_window(28)
    config = SyncTransforms(crop_len_sec=1, input_size=64)
    for train in (True, False):
        with pytest.raises(ValueError, match="28x36"):
            apply(config, video, wave, window, RATE, SeededDraws(0), train=train)
    with pytest.raises(ValueError, match="25 frames and 15999 samples"):
        apply(config, video, wave[:-1], window, RATE, SeededDraws(0), train=True)


def test_grey_jitter_acts_on_the_whole_clip() -> None:
    video = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8).expand(6, -1, -1, -1)
    for seed in range(5):
        changed = sync_video.distort_color(video, 1.0, 0.0, SeededDraws(seed))
        assert all(torch.equal(frame, changed[0]) for frame in changed)
    grey = sync_video.distort_color(video, 0.0, 1.0, SeededDraws(0))
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])


def test_fixed_offsets_are_read_and_checked(tmp_path: Path) -> None:
    grid = ClassGrid(2, 21)
    rows = {"test": "a/1,0.2,2.96\n", "valid": '"b,2",-1.4,3.44\n'}
    for split, row in rows.items():
        (tmp_path / sync_offsets.file_name(split, grid, 5)).write_text(f"path,offset_sec,vstart_sec\n{row}")
    assert sync_offsets.read(tmp_path, grid, 5) == {"a/1": FixedOffset(0.2, 2.96), "b,2": FixedOffset(-1.4, 3.44)}
    with pytest.raises(UserError, match=r"no \*_size21_crop4_"):
        sync_offsets.read(tmp_path, grid, 4)
    train = tmp_path / sync_offsets.file_name("train", grid, 5)
    train.write_text("path,offset_sec,vstart_sec\na/1,0.4,1.0\n")
    with pytest.raises(UserError, match=r"line 2: the clip 'a/1' occurs twice"):
        sync_offsets.read(tmp_path, grid, 5)
    for text in ("path,offset_sec\n", "path,offset_sec,vstart_sec\nc,x,1\n", "path,offset_sec,vstart_sec\nc,1\n", ""):
        train.write_text(text)
        with pytest.raises(UserError, match="train_size21"):
            sync_offsets.read(tmp_path, grid, 5)


@settings(max_examples=200, deadline=None)
@given(frames=st.integers(35, 200), seed=st.integers(0, 1 << 30), count=st.integers(1, 4))
def test_several_windows_fit_the_clip_and_share_its_picture(frames: int, seed: int, count: int) -> None:
    clip = Lengths(frames, frames * 640, 25.0, RATE)
    rule = CropRule(ClassGrid(0.4, 9), 1.0, 0.02)
    made = rule.several(clip, SeededDraws(seed), count)
    assert len(made) == count and len({window.offset_target for window in made}) == count
    assert len({window.v_first for window in made}) == 1
    for window in made:
        assert 0 <= window.v_first <= frames - 25 and 0 <= window.a_first <= clip.samples - window.a_len
        assert window.offset_label == pytest.approx(window.offset_sec, abs=1e-6)
        real = window.a_first / RATE - window.v_first / 25
        assert abs(real - window.offset_sec) <= 0.02 + 0.04 + 1e-6
    with pytest.raises(ValueError, match="at most half"):
        rule.several(clip, SeededDraws(seed), 6)

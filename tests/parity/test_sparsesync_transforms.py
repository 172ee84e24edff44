"""SparseSync's transforms, metrics and schedules against the reference's numbers, its own random draws fed in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from javisc.trainer.engine.schedule import EarlyStop, ScheduleConfig, rate_factor
from javisc.trainer.models.sync.metrics import sync_metrics
from javisc.trainer.transforms import sync_audio, sync_video
from javisc.trainer.transforms.draws import SeededDraws
from javisc.trainer.transforms.sync_chain import FixedOffset, SyncTransforms, apply, mixup, plan
from javisc.trainer.transforms.sync_window import (
    Lengths,
    kept_part,
)
from support.sync_parity import SETS, RecordedDraws, rel, with_tables


@pytest.fixture(params=with_tables(SETS), ids=lambda folder: folder.name, scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_spatial_crops(tensors: dict[str, Tensor]) -> None:
    picture, want = tensors["rgb/uint8"], tensors["rgb/center_crop8"]
    size = (want.shape[-2], want.shape[-1])
    assert torch.equal(sync_video.crop(picture, sync_video.center_corner(*picture.shape[-2:], size), size), want)


def test_pictures(tensors: dict[str, Tensor]) -> None:
    picture = tensors["rgb/uint8"]
    assert torch.equal(picture.flip(-1), tensors["rgb/flipped"])
    assert rel(sync_video.normalise(picture), tensors["rgb/normalized"]) <= 1e-6
    versions = [value.int() for key, value in tensors.items() if key.startswith("rgb/upscaled")]
    small = tensors["rgb/center_crop8"]
    got = sync_video.upscale(small, (versions[0].shape[-2], versions[0].shape[-1])).int()
    assert min(int((got - want).abs().max()) for want in versions) <= 1
    for key, want in tensors.items():
        name, _, factor = key.removeprefix("rgb/").rpartition("_")
        if name in sync_video.COLOR_RANGES:
            changed = sync_video.adjust_color(picture, name, float(factor))
            assert int((changed.int() - want.int()).abs().max()) <= 1, key
    assert int((sync_video.gray(picture).int() - tensors["rgb/gray"].int()).abs().max()) <= 1


def test_colour_ranges(tables: dict[str, Any]) -> None:
    for name, limits in tables["color_jitter"].items():
        assert list(sync_video.COLOR_RANGES[name]) == pytest.approx(limits)


def test_freeze_and_corrupt(tables: dict[str, Any]) -> None:
    for case in tables["freeze"]:
        draws = RecordedDraws(case["draws"])
        length = len(case["frames"])
        kept = kept_part(length, 25, 3, draws, "freeze")
        frames = sync_video.freeze_outside(torch.arange(length).view(-1, 1, 1, 1), kept)
        assert frames.flatten().tolist() == case["frames"] and draws.used_up()
    for case in tables["corrupt"]:
        draws = RecordedDraws(case["draws"])
        kept = kept_part(case["total"], 16000, 3, draws, "corrupt_from")
        muted = sync_audio.corrupt_outside(torch.ones(case["total"]), kept, "mute", draws)
        loud = muted.nonzero().flatten()
        assert (int(loud[0]), int(loud[-1]), len(loud)) == (case["first_kept"], case["last_kept"], case["kept"])


def test_spectrograms(tables: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    names = sorted({key.split("/")[1] for key in tensors if key.startswith("audio/")})
    assert names
    for name in names:
        stored = {key.rsplit("/", 1)[1]: value for key, value in tensors.items() if key.startswith(f"audio/{name}/")}
        power = sync_audio.power_spectrogram(stored["wave"])
        log = sync_audio.log(power)
        norm, means, stds = sync_audio.standardise(log)
        for what, got in (("power", power), ("log", log), ("means", means)):
            assert rel(got, stored[what]) <= 1e-4, (name, what)
        if name in tables["norm_not_comparable"]:
            assert norm.isfinite().all() and norm.abs().max() < 20, name
        else:
            assert rel(stds, stored["stds"]) <= 1e-4, name
            assert rel(norm, stored["norm"]) <= 1e-4, name


def test_sound_augmentations(tensors: dict[str, Tensor]) -> None:
    wave = tensors["aug/wave"]
    assert rel(sync_audio.lowpass(wave, 16000), tensors["aug/lowpass100"]) <= 1e-4
    assert rel(sync_audio.louder(wave), tensors["aug/volume2"]) <= 1e-6


def test_tiling_and_centre_crops(tables: dict[str, Any]) -> None:
    rate = 16000
    for case in tables["trim_or_tile"]:
        got = sync_audio.trim_or_tile(torch.arange(case["n"], dtype=torch.float64), rate)
        assert len(got) == case["length"]
        assert {key: int(got[int(key)]) for key in case["at"]} == case["at"]
    for case in tables["time_crop_center"]:
        assert sync_audio.center_part(case["n"], case["length"]) == case["first"]


def test_masks_stay_within_their_width(tables: dict[str, Any]) -> None:
    for number, case in enumerate(tables["masks"]):
        draws = SeededDraws(number)
        masked = sync_audio.mask_band(torch.ones(257, 626), 0, case["freq_param"], draws, "freq_mask")
        masked = sync_audio.mask_band(masked, 1, case["time_param"], draws, "time_mask")
        assert set(masked.unique().tolist()) <= {case["fill"], 1.0}
        for axis, limit in ((1, case["freq_param"]), (0, case["time_param"])):
            band = (masked == case["fill"]).all(axis).nonzero().flatten()
            assert len(band) <= limit
            assert len(band) == 0 or int(band[-1] - band[0]) == len(band) - 1
        for name in ("freq", "time"):
            assert 0 <= case[name][1] - case[name][0] <= case[f"{name}_param"]


def test_the_whole_test_chain(tables: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    video, wave = tensors["chain/in_video"], tensors["chain/in_audio"]
    for number, case in enumerate(tables["chain"]):
        config = SyncTransforms(
            crop_len_sec=case["crop_len_sec"],
            max_off_sec=case["max_off_sec"],
            classes=case["grid_size"],
            input_size=case["input_size"],
        )
        clip = Lengths(len(video), len(wave), case["v_fps"], case["a_fps"])
        fixed = FixedOffset(case["offset_sec"], case["v_start_i_sec"])
        draws = SeededDraws(0)
        window = plan(config, clip, draws, train=False, fixed=fixed)
        assert (window.offset_target, window.offset_label) == (case["offset_target"], case["offset_label"])
        frames = video[window.v_first : window.v_first + window.v_len]
        samples = wave[window.a_first : window.a_first + window.a_len]
        sample = apply(config, frames, samples, window, case["a_fps"], draws, train=False)
        assert rel(sample.vis, tensors[f"chain/{number}/video"]) <= 1e-6
        assert rel(sample.aud, tensors[f"chain/{number}/audio"]) <= 1e-4


def test_mixup(tensors: dict[str, Tensor]) -> None:
    batch, permutation = tensors["mixup/in"], tensors["mixup/perm"]
    assert rel(mixup(batch, permutation, float(tensors["mixup/lambda"])), tensors["mixup/out"]) <= 1e-6


def test_metrics(tables: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    for number, want in enumerate(tables["metrics"]):
        got = sync_metrics(tensors[f"metric/{number}/logits"], tensors[f"metric/{number}/targets"])
        assert got == pytest.approx(want, abs=1e-5), number
    got = sync_metrics(tensors["metric/missing/logits"], tensors["metric/missing/targets"])
    assert got == pytest.approx(tables["metrics_missing_class"], abs=1e-5)


def test_early_stop(tables: dict[str, Any]) -> None:
    for case in tables["early_stop"]:
        stop = EarlyStop(case["patience"], case["to_max"])
        improved = [stop.update(value) for value in case["values"]]
        assert improved == case["improved"]
        assert (stop.triggered, stop.best) == (case["triggered"], case["best"])


def test_learning_rates(tables: dict[str, Any]) -> None:
    for case in tables["lr_schedule"]:
        config = ScheduleConfig(warmup_steps=case["warmup"])
        for step, want in case["lr_at"].items():
            got = case["base"] * case["world"] * rate_factor(config, int(step))
            assert got == pytest.approx(want, abs=1e-12), step

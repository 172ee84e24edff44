"""Which part of a clip a sync model is given: grids, crops and jitter of both families, against the reference's tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from javisc.trainer.transforms import sync_offsets, sync_video
from javisc.trainer.transforms.sync_window import ClassGrid, CropRule, InfeasibleCrop, Lengths, equalify, position
from support.sync_parity import SETS, SYNCHFORMER, RecordedDraws, check_window, rule_of, with_tables


@pytest.fixture(params=with_tables([*SETS, *SYNCHFORMER]), ids=lambda folder: folder.name, scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_seconds_to_positions(tables: dict[str, Any]) -> None:
    for seconds, rate, want in tables["sec2frames"]:
        assert position(seconds, rate) == want, (seconds, rate)


def test_class_grid(tables: dict[str, Any]) -> None:
    for case in tables["class_grid"]:
        grid = ClassGrid(case["max_off"], case["size"], case.get("type", "linspace"))
        assert [float(value) for value in grid.values] == case["grid"]
        for offset, label, target in case["quantize"]:
            assert grid.nearest(offset) == (label, target), offset


def test_grids_that_mean_nothing(tables: dict[str, Any]) -> None:
    for size in tables.get("class_grid_refused", (2, 1, 0)):
        with pytest.raises(ValueError, match="needs at least 3"):
            ClassGrid(2, size)
    # Two cells have centres that say early or late; two points of a line are its ends.
    assert ClassGrid(2, 2, "uniform").values.tolist() == [-1.0, 1.0]
    with pytest.raises(ValueError, match="needs at least 2"):
        ClassGrid(2, 1, "uniform")


def test_equalify(tables: dict[str, Any]) -> None:
    for case in tables["equalify"]:
        got = equalify(Lengths(case["v_frames"], case["a_frames"], case["v_fps"], case["a_fps"]), case["max_len_sec"])
        assert (got.frames, got.samples) == (case["v_len"], case["a_len"]), case
        assert case["v_first"] == case["a_first"] == 0


def test_windows_of_given_offsets(tables: dict[str, Any]) -> None:
    for case in tables["crop_fixed"]:
        rule, clip = rule_of(case)
        if "error" in case["result"]:
            with pytest.raises(InfeasibleCrop):
                rule.fixed(clip, case["offset_sec"], case["v_start_i_sec"])
        else:
            check_window(rule.fixed(clip, case["offset_sec"], case["v_start_i_sec"]), case["result"])


def test_windows_of_random_offsets(tables: dict[str, Any]) -> None:
    for case in tables["crop_random"]:
        rule, clip = rule_of(case)
        draws = RecordedDraws(case["draws"])
        check_window(rule.random(clip, draws), case["result"])
        assert draws.used_up()


def test_windows_without_offset(tables: dict[str, Any]) -> None:
    for case in tables["crop_no_offset"]:
        rule, clip = rule_of(case)
        draws = RecordedDraws(case["draws"])
        check_window(rule.unshifted(clip, draws if case["split"] == "train" else None), case["result"])
        assert draws.used_up()


def test_jitter_stays_within_half_a_step(tables: dict[str, Any]) -> None:
    for case in tables["jitter_limit"]:
        grid = ClassGrid(case["max_off_sec"], case["grid_size"])
        if case["accepted"]:
            CropRule(grid, 5, case["max_wiggle_sec"] or 0.0)
        else:
            with pytest.raises(ValueError, match="audio_jitter_sec"):
                CropRule(grid, 5, case["max_wiggle_sec"])


def test_names_of_fixed_offset_files(tables: dict[str, Any]) -> None:
    for split, classes, largest, crop, want in tables["fixed_offset_file_name"]:
        assert sync_offsets.file_name(split, ClassGrid(largest, classes), crop) == want


def test_spatial_corners(tables: dict[str, Any]) -> None:
    for height, width, th, tw, top, left in tables["spatial_center"]:
        assert sync_video.center_corner(height, width, (th, tw)) == (top, left)
    for case in tables["spatial_random"]:
        draws = RecordedDraws(case["draws"])
        corner = sync_video.random_corner(case["h"], case["w"], (case["th"], case["tw"]), draws)
        assert corner == (case["top"], case["left"]) and draws.used_up()

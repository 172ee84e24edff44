"""SparseSync's splits and fixed offsets against the reference's, its published lists, and the rules they follow."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from javisc.compiler.inputs.sync_lists import lrs3_splits, vggsound_splits
from javisc.compiler.sparsesync.rules import Grid, read_fixed_offsets, write_fixed_offsets
from javisc.manifests.errors import UserError
from support.corpora import ANNOTATIONS
from support.shared import PARITY, need

NAMES = {"train": "train", "val": "valid", "test": "test"}


@cache
def fixture(section: str) -> Any:
    return json.loads(need(PARITY / "sparsesync/transforms.json").read_text())[section]


def test_lrs3_is_split_as_the_reference_does() -> None:
    case = fixture("splits")["lrs3"]
    found = lrs3_splits([clip.removesuffix(".mp4") for clip in case["clips"]], case["seed"])
    for ours, theirs in NAMES.items():
        assert sorted(clip for clip, split in found.items() if split == ours) == case[theirs]


def test_vggsound_is_split_as_the_reference_does() -> None:
    case = fixture("splits")["vggsound"]
    rows = [(video, int(start), label, split) for video, start, label, split in case["meta_rows"]]
    found = vggsound_splits(rows, case["seed"])
    files = {name.removesuffix(".mp4") for name in case["files"]}
    for ours, theirs in NAMES.items():
        clips = {
            f"{video}_{start * 1000}_{(start + 10) * 1000}" for (video, start), split in found.items() if split == ours
        }
        assert sorted(clips & files) == case[theirs]


def test_published_lists_are_disjoint_by_video_as_the_rule_makes_them() -> None:
    for folder, prefix in (("LRS3", "lrs3"), ("VGGSound", "vggsound")):
        lists = [
            need(ANNOTATIONS / folder / f"{prefix}_{name}.txt").read_text().split()
            for name in ("train", "valid", "test")
        ]
        video = (lambda clip: clip.split("/")[1]) if prefix == "lrs3" else (lambda clip: clip[:11])
        videos = [{video(clip) for clip in clips} for clips in lists]
        assert (
            not videos[0] & videos[1]
            and not videos[1] & videos[2]
            and (prefix == "vggsound" or not videos[0] & videos[2])
        )


def test_the_names_of_the_lists_of_offsets() -> None:
    for split, size, largest, crop, name in fixture("fixed_offset_file_name"):
        assert Grid(size, largest, crop).file_name(split) == name


def test_the_published_lists_of_offsets_follow_the_grid_they_are_named_after() -> None:
    folder = need(ANNOTATIONS / "LRS3/sparsesync/fixed_offsets_lrs3")
    found = read_fixed_offsets([folder / Grid().file_name(split) for split in ("valid", "test")])
    assert found.height == 5631 + 5966
    grid = {round(float(value), 2) for value in Grid().values}
    assert set(found["offset_sec"]) == grid
    first = found.row(by_predicate=pl.col("clip") == "pretrain/-MTRxRO5SRA/00002")
    assert first == ("pretrain/-MTRxRO5SRA/00002", 0.2, 2.96)


@given(
    st.text(min_size=1, max_size=30),
    st.floats(9, 100),
    st.sampled_from([(21, 2.0, 5.0), (3, 1.0, 8.0), (41, 2.0, 5.0)]),
)
def test_drawn_offsets_fit_and_do_not_move(clip: str, seconds: float, grid: tuple[int, float, float]) -> None:
    made = Grid(*grid)
    drawn = made.draw(clip, seconds)
    assert drawn is not None and drawn == made.draw(clip, seconds)
    offset, start = drawn
    assert offset in {round(float(value), 2) for value in made.values}
    assert start >= 0 and start + made.crop <= min(seconds, 10) + 1e-9
    assert start + offset >= -0.04 and start + offset + made.crop <= min(seconds, 10) + 1e-9


def test_drawn_offsets_use_the_whole_grid_evenly() -> None:
    drawn = [Grid().draw(f"clip {number}", 10.0) for number in range(4200)]
    counts = np.unique([pair[0] for pair in drawn if pair], return_counts=True)[1]
    assert len(counts) == 21 and counts.min() > 140 and counts.max() < 260


def test_a_clip_too_short_for_its_offset_gets_none() -> None:
    assert all(Grid().draw(f"{number}", 4.9) is None for number in range(50))
    assert any(Grid().draw(f"{number}", 6.0) is None for number in range(50))


def test_lists_are_written_as_they_are_read(tmp_path: Path) -> None:
    offsets = {"b_0_1": (0.2, 3.44), 'a,"x"': (-2.0, 0.0)}
    write_fixed_offsets(tmp_path / "o.csv", offsets)
    assert (tmp_path / "o.csv").read_text().splitlines()[0] == "path,offset_sec,vstart_sec"
    found = read_fixed_offsets([tmp_path / "o.csv"])
    assert {clip: (offset, start) for clip, offset, start in found.iter_rows()} == offsets


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,offset_sec\n", "no column 'vstart_sec'"),
        ("path,offset_sec,vstart_sec\na,x,1\n", "line 2: 'x, 1' is no offset"),
        ("path,offset_sec,vstart_sec\na,nan,1\n", "is no offset"),
        ("path,offset_sec,vstart_sec\na,1,-1\n", "is no offset"),
        ("path,offset_sec,vstart_sec\na,1\n", "2 fields, 3 expected"),
        ("path,offset_sec,vstart_sec\na,0,1\na.mp4,0,2\n", "line 3: 'a' has another offset or start"),
    ],
)
def test_lists_of_another_form_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "o.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_fixed_offsets([tmp_path / "o.csv"])


def test_a_clip_may_stand_in_several_lists_with_the_same_values(tmp_path: Path) -> None:
    for name, rows in (
        ("train", "eval/a_0_10000,0.2,1\n"),
        ("test", "eval/a_0_10000.mp4,0.20,1.0\neval/b_0_10000,-2,3\n"),
    ):
        (tmp_path / f"{name}.csv").write_text(f"path,offset_sec,vstart_sec\n{rows}")
    found = read_fixed_offsets([tmp_path / "train.csv", tmp_path / "test.csv"])
    assert found.rows() == [("eval/a_0_10000", 0.2, 1.0), ("eval/b_0_10000", -2.0, 3.0)]


def test_a_grid_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match="--offset-grid 2:2:5"):
        Grid(2)

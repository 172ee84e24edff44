"""VGGSound: the real list without a header row."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from javisc.compiler.inputs.corpora import of_kind
from support.corpora import ANNOTATIONS, annotations, row
from support.shared import need


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shutil.copy(need(ANNOTATIONS / "VGGSound/vggsound_head30_verbatim.csv"), tmp_path / "vggsound.csv")
    return tmp_path


def test_the_first_line_is_a_clip_too(root: Path) -> None:
    found = annotations(of_kind("audio")["vggsound"], root)
    assert found.frame.height == 30 and found.problems.count == 0
    assert row(found, "---g-f_I2yQ_1")["text"] == "people marching" and row(found, "---g-f_I2yQ_1")["split"] == "test"
    assert row(found, "--9O4XZOge4_30")["text"] == "female speech, woman speaking"


def test_the_long_list(tmp_path: Path) -> None:
    shutil.copy(need(ANNOTATIONS / "VGGSound/vggsound_derived.csv"), tmp_path / "vggsound.csv")
    found = annotations(of_kind("audio")["vggsound"], tmp_path)
    assert found.frame.height == 135942 and found.frame["label"].n_unique() == 309
    assert dict(found.frame["split"].value_counts().iter_rows()) == {"train": 120496, "test": 15446}


@pytest.mark.parametrize(
    "relpath", ["audio/--56QUhyDQM_000185.wav", "video/--56QUhyDQM_185.mp4", "x/--56QUhyDQM_185000_195000.mp4"]
)
def test_the_ways_people_name_their_downloads(relpath: str) -> None:
    assert of_kind("audio")["vggsound"].identity(relpath) == "--56QUhyDQM_185"


def test_a_start_that_is_no_second_is_listed(tmp_path: Path) -> None:
    (tmp_path / "vggsound.csv").write_text("---g-f_I2yQ,1,a,test\n---g-f_I2yQ,²,b,test\n---g-f_I2yQ,-1,b,test\nx,y\n")
    found = annotations(of_kind("audio")["vggsound"], tmp_path)
    assert found.frame.height == 1 and [line for _, line, _ in found.problems.rows] == [2, 3, 4]

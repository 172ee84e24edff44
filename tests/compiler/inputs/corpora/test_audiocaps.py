"""AudioCaps: the real v1 tables and the label JSON that JavisDiT reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from javisc.compiler.inputs.corpora import of_kind
from support.corpora import ANNOTATIONS, annotations, real, row
from support.shared import need


def test_the_tables_and_the_label_json_say_the_same_once() -> None:
    found = real("audiocaps", "AudioCaps")
    assert dict(found.frame["split"].value_counts().iter_rows()) == {"train": 49838, "val": 495, "test": 975}
    assert found.excluded.is_empty() and found.problems.count == 0
    assert row(found, "r1nicOVtvkQ")["texts"] == ["A woman talks nearby as water pours"]
    assert len(row(found, "7fmOlUlwoNg")["texts"]) == 5


def test_the_label_json_alone_is_enough(tmp_path: Path) -> None:
    place = tmp_path / "dataset/metadata/audiocaps/datafiles/audiocaps_train_label.json"
    place.parent.mkdir(parents=True)
    shutil.copy(need(ANNOTATIONS / "AudioCaps/audiocaps_train_label.json"), place)
    found = annotations(of_kind("audio")["audiocaps"], tmp_path)
    assert found.frame.rows(named=True)[0]["identity"] == "r1nicOVtvkQ" and found.frame.height == 1


@pytest.mark.parametrize(
    "relpath",
    [
        "dataset/audioset/zip_audios/unbalanced_train_segments/unbalanced_train_segments_part36/Yr1nicOVtvkQ.wav",
        "train/r1nicOVtvkQ.wav",
        "r1nicOVtvkQ_130.flac",
        "r1nicOVtvkQ_130000_140000.m4a",
    ],
)
def test_the_ways_people_name_their_downloads(relpath: str) -> None:
    assert of_kind("audio")["audiocaps"].identity(relpath) == "r1nicOVtvkQ"


def test_labels_of_another_form_are_listed_not_fatal(tmp_path: Path) -> None:
    items = [
        {"wav": "x/Yr1nicOVtvkQ.wav", "caption": "a"},
        {"wav": 3, "caption": "b"},
        {"wav": "short.wav", "caption": "c"},
        7,
    ]
    (tmp_path / "audiocaps_train_label.json").write_text(json.dumps({"data": items}))
    found = annotations(of_kind("audio")["audiocaps"], tmp_path)
    assert found.frame.height == 1 and found.problems.count == 3

"""AudioSet: the real segment lists, with their comment lines and quoted label lists."""

from __future__ import annotations

import shutil
from pathlib import Path

from javisc.compiler.inputs.corpora import of_kind
from support.corpora import ANNOTATIONS, annotations, real, row
from support.shared import need


def test_every_segment_is_read() -> None:
    found = real("audioset", "AudioSet")
    assert dict(found.frame["split"].value_counts().iter_rows()) == {"train": 22160, "test": 20371}
    assert found.excluded.is_empty() and found.problems.count == 0


def test_the_caption_is_all_labels_in_lower_case() -> None:
    found = row(real("audioset", "AudioSet"), "--aE2O5G5WE")
    assert found["text"] == "goat, music, speech" and found["label"] == "Goat; Music; Speech"


def test_an_unknown_label_is_listed_and_the_others_stand(tmp_path: Path) -> None:
    shutil.copy(need(ANNOTATIONS / "AudioSet/class_labels_indices.csv"), tmp_path)
    (tmp_path / "eval_segments.csv").write_text(
        '# a comment\n--4gqARaEJE, 0.000, 10.000, "/m/09x0r,/m/none"\n--BfvyPmVMo, 20.000, 30.000, "/m/none"\n'
    )
    found = annotations(of_kind("audio")["audioset"], tmp_path)
    assert found.frame["text"].to_list() == ["speech"] and found.frame["split"].to_list() == ["test"]
    assert [line for _, line, _ in found.problems.rows] == [2, 3, 3]

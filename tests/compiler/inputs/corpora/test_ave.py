"""AVE: a stand-in of the published split files."""

from __future__ import annotations

from pathlib import Path

from javisc.compiler.inputs.corpora import of_kind
from support.corpora import annotations, row


def test_split_files_with_and_without_header(tmp_path: Path) -> None:
    (tmp_path / "trainSet.txt").write_text(
        "Category&VideoID&Quality&StartTime&EndTime\nChurch bell&RUhOCu3LNXM&good&0&10\n"
        "Male speech, man speaking&a-_456789xy&good&1&3\n"
        "Church bell&a-_456789xy&good&4&9\nbroken line\n"
    )
    (tmp_path / "testSet.txt").write_text("Bark&AAAAAAAAAAA&good&0&10\n")
    found = annotations(of_kind("video")["ave"], tmp_path)
    assert found.frame.select("identity", "split").rows() == [
        ("RUhOCu3LNXM", "train"),
        ("a-_456789xy", "train"),
        ("AAAAAAAAAAA", "test"),
    ]
    assert row(found, "a-_456789xy")["text"] == "male speech, man speaking, church bell"
    assert row(found, "a-_456789xy")["label"] == "Male speech, man speaking; Church bell"
    assert found.problems.rows[0][1] == 5 and found.problems.count == 1

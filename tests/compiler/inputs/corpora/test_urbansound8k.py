"""UrbanSound8K: the real table of 8,732 rows."""

from __future__ import annotations

from javisc.compiler.inputs.corpora import of_kind
from support.corpora import real, row


def test_every_row_of_the_real_table_is_read() -> None:
    found = real("urbansound8k", "UrbanSound8K")
    assert found.frame.height == 8732 and found.problems.count == 0
    assert found.frame["label"].n_unique() == 10 and found.frame["split"].n_unique() == 10


def test_files_are_known_by_fold_and_name() -> None:
    found = row(real("urbansound8k", "UrbanSound8K"), "fold5/100032-3-0-0")
    assert found["audio_text"] == "dog bark" and found["split"] == "fold5"
    assert of_kind("audio")["urbansound8k"].identity("audio/fold5/100032-3-0-0.wav") == "fold5/100032-3-0-0"

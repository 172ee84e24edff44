"""ESC-50: the real table of 2,000 rows."""

from __future__ import annotations

from javisc.compiler.inputs.corpora import of_kind
from support.corpora import real, row


def test_every_row_of_the_real_table_is_read() -> None:
    found = real("esc50", "ESC50")
    assert found.frame.height == 2000 and found.excluded.is_empty() and found.problems.count == 0
    assert found.frame["label"].n_unique() == 50
    assert found.frame["split"].value_counts().sort("split").rows() == [(f"fold{fold}", 400) for fold in range(1, 6)]


def test_the_caption_is_the_category_in_words() -> None:
    assert row(real("esc50", "ESC50"), "1-100038-A-14") == {
        "identity": "1-100038-A-14",
        "text": "chirping birds",
        "texts": ["chirping birds"],
        "audio_text": "chirping birds",
        "label": "chirping birds",
        "split": "fold1",
        "lang": "en",
    }


def test_a_wav_and_its_flac_are_the_same_recording() -> None:
    corpus = of_kind("audio")["esc50"]
    assert corpus.identity("audio/1-100038-A-14.wav") == corpus.identity("flac/1-100038-A-14.FLAC") == "1-100038-A-14"

"""Musical Instruments: the real tables, with 700 names under two classes."""

from __future__ import annotations

from javisc.compiler.inputs.corpora import of_kind
from support.corpora import real, row


def test_names_under_two_classes_are_set_aside_not_guessed() -> None:
    found = real("musicinstrument", "MusicInstrument")
    assert found.excluded.height == 700
    assert dict(found.frame["split"].value_counts().iter_rows()) == {"train": 1228, "test": 80}
    assert dict(found.excluded.iter_rows())["train/loop-16247"].endswith("Sound_Drum, Sound_Violin, Sound_Piano")
    assert not set(found.excluded["identity"]) & set(found.frame["identity"])


def test_the_class_is_the_caption_as_it_stands() -> None:
    found = real("musicinstrument", "MusicInstrument")
    assert row(found, "train/1-E1-Major 00")["audio_text"] == "Sound_Guitar"
    assert row(found, "test/guitar-solo-5999")["audio_text"] == "Sound_Guiatr"
    assert (
        of_kind("audio")["musicinstrument"].identity("Train_submission/Train_submission/1-E1-Major 00.wav")
        == "train/1-E1-Major 00"
    )

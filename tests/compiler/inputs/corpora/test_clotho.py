"""Clotho: the three real tables, five captions a clip."""

from __future__ import annotations

import pytest

from javisc.compiler.inputs.corpora import of_kind
from support.corpora import real, row


def test_all_five_captions_of_every_clip_are_kept() -> None:
    found = real("clotho", "Clotho")
    assert dict(found.frame["split"].value_counts().iter_rows()) == {"train": 3839, "val": 1045, "test": 1045}
    counts = dict(found.frame["texts"].list.len().value_counts().iter_rows())
    assert counts[5] > 5900 and sum(counts.values()) == 5929, "fewer only where two of the five are the same words"


def test_the_first_caption_is_the_text() -> None:
    found = row(real("clotho", "Clotho"), "development/Distorted AM Radio noise")
    assert found["text"] == "A muddled noise of broken channel of the TV"
    assert found["texts"][4] == "heavy static and the beginnings of a signal on a transistor radio"


@pytest.mark.parametrize(
    ("relpath", "identity"),
    [
        ("development/FR.CTC.08.CoyuyoS.001.wav", "development/FR.CTC.08.CoyuyoS.001"),
        ("clotho_audio_validation/validation/a.flac", "validation/a"),
        ("evaluation/deep/er/a.wav", "evaluation/a"),
        ("elsewhere/a.wav", None),
    ],
)
def test_equal_names_in_different_parts_are_told_apart(relpath: str, identity: str | None) -> None:
    assert of_kind("audio")["clotho"].identity(relpath) == identity

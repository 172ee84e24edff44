"""Names of one file under other extensions, separators, Unicode forms and downloaders' habits are one identity."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from javisc.compiler.inputs.identity import Clip, normal, stem, without_extension, youtube_clip

YOUTUBE = st.text("ABCXYZabcxyz019_-", min_size=11, max_size=11)


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("a.wav", "a"),
        ("a.FLAC", "a"),
        ("FR.CTC.08.wav", "FR.CTC.08"),
        ("FR.CTC.08", "FR.CTC.08"),
        (".wav", ".wav"),
        ("a.b", "a.b"),
    ],
)
def test_only_media_extensions_go(name: str, bare: str) -> None:
    assert without_extension(name) == bare


def test_paths_in_one_form() -> None:
    assert normal("./audio//x/./a.wav") == "audio/x/a" and stem("audio/x/a.flac") == "a"
    assert normal("../a.wav") == "../a", "a name that climbs stays one that no scanned file has"


@given(st.text(max_size=30))
def test_composed_and_decomposed_names_are_one(name: str) -> None:
    assert normal(unicodedata.normalize("NFD", name)) == normal(unicodedata.normalize("NFC", name))


@given(YOUTUBE, st.integers(0, 99_999), st.integers(1, 900))
def test_every_habit_of_naming_a_clip_is_read(youtube: str, start: int, seconds: int) -> None:
    assert youtube_clip(youtube) == youtube_clip(f"Y{youtube}") == Clip(youtube, None)
    end = start + seconds
    tails = [
        f"_{start:06d}",
        f"_{start}",
        f"_{start}_{end}",
        f"_{start * 1000}_{end * 1000}",
        f"_{start}.000_{end}.000",
    ]
    for tail in tails:
        assert youtube_clip(youtube + tail) == youtube_clip("Y" + youtube + tail) == Clip(youtube, start), tail


@pytest.mark.parametrize(
    "name", ["", "short", "esc-100032-A-0", "r1nicOVtvkQ_x", "r1nicOVtvkQ 1", "r1nicOVtvkQ_1_2_3", "\u0661" * 11]
)
def test_other_names_are_no_clip(name: str) -> None:
    assert youtube_clip(name) is None

"""LRS3's meta texts and face crops against the reference's results, and against texts that are no meta texts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from javisc.compiler.sparsesync.cuts import FPS, Box, new_meta, read_meta, square_crop
from javisc.manifests.errors import UserError
from support.corpora import ANNOTATIONS
from support.shared import PARITY, need


@cache
def fixture(section: str) -> Any:
    return json.loads(need(PARITY / "sparsesync/transforms.json").read_text())[section]


def audio_segment(first: int, end: int, sample_rate: int = 16000) -> tuple[int, int]:
    """The reference's (first sample, samples) of the frames up to, not including, `end`.

    It calls this with its last frame as `end` and so loses that frame's sound; `Meta.window` does not.
    """
    start = int(first / FPS * sample_rate)
    return start, int(end / FPS * sample_rate) - start


def test_the_meta_text_is_read_as_the_reference_does(tmp_path: Path) -> None:
    given = fixture("lrs3_meta")
    (tmp_path / "m.txt").write_text(given["text"])
    meta = read_meta(tmp_path / "m.txt")
    assert meta.youtube == given["ref"] and meta.text == "SO THIS IS A TEST"
    assert {str(frame): box._asdict() for frame, box in meta.boxes.items()} == given["frames"]


def test_every_crop_of_the_reference() -> None:
    cases = fixture("lrs3_crop")
    assert len(cases) == 21
    for case in cases:
        box, size, result = (
            Box(case["x"], case["y"], case["w"], case["h"]),
            (case["img_h"], case["img_w"]),
            case["result"],
        )
        if "error" in result:
            with pytest.raises(ValueError, match="a face of"):
                square_crop(*size, box)
            continue
        crop = square_crop(*size, box)
        assert crop._asdict() == {**{k: result[k] for k in ("top", "left", "height", "width")}, "side": crop.side}
        x, y, w, h = crop.written(*size)
        assert {"X": x, "Y": y, "H": h, "W": w} == pytest.approx(result["written"], abs=1e-6)


def test_the_sound_of_the_reference_is_ours_without_the_last_frame() -> None:
    for case in fixture("lrs3_audio_segment"):
        first, last = case["first_frame"], case["last_frame"]
        assert audio_segment(first, last) == (case["first_sample"], case["n_samples"])
        start, samples = audio_segment(first, last + 1)
        assert start == case["first_sample"] and samples == case["n_samples"] + 640


def test_a_published_clip_of_sparsesync(tmp_path: Path) -> None:
    path = need(ANNOTATIONS / "LRS3/00018.txt")
    meta = read_meta(path)
    assert (meta.youtube, meta.first, meta.last, len(meta.boxes)) == ("C8zY0oAdQrs", 8454, 8846, 393)
    assert meta.window == (338.16, 353.88)
    again = new_meta(meta.youtube, meta.first, list(meta.boxes.values()))
    theirs = path.read_text()
    assert again.replace("338.16 15.72", "338.16 15.68") == theirs, "but for the 40 ms of sound that are put right"


@given(st.integers(2, 2000), st.integers(2, 2000), *[st.floats(0, 1)] * 4)
def test_a_crop_lies_inside_the_picture(img_h: int, img_w: int, x: float, y: float, w: float, h: float) -> None:
    try:
        crop = square_crop(img_h, img_w, Box(x, y, w, h))
    except ValueError:
        return
    assert crop.top >= 0 and crop.top + crop.height <= img_h and crop.height >= 1
    assert crop.left >= 0 and crop.left + crop.width <= img_w and crop.width >= 1
    assert crop.height == crop.width or crop.side > min(img_h, img_w)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "names no YouTube id"),
        ("Ref: ../../etc/pw\nFRAME X Y W H\n1 0 0 1 1\n", "names no YouTube id"),
        ("Ref: abc_DEF-123\n", "lists no frames"),
        ("Ref: abc_DEF-123\nFRAME X Y W H\n\n", "lists no frames"),
        ("Ref: abc_DEF-123\nFRAME X Y W H\n1 0 0 1\n", "line 3: a frame number and four"),
        ("Ref: abc_DEF-123\nFRAME X Y W H\n1 0 0 1 nan\n", "line 3: frame 1 or its box"),
        ("Ref: abc_DEF-123\nFRAME X Y W H\n99999999 0 0 1 1\n", "out of range"),
        ("Ref: abc_DEF-123\nFRAME X Y W H\n-1 0 0 1 1\n", "out of range"),
    ],
)
def test_other_texts_are_refused_with_their_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "m.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        read_meta(tmp_path / "m.txt")

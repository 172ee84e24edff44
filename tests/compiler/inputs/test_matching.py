"""Joining files and annotations: each file ends with labels or a reason, each annotation with a file or a line."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.inputs.corpora import Row
from javisc.compiler.inputs.matching import UNMATCHED_SCHEMA, wanted_split
from javisc.compiler.inputs.table import INPUT_SCHEMA
from javisc.compiler.reasons import REASONS
from javisc.manifests.errors import UserError
from support.corpora import Made, files
from support.matching_in_memory import by_parts as match


def test_every_side_is_accounted_for(tmp_path: Path) -> None:
    corpus = Made(
        Row("audio/a", ("one", "two"), "cat", "train"),
        Row("audio/b", ("b",), split="test"),
        Row("audio/c", ("c",)),
        Row("audio/d", ("d",), label="cat"),
        Row("audio/d", ("d",), label="dog"),
        Row("audio/e", ("  ",), where=(Path("/x/made.csv"), 9)),
        Row("audio/f", ("f",)),
        Row("../../etc/passwd", ("g",)),
        bad=1,
    )
    names = ["audio/a.wav", "audio/b.wav", "audio/c.wav", "audio/c.flac", "audio/d.wav", "x.wav"]
    found = match(corpus, tmp_path, files(*names))
    reasons = dict(found.inputs.select("relpath", "refused").iter_rows())
    assert reasons == {
        "audio/a.wav": None,
        "audio/b.wav": "filtered",
        "audio/c.flac": None,
        "audio/c.wav": "duplicate",
        "audio/d.wav": "filtered",
        "x.wav": "no_caption",
    }
    assert {reason for reason in reasons.values() if reason} <= set(REASONS)
    assert found.inputs.drop("identity").schema == INPUT_SCHEMA
    first = found.inputs.row(by_predicate=pl.col("relpath") == "audio/a.wav", named=True)
    assert (first["text"], first["texts"], first["label"], first["split"]) == ("one", ["one", "two"], "cat", "train")
    assert (first["corpus"], first["lang"], first["audio_text"]) == ("made", "en", "one")
    assert found.unmatched.schema == UNMATCHED_SCHEMA
    assert found.unmatched.select("identity", "reason").rows() == [
        ("audio/f", "no_file"),
        ("../../etc/passwd", "no_file"),
        ("audio/d", "excluded"),
        ("made.csv:1", "bad_row"),
        ("made.csv:9", "bad_row"),
    ]
    assert found.said == (
        "made: 2 of 6 files go in; left out: 1 file duplicate, 2 files filtered, 1 file no_caption, 2 annotations without "
        "a file, 1 annotation excluded, 2 bad rows"
    )


def test_repeated_rows_join_their_captions(tmp_path: Path) -> None:
    corpus = Made(Row("a", ("x",), split="train"), Row("b", ("y",)), Row("a", ("z", "x"), split="train"))
    found = match(corpus, tmp_path, files("b.wav", "a.wav"))
    assert dict(found.inputs.select("relpath", "texts").iter_rows()) == {"a.wav": ["x", "z"], "b.wav": ["y"]}


def test_a_file_in_two_splits_leaks_nowhere(tmp_path: Path) -> None:
    corpus = Made(Row("a", ("x",), split="train"), Row("a", ("x",), split="test"), Row("b", ("y",)))
    found = match(corpus, tmp_path, files("a.wav", "b.wav"), ["all"])
    refused = found.inputs.row(by_predicate=pl.col("relpath") == "a.wav", named=True)
    assert refused["refused"] == "filtered" and "several splits: train, test" in refused["refused_message"]


def test_a_file_that_cannot_be_opened_leaves_the_clip_to_its_twin(tmp_path: Path) -> None:
    broken = pl.col("relpath") == "a.flac"
    given = files("a.flac", "a.wav").with_columns(
        refused=pl.when(broken).then(pl.lit("empty")), refused_message=pl.when(broken).then(pl.lit("no bytes"))
    )
    found = match(Made(Row("a", ("x",))), tmp_path, given)
    assert dict(found.inputs.select("relpath", "refused").iter_rows()) == {"a.flac": "empty", "a.wav": None}


def test_nothing_in_common_is_an_error_with_an_example_of_both(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"of 1 file none is left .* a file: 'x\.wav'; an annotation: 'a';"):
        match(Made(Row("a", ("x",))), tmp_path, files("x.wav"))


@settings(max_examples=15, deadline=None)
@given(st.permutations(["a.wav", "b.wav", "a.flac", "c/a.wav", "z.wav"]))
def test_the_order_of_the_scan_changes_nothing(names: list[str]) -> None:
    found = match(Made(Row("a", ("x",)), Row("b", ("y",))), Path("/"), files(*names)).inputs.sort("relpath")
    assert found["refused"].to_list() == [None, "duplicate", None, "no_caption", "no_caption"]


def test_unicode_forms_of_a_name_are_one_file(tmp_path: Path) -> None:
    corpus = Made(Row(unicodedata.normalize("NFC", "café 文"), ("x",)))
    found = match(corpus, tmp_path, files(unicodedata.normalize("NFD", "café 文.wav")))
    assert found.inputs["refused"].to_list() == [None]


@pytest.mark.parametrize(
    ("asked", "taken"),
    [
        ((), {None, "train", "train_ac", "fold3"}),
        (("all",), {None, "train", "train_ac", "fold3", "test", "val"}),
        (("test", "val"), {"test", "val"}),
    ],
)
def test_training_data_unless_asked_otherwise(asked: tuple[str, ...], taken: set[str | None]) -> None:
    chosen = wanted_split(asked)
    assert {split for split in (None, "train", "train_ac", "fold3", "test", "val") if chosen(split)} == taken

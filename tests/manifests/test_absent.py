"""Absent values written as words: found, refused, and nulls put in their place."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.manifests.absent import WORDS, found, mend, refuse, without, word
from javisc.manifests.errors import UserError
from javisc.manifests.splits import split_of

CELL = st.none() | st.sampled_from(WORDS) | st.sampled_from(["train", "a dog", "none", "Nan bread", "NA"])
ROWS = st.lists(st.fixed_dictionaries({"key": CELL, "split": CELL, "label": CELL, "texts": st.lists(CELL) | st.none()}))
SCHEMA = {"key": pl.String, "split": pl.String, "label": pl.String, "texts": pl.List(pl.String)}


def cleared(value: str | None) -> str | None:
    return None if value in WORDS else value


@settings(max_examples=50, deadline=None)
@given(rows=ROWS)
def test_words_are_found_and_cleared_wherever_they_stand_but_in_names(rows: list[dict[str, object]]) -> None:
    frame = pl.DataFrame(rows, schema=SCHEMA)
    expected: dict[tuple[str, str], int] = {}
    for row in rows:
        for name in ("split", "label"):
            if row[name] in WORDS:
                expected[name, str(row[name])] = expected.get((name, str(row[name])), 0) + 1
        for each in set(row["texts"] or ()) & set(WORDS):  # type: ignore[call-overload]
            expected["texts", each] = expected.get(("texts", each), 0) + 1
    assert {(cell.column, cell.word): cell.rows for cell in found(frame)} == expected
    for row, after in zip(rows, without(frame.lazy()).collect().to_dicts(), strict=True):
        assert after["key"] == row["key"]
        assert (after["split"], after["label"]) == (cleared(row["split"]), cleared(row["label"]))  # type: ignore[arg-type]
        kept = [text for text in row["texts"] or () if text is not None and text not in WORDS]  # type: ignore[attr-defined]
        assert after["texts"] == (kept or None)
    assert found(without(frame.lazy())) == []


def test_a_table_with_such_words_is_refused_by_column_and_word() -> None:
    refuse(
        pl.DataFrame({"path": ["None"], "split": [None]}, schema={"path": pl.String, "split": pl.String}),
        "t",
        "mend it",
    )
    with pytest.raises(UserError, match=r"t: 2 rows hold the text 'nan' as lang, where nothing is known: mend it"):
        refuse(pl.DataFrame({"lang": ["nan", "en", "nan"]}), "t", "mend it")


def test_mended_rows_get_the_split_they_should_have_had() -> None:
    rows = pl.DataFrame(
        {
            "key": ["a", "b", "c", "d"],
            "source_sha256": ["1", "1", "2", None],
            "split": ["None", "None", "test", "None"],
            "lang": ["None", "en", None, "None"],
            "text": ["None", "x", "y", None],
            "texts": [["z"], ["x"], ["y"], None],
        }
    )
    shares = {"train": 0.5, "val": 0.5}
    mended = mend(rows.lazy(), shares, 3).collect()
    assert mended["split"].to_list() == [
        split_of("1", shares, 3),
        split_of("1", shares, 3),
        "test",
        split_of("d", shares, 3),
    ]
    assert mended["lang"].to_list() == [None, "en", None, None] and mended["text"].to_list() == ["z", "x", "y", None]
    assert mend(rows.lazy(), {}, 0).collect()["split"].to_list() == [None, None, "test", None]
    assert mended.columns == rows.columns


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, None), (float("nan"), None), ("", None), ("  ", None), (3, "3"), (3.0, "3"), (2.5, "2.5"), (b"ab", "ab"),
     (b"\xff", None), ([1], None), ({}, None), (True, "True"), (" a", " a")],
)  # fmt: skip
def test_cells_of_any_type_as_text(value: object, text: str | None) -> None:
    assert word(value) == text

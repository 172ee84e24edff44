"""Annotation files are hostile: every reader is bounded, names the file and line, and reads the rest."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.inputs import annotations, json_items
from javisc.compiler.inputs.annotations import Json, Lines, Problems, Source, Table, missing
from javisc.manifests.errors import UserError

TABLE = Table(("meta/t.csv", "t.csv"), columns=("name", "caption"))


def read(root: Path, content: bytes, table: Table = TABLE) -> tuple[list[tuple[str, ...]], Problems]:
    (root / "t.csv").write_bytes(content)
    problems = Problems()
    return [fields for _, fields in table.rows(root, problems)], problems


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_marks_and_line_ends_make_no_difference(tmp_path: Path, bom: bytes, end: bytes, last: bool) -> None:
    content = bom + end.join([b"name,extra,caption", b'a.wav,1,"x, y"', b"", "bä.wav,2,文".encode()]) + end * last
    rows, problems = read(tmp_path, content)
    assert rows == [("a.wav", "x, y"), ("bä.wav", "文")] and problems.count == 0


NAME = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=20)


@given(st.lists(st.tuples(NAME, NAME), max_size=20))
def test_what_a_csv_writer_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    root = tmp_path_factory.mktemp("csv")
    with (root / "t.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "caption"])
        writer.writerows(rows)
    assert [fields for _, fields in TABLE.rows(root, Problems())] == rows


def test_bad_rows_are_listed_with_their_line_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotations, "MAX_LINE", 1000)
    bad = [b"a,b,c", b"\xff\xfe,x", b"x" * 5000, b"only"]
    rows, problems = read(tmp_path, b"\n".join([b"name,caption", *bad, b"last.wav,fine"]))
    assert rows == [("last.wav", "fine")]
    assert [(line, message) for _, line, message in problems.rows] == [
        (2, "3 fields, 2 expected"),
        (3, "not UTF-8: invalid start byte at byte 0"),
        (4, "line of more than 1000 bytes"),
        (5, "1 fields, 2 expected"),
    ]


def test_an_open_quote_swallows_no_more_than_a_field(tmp_path: Path) -> None:
    good = [f"n{number}.wav,caption {number}" for number in range(20_000)]
    rows, problems = read(tmp_path, "\n".join(["name,caption", 'bad.wav,"open', *good]).encode())
    assert problems.count == 1 and problems.rows[0][2].startswith("field larger than")
    assert rows[-1] == ("n19999.wav", "caption 19999") and len(rows) > 10_000


def test_a_missing_column_is_named_beside_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"t\.csv: has no column 'caption'; its columns are: name, Caption"):
        read(tmp_path, b"name,Caption\n")
    assert missing((TABLE,), tmp_path)[0].endswith("its columns are: name, Caption")
    with pytest.raises(UserError, match="its columns are: none"):
        read(tmp_path, b"")


def test_a_missing_file_is_named_with_its_columns(tmp_path: Path) -> None:
    assert missing((TABLE,), tmp_path) == ["meta/t.csv (columns name, caption) is not there"]
    assert missing((TABLE, Source(("other",))), tmp_path) == ["none of meta/t.csv, other is there"]
    with pytest.raises(UserError, match=r"meta/t\.csv is not there"):
        list(TABLE.rows(tmp_path, Problems()))


def test_utf16_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is UTF-16"):
        read(tmp_path, "name,caption\n".encode("utf-16"))


def test_lines_of_old_macs_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="end in CR alone"):
        read(tmp_path, b"name,caption\ra,b\r")


def test_a_folder_under_the_name_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        list(TABLE.rows(tmp_path, Problems()))


def test_problems_are_all_counted_and_not_all_kept() -> None:
    problems = Problems(keep=3)
    for number in range(10):
        problems.add(Path("f"), number, "m")
    assert problems.count == 10 and len(problems.rows) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no JSON"),
        (b"[" * 200_000, "is no JSON"),
        (b"[]", "no list 'data'"),
        (b'{"data": 1}', "no list 'data'"),
        (b'{"data": "\xff"}', "is not UTF-8"),
    ],
)
def test_json_of_another_form_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "j.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(Json(("j.json",)).items(tmp_path, "data", Problems()))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "id", 'a"}]']), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None)
@given(value=VALUES, indent=st.sampled_from([None, 1]), name=st.sampled_from([None, "data"]), data=st.data())
def test_json_read_item_by_item_says_what_json_read_whole_says(
    value: Any, indent: int | None, name: str | None, data: st.DataObject
) -> None:
    """Items, and whether there are any at all: also of files that were cut, or something was put into."""
    raw = json.dumps(
        {"x": [1], "data": value} if data.draw(st.booleans()) else value, indent=indent, ensure_ascii=False
    )
    at = data.draw(st.integers(0, len(raw)))
    raw = raw[:at] + data.draw(st.sampled_from(["", "", ",", "]", " ", '"'])) + raw[at + data.draw(st.integers(0, 1)) :]
    try:
        whole = json.loads(raw)
        wanted = whole if name is None else whole["data"]
        assert isinstance(wanted, list)
    except (ValueError, TypeError, KeyError, AssertionError):
        wanted = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_items, "CHUNK", 2)
        try:
            found = list(json_items.items_of(io.BytesIO(raw.encode()), name, 1 << 20))
        except ValueError:
            found = None
    assert found == wanted


@pytest.mark.parametrize("number", ["10.5", "-2e5", "1E+3", "7e-2", "12", "-0.25e10"])
@pytest.mark.parametrize("chunk", range(1, 9))
def test_a_number_is_read_whole_wherever_a_chunk_ends(number: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_items, "CHUNK", chunk)
    text = f"[{number}, {number}]"
    assert list(json_items.items_of(io.BytesIO(text.encode()), None, 100)) == json.loads(text)


def test_json_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "MAX_JSON", 10)
    (tmp_path / "j.json").write_text('{"data": [1, 2, 3]}')
    with pytest.raises(UserError, match="more than 10 bytes"):
        Json(("j.json",)).value(tmp_path)


def test_lines_are_stripped_and_empty_ones_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfa b\r\n\r\n  c\t\n")
    assert list(Lines(("l.txt",)).rows(tmp_path, Problems())) == [(1, "a b"), (3, "c")]

"""Words from a file beside, from a list and from a table at once: which of them a sample gets, in every form of table."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from javisc.compiler.inputs.raw import from_raw

FORMS = ("csv", "tsv", "parquet", "jsonl")
COLUMNS = ("text", "split", "label", "lang", "audio_text")


def write(rows: list[dict[str, Any]], path: Path) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pl.DataFrame([{name: row.get(name) for name in names} for row in rows], infer_schema_length=None).write_parquet(
            path
        )
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, names, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def scene(folder: Path) -> list[str]:
    """A clip for every combination of (file beside, list, table) with words of its own."""
    names = ["".join(flags) for flags in product("s-", "l-", "t-")]
    for name in names:
        (folder / f"{name}.mp4").write_bytes(b"x")
        if "s" in name:
            (folder / f"{name}.txt").write_text("beside")
    return names


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("listed", FORMS)
@pytest.mark.parametrize("tabled", [None, *FORMS])
def test_the_table_speaks_first_then_the_list_then_the_file_beside(
    tabled: str | None, listed: str, labelled: bool, tmp_path: Path
) -> None:
    names = scene(tmp_path)
    more = {name: f"list's {name}" for name in COLUMNS[1:]} if labelled else {}
    rows = [
        {"path": f"{name}.mp4", "text": "listed, and with a comma" if "l" in name else None, **more} for name in names
    ]
    raw = write(rows, tmp_path / f"list.{listed}")
    captions = None
    if tabled:
        own = {name: f"table's {name}" for name in COLUMNS[1:]} if labelled else {}
        table = [{"id": name, "text": 'tabled "so"', **own} for name in names if "t" in name]
        captions = write(table, tmp_path / f"captions.{tabled}")
    found = from_raw([raw], captions=captions)(tmp_path).collect()
    for row in found.iter_rows(named=True):
        name = row["id"]
        expected = None
        if tabled and "t" in name:
            expected = 'tabled "so"'
        elif "l" in name:
            expected = "listed, and with a comma"
        elif "s" in name and not tabled:  # with a table given, files beside are not looked at
            expected = "beside"
        assert row["text"] == expected and row["texts"] == ([expected] if expected else None), name
        who = "table's" if tabled and "t" in name else "list's"
        assert {each: row[each] for each in COLUMNS[1:]} == {
            each: f"{who} {each}" if labelled else None for each in COLUMNS[1:]
        }, name


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ('["one", "two"]', ["one", "two"]),
        ("[one, two]", ["[one, two]"]),
        ('["only"]', ["only"]),
        ("[]", None),
        ("  spaced  ", ["spaced"]),
        ("two\nlines", ["two\nlines"]),
        ("tab\there", ["tab\there"]),
        ("'quoted', \"twice\"", ["'quoted', \"twice\""]),
        ("Straße 日本 🎬", ["Straße 日本 🎬"]),
        ("=cmd()", ["=cmd()"]),
    ],
)
def test_a_cell_of_captions_arrives_as_it_was_meant(
    form: str, cell: str, texts: list[str] | None, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "b.mp4").write_bytes(b"x")
    captions = write([{"id": "a", "text": cell}, {"id": "b", "text": "x"}], tmp_path / f"c.{form}")
    found = from_raw([str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")], captions=captions)(tmp_path).collect()
    assert found.sort("id")["texts"].to_list() == [texts, ["x"]]

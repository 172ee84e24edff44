"""What a cell of a list or caption table means when it holds nothing, a number, or the word for nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from javisc.compiler.inputs.captions import attach
from javisc.compiler.inputs.found import SCAN_SCHEMA
from javisc.compiler.inputs.local import scan
from javisc.compiler.inputs.table import INPUT_SCHEMA, LABELS, conform
from javisc.manifests.absent import found

LABEL_NAMES = [column.name for column in LABELS]
FORMS = ("csv", "tsv", "parquet", "jsonl")


def write(rows: list[dict[str, Any]], path: Path) -> Path:
    """The rows in the form that the name's ending says; in CSV and TSV nothing is an empty cell."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pl.DataFrame([{name: row.get(name) for name in names} for row in rows], infer_schema_length=None).write_parquet(
            path
        )
    else:
        pl.DataFrame(
            [{name: None if row.get(name) is None else str(row[name]) for name in names} for row in rows],
            schema=dict.fromkeys(names, pl.String),
        ).write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return path


def by_captions(rows: list[dict[str, Any]], form: str, folder: Path) -> pl.DataFrame:
    """What `--captions` makes of the rows for the files that they name."""
    table = write(rows, folder / f"captions.{form}")
    files = pl.DataFrame(
        [{"path": f"/{row['id']}.mp4", "relpath": f"{row['id']}.mp4", "id": row["id"]} for row in rows], SCAN_SCHEMA
    )
    joined, _ = attach(files.lazy(), str(table), folder)
    return conform(joined).collect()


def by_list(rows: list[dict[str, Any]], form: str, folder: Path) -> pl.DataFrame:
    """What a list as RAW makes of the rows."""
    for row in rows:
        (folder / f"{row['id']}.mp4").write_bytes(b"x")
    table = write([{"path": f"{row['id']}.mp4", **row} for row in rows], folder / f"list.{form}")
    frame = pl.concat(list(scan([str(table)]))).select(INPUT_SCHEMA.names())
    return conform(frame).collect()


@pytest.mark.parametrize("way", [by_captions, by_list])
@pytest.mark.parametrize("form", FORMS)
def test_what_a_table_does_not_say_is_null(way: Any, form: str, tmp_path: Path) -> None:
    rows = way([{"id": "a", "text": "a dog"}, {"id": "b", "text": "a car"}], form, tmp_path)
    assert rows["text"].to_list() == ["a dog", "a car"] and found(rows) == []
    said = {name: rows[name].to_list() for name in LABEL_NAMES if name not in ("text", "texts")}
    assert said == {name: [None, None] for name in said}


@pytest.mark.parametrize("way", [by_captions, by_list])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("nothing", [None, "None", "nan", "NaN", "NaT", "<NA>", float("nan"), " ", ""])
def test_words_for_nothing_are_nothing(way: Any, form: str, nothing: Any, tmp_path: Path) -> None:
    if form == "jsonl" and nothing != nothing:
        nothing = None  # JSON has no such number
    labels = dict.fromkeys(("text", "split", "label", "lang", "corpus", "audio_text"), nothing)
    rows = way([{"id": "a", **labels}], form, tmp_path)
    assert (
        rows.select(list(labels)).row(0) == (None,) * len(labels) and rows["texts"][0] is None and rows["id"][0] == "a"
    )


@pytest.mark.parametrize("way", [by_captions, by_list])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("value", "text"), [(3, "3"), (3.0, "3"), (0, "0"), (2.5, "2.5"), ("none", "none"), (" dog ", "dog")]
)
def test_numbers_and_spaces(way: Any, form: str, value: Any, text: str, tmp_path: Path) -> None:
    if form in ("csv", "tsv") and isinstance(value, float):
        value = text  # a CSV holds text alone
    rows = way([{"id": "7", "text": "x", "label": value}], form, tmp_path)
    assert rows["label"].to_list() == [text]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_ids_that_are_numbers_join_files_named_by_them(form: str, tmp_path: Path) -> None:
    files = pl.DataFrame(
        [{"path": f"/{n}.mp4", "relpath": f"{n}.mp4", "id": str(n)} for n in (7, 8, "nan")], SCAN_SCHEMA
    )
    for ids in ([7, 8, None], [7.0, 8.0, None]):  # pandas makes floats of whole numbers beside a missing one
        table = write([{"id": n, "text": f"text {n}"} for n in ids], tmp_path / f"c.{form}")
        joined, report = attach(files.lazy(), str(table), tmp_path)
        assert joined.collect()["text"].to_list() == [f"text {ids[0]}", f"text {ids[1]}", None]
        assert report.captioned == 2

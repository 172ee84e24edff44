"""Scans and captions that are taken part by part say what they say in one piece."""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.inputs import beside, captions, local, matching
from javisc.compiler.inputs.captions import attach
from javisc.compiler.inputs.corpora import Row
from javisc.compiler.inputs.found import SCAN_SCHEMA, ScanReport
from javisc.compiler.inputs.local import scan
from javisc.manifests.errors import UserError
from support import matching_in_memory as in_memory
from support.corpora import Made, files

NAMES = st.sampled_from(["a", "b", "c", "d", "e/a", "e/b", "f", "g"])
LINES = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.none() | NAMES.map(lambda name: name.rsplit("/")[-1]),
            "relpath": st.none() | NAMES.map(lambda name: f"{name}.mp4"),
            "text": st.sampled_from([None, "one", "two", "nan"]),
            "lang": st.sampled_from([None, "en"]),
            "split": st.sampled_from([None, None, "train", "test"]),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(names=st.sets(NAMES, min_size=1), lines=LINES, order=st.randoms(use_true_random=False))
def test_captions_joined_part_by_part_are_those_of_one_join(
    names: set[str], lines: list[dict[str, Any]], order: random.Random
) -> None:
    rows = [{"path": f"/r/{name}.mp4", "relpath": f"{name}.mp4", "id": name.rsplit("/")[-1]} for name in sorted(names)]
    order.shuffle(rows)
    said: list[Any] = []
    for at_once in (captions.ROWS, 2):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(captions, "ROWS", at_once)
            Path(folder, "c.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            try:
                table, report = attach(pl.DataFrame(rows, schema=SCAN_SCHEMA).lazy(), f"{folder}/c.jsonl", Path(folder))
                said.append(
                    (table.collect().sort("path").rows(), [line.replace(folder, "") for line in report.lines()])
                )
            except UserError as error:
                said.append(str(error).replace(folder, ""))
    assert said[0] == said[1]


ANNOTATED = st.builds(
    Row,
    st.sampled_from(["a", "b", "e/a", "f", "gone", "g", "lost", ""]),
    st.lists(st.sampled_from(["one", "two", " ", "rain\nfalls"]), max_size=2).map(tuple),
    label=st.sampled_from([None, None, "dog", "cat"]),
    split=st.sampled_from([None, "train", "train", "test", "fold1"]),
    excluded=st.sampled_from([None, None, None, "is bad"]),
    where=st.just((Path("/made.csv"), 3)),
)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(
        NAMES.flatmap(lambda name: st.sampled_from([f"{name}.wav", f"{name}.flac"])), unique=True, max_size=9
    ),
    rows=st.lists(ANNOTATED, max_size=12),
    asked=st.sampled_from([(), ("all",), ("test",)]),
    broken=st.booleans(),
)
def test_a_corpus_matched_part_by_part_is_the_one_matched_whole(
    names: list[str], rows: list[Row], asked: tuple[str, ...], broken: bool
) -> None:
    """Every cell, the order of the files and of the list, and every word, of errors too."""
    given = files(*names)
    if broken:
        first = pl.col("relpath") == pl.col("relpath").first()
        given = given.with_columns(
            refused=pl.when(first).then(pl.lit("empty")), refused_message=pl.when(first).then("id")
        )
    said: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "ROWS", 2)
        for match in (in_memory.match, in_memory.by_parts):
            try:
                found = match(Made(*rows, bad=1), Path("/raw"), given, asked)
            except UserError as error:
                said.append(str(error))
            else:
                said.append((found.inputs.rows(), found.inputs.schema, found.unmatched.rows(), found.said))
    assert said[0] == said[1]


def test_a_folder_of_many_entries_is_scanned_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        (tmp_path / f"clip {number:02d}.mp4").write_bytes(b"x" * (number % 3))
        if number % 4 == 0:
            (tmp_path / f"clip {number:02d}.txt").write_text("words")
    (tmp_path / "stray.txt").write_text("words")
    (tmp_path / "deeper.mp4").mkdir()
    (tmp_path / "deeper.mp4" / "last.mp4").write_bytes(b"x")
    (tmp_path / "gone.mp4").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "notes.md").write_text("x")
    os.link(tmp_path / "notes.md", os.fsencode(tmp_path) + b"/\xff.mp4")
    said = []
    for many in (100_000, 7):
        monkeypatch.setattr(local, "MANY", many)
        report = ScanReport()
        rows = pl.concat(scan([str(tmp_path)], report=report))
        said.append((sorted(map(repr, rows.rows())), sorted(report.lines()), report.stray_sidecars, report.loops))
    assert said[0] == said[1] and len(said[0][0]) == 64 and said[0][2:] == (1, 1)


def test_words_beside_many_files_are_read_batch_by_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(23):
        (tmp_path / f"{number:02d}.mp4").write_bytes(b"x")
        (tmp_path / f"{number:02d}.txt").write_text(f"words {number}" if number % 5 else "\0")
    monkeypatch.setattr(beside, "_CHUNK", 4)
    rows = pl.concat(scan([str(tmp_path)]))
    (scratch := tmp_path / "scratch").mkdir()
    table, report = attach(rows.lazy(), None, scratch)
    texts = dict(table.collect().select("id", "text").iter_rows())
    assert texts == {f"{n:02d}": f"words {n}" if n % 5 else None for n in range(23)}
    assert (report.captioned, report.unreadable, len(report.why)) == (18, 5, 3)

"""What a person may get wrong on a command's line, told in one line that says what is allowed, before anything is written."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from javisc.cli import cli
from javisc.manifests.errors import UserError
from support.tables import dataset, rows


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mistakes")
    pl.DataFrame({"key": ["clip_0_0000000"], "mood": ["calm"]}).write_csv(folder / "t.csv")
    (folder / "raw").mkdir()
    return {
        "ds": dataset(folder / "ds", rows(3)),
        "worded": dataset(folder / "worded", rows(3, seed=1).with_columns(mood=pl.lit("calm"))),
        "counted": dataset(folder / "counted", rows(3, seed=2).with_columns(mood=pl.lit(3))),
        "table": folder / "t.csv",
        "raw": folder / "raw",
        "out": folder / "out",
    }


MISTAKES = [
    ("annotate {ds}", "give a TABLE to join, or --undo NAME"),
    ("annotate {ds} {table} --undo t", "give a TABLE to join, or --undo NAME"),
    ("annotate {ds} --undo t --by key", "--undo NAME stands alone: leave out --by, --as and --keep-text"),
    ("annotate {ds} --undo t --keep-text", "--undo NAME stands alone"),
    ("annotate {ds} {table} --as 9", "--as '9': a field's name is a-z, 0-9 and _"),
    ("annotate {ds} {table} --keep-text", "has no captions, and leaves text alone anyway"),
    ("score {ds} --checkpoint {out} --out {worded}", "--out .*/worded"),
    ("build jav {raw} --out {out} --shard-size 3apples", "a number with B, KB, MB"),
    ("merge {worded} {counted} --out {out}", "column mood is String in .* and Int32 in .*: give it one type"),
    ("filter {ds} abs(num_frames,2)>1 --out {out}", r"abs takes 1 argument\(s\), 2 given"),
    ("filter {ds} abs(text)>1 --out {out}", "'text' is a text, abs takes a number"),
    ("filter {ds} num_frames>1&height>2 --out {out}", "& and | bind more tightly than comparisons"),
    ("filter {ds} text==b'x' --out {out}", "numbers, quoted text, true, false and null are understood"),
]


@pytest.mark.parametrize(("line", "said"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_nothing_is_written(places: dict[str, Path], line: str, said: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in places["raw"].parent.rglob("*") if "lock" not in path.name}
    words = [word.format(**places) for word in line.split()]
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    assert isinstance(done.exception, UserError) and done.exception.exit_code == 2, (done.output, done.exception)
    assert pytest.RaisesExc(UserError, match=said).matches(done.exception), str(done.exception)
    assert "\n" not in str(done.exception)
    after = {path: path.stat().st_mtime_ns for path in places["raw"].parent.rglob("*") if "lock" not in path.name}
    assert {path for path in after if path.is_file()} == {path for path in before if path.is_file()}

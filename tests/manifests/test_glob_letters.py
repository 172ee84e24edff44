"""A folder called `clips [v2]* {1..2} x::y` is a folder: polars, webdataset and fsspec take such names for others."""

from __future__ import annotations

import ast
from pathlib import Path

import polars as pl
from click.testing import CliRunner

from javisc.cli import cli
from javisc.manifests.files import recover_folder
from support.raw import write_clip

ROOT = Path(__file__).parents[2]
READERS = {f"{how}_{what}" for how in ("scan", "read") for what in ("parquet", "csv", "lines", "ndjson", "ipc")}


def test_no_reader_takes_a_name_for_a_pattern() -> None:
    seen = 0
    for path in (
        file for room in ("compiler", "manifests", "trainer", "command") for file in (ROOT / room).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if not isinstance(node.func.value, ast.Name) or node.func.value.id != "pl":
                continue
            assert node.func.attr != "read_parquet_schema", f"{path}:{node.lineno}: scan_parquet(…, glob=False) has it"
            if node.func.attr in READERS:
                told = {word.arg: word.value for word in node.keywords}
                assert ast.unparse(told.get("glob", node)) == "False", f"{path}:{node.lineno}: say glob=False"
                seen += 1
    assert seen > 20


def test_a_dataset_lies_where_its_name_looks_like_a_pattern(tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done.output

    (raw := (place := tmp_path / "clips [v2]* {1..2} x::y") / "raw").mkdir(parents=True)
    for number in range(2):
        write_clip(raw / f"{number}.mp4", seconds=0.5, seed=number)
    (table := place / "words [a].csv").write_text("id,text\n0,one\n1,two\n")
    ds = place / "ds"
    build = ("build", "jav", raw, "--captions", table, "--out", ds, "--workers", 1)
    run(*build)
    assert "0 inputs are new, 2 are in the plan already" in run(*build)
    (marks := place / "marks [b].csv").write_text("id,mark\n0,good\n1,bad\n")
    run("annotate", ds, marks, "--as", "who")
    assert "sound" in run("verify", ds)
    run("filter", ds, 'mark == "good"', "--out", place / "view")
    run("export", place / "view", "--energon", place / "out")
    rows = pl.read_parquet(ds / "manifest.parquet", glob=False)
    assert dict(rows.select("id", "text").iter_rows()) == {"0": "one", "1": "two"}


def test_what_a_kill_left_of_a_folder_is_that_folders_own(tmp_path: Path) -> None:
    for name in ("[ab]", "a"):
        (tmp_path / f".{name}.1.tmp").mkdir()
    recover_folder(tmp_path / "[ab]")
    assert [path.name for path in tmp_path.iterdir()] == [".a.1.tmp"]

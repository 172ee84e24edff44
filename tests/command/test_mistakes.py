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
    (folder / "mine/shards").mkdir(parents=True)
    for name in ("manifest.parquet", "shards/000007.tar", "shards/notes.txt"):
        (folder / "mine" / name).write_text("of another program")
    return {
        "ds": dataset(folder / "ds", rows(3)),
        "worded": dataset(folder / "worded", rows(3, seed=1).with_columns(mood=pl.lit("calm"))),
        "counted": dataset(folder / "counted", rows(3, seed=2).with_columns(mood=pl.lit(3))),
        "mine": folder / "mine",
        "table": folder / "t.csv",
        "raw": folder / "raw",
        "out": folder / "out",
    }


SYNC, JAV = (f"train {name} --data {{ds}} --run {{out}}" for name in ("sync-demo", "jav-tiny"))
MISTAKES = [
    ("annotate {ds}", "give a TABLE to join, or --undo NAME"),
    ("annotate {ds} {table} --undo t", "give a TABLE to join, or --undo NAME"),
    ("annotate {ds} --undo t --by key", "--undo NAME stands alone: leave out --by, --as and --keep-text"),
    ("annotate {ds} --undo t --keep-text", "--undo NAME stands alone"),
    ("annotate {ds} {table} --as 9", "--as '9': a field's name is a-z, 0-9 and _"),
    ("annotate {ds} {table} --keep-text", "has no captions, and leaves text alone anyway"),
    ("build jav {raw} --out {ds}", "holds a dataset without"),
    (
        "build jav {raw} --out {mine}",
        r"mine holds manifest\.parquet, shards/000007\.tar, which would be written over or mixed",
    ),
    (
        "filter {ds} num_frames>1 --out {out}.csv",
        r"a view is a folder, or one table that ends in \.parquet, not in \.csv",
    ),
    ("verify {table}", r"t\.csv is a file: give the folder of a dataset"),
    ("export {ds} --csv {table}", r"--csv .*t\.csv is there and is not javisc's: move it away"),
    ("export {ds} --jsonl {table}", r"--jsonl .*t\.csv is there and is not javisc's"),
    ("export {ds} --csv {raw}", "--csv .*raw is a folder: give the name of a file in it"),
    ("import --csv {table} --out {ds}/manifest.parquet", "--out .*/manifest.parquet is there and is no such table"),
    ("dedupe {ds} --groups {table}", r"--groups .*t\.csv is there and is no such table"),
    ("export {ds} --jsonl s3://b/t.jsonl", "a file on this machine is allowed"),
    ("score {ds} --checkpoint {out} --out {worded}", "--out .*/worded"),
    ("build jav {raw} --out {out} --shard-size 3apples", "a number with B, KB, MB"),
    ("merge {worded} {counted} --out {out}", "column mood is String in .* and Int32 in .*: give it one type"),
    ("filter {ds} abs(num_frames,2)>1 --out {out}", r"abs takes 1 argument\(s\), 2 given"),
    ("filter {ds} abs(text)>1 --out {out}", "'text' is a text, abs takes a number"),
    ("filter {ds} num_frames>1&height>2 --out {out}", "& and | bind more tightly than comparisons"),
    ("filter {ds} text==b'x' --out {out}", "numbers, quoted text, true, false and null are understood"),
    (f"{SYNC} run.metric=lss", r"run\.metric=lss: it may be accuracy_1, .*; set run\.metric to one of these"),
    (f"{SYNC} run.patience=3 run.validate_every=0", r"run\.patience=3 waits for validations, and there are none"),
    (f"{SYNC} run.stpes=3", r"there is no setting 'run\.stpes'; did you mean run\.steps\?"),
    (f"{SYNC} task=jav", "task=jav: recipe sync-demo is of task sync, and stays so"),
    (f"{SYNC} parallel.keep_attention=true", "without parallel.checkpoint_blocks=true everything is kept"),
    (f"{SYNC} optimizer.name=sgd parallel.strategy=fsdp2", r"optimizer\.name=sgd knows no sharded tensors"),
    (f"{SYNC} parallel.strategy=hybrid parallel.shard_group=3", r"parallel\.shard_group=3: 1 process does not divide"),
    (f"{SYNC} data.processes=true", r"data\.processes=true with data\.cache_mb=1000: .*; set data\.processes=false or"),
    (
        f"{SYNC} start.model=a start.audio_trunk=b",
        r"start\.model=a is a whole model, nothing of start\.audio_trunk would",
    ),
    (f"{SYNC} --hook {{out}}.py:Mine", "there is no file"),
    (
        SYNC,
        "no sample is left of 3: 3 not in the split 'train' .*there are test 1, val 2.*; set data.train_split to one",
    ),
    (f"{JAV} start.model=a start.audio=b", r"start\.model=a is a whole model, nothing of start\.audio would stay"),
    (
        f"{JAV} data.train_split=val data.buckets.48x64.17=[1.0,1] run.validate_every=0 start.model={{out}}",
        "out is not there; give a folder with model.safetensors",
    ),
    (f"{JAV} data={{{{}}}}", r"data\.buckets=\{\}: no bucket; give one at least"),
    (f"{JAV} data.buckets.48x64.17=3", r"data\.buckets\.48x64\.17=3: write FRAMES: \[probability, batch size\]"),
    (f"{JAV} mask_ratios.random=-1", r"mask_ratios\.random=-1: it must be 0 to 1; change mask_ratios\.random"),
    (f"{JAV} model.options.depth=three", r"model\.options\.depth=three: its type is whole number"),
    ("train sync-audio-tiny --data {ds} --run {out} run.preview_every=5", "task sync-audio has no previews; set"),
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

"""`javisc build jav`, `verify` and `demo` as a user meets them."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from support.forked import javisc
from support.raw import raw_folder, write_clip
from support.sane import sane, split_by_hash


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`javisc …` in a process of its own, which has imported its modules already; its workers are as users have them."""
    return javisc(*arguments, cwd=cwd)


def cold(*arguments: object, **more: object) -> subprocess.CompletedProcess[str]:
    """`javisc …` as a user starts it."""
    command = [sys.executable, "-P", "-m", "javisc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload,no-any-return]


SMALL = ("--short-side", 32, "--encoder-preset", "ultrafast", "--workers", 2)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = raw_folder(tmp_path_factory.mktemp("command") / "raw", 3)
    (root / "bad.mp4").write_text("bad")
    return root


def test_build_says_what_it_did_and_where_the_rejects_are(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "ds"
    done = cold(
        "build", "jav", raw, "--out", out, *SMALL, "--split", "train=0.5,val=0.5", "--log-json", tmp_path / "log.jsonl"
    )
    assert done.returncode == 0, done.stderr
    assert f"{out}: 3 samples in 1 shards" in done.stdout
    assert f"1 inputs were rejected (1 not_media): see {out}/rejected.parquet" in done.stdout
    assert "found 4 files" in done.stderr and "captions from files beside the inputs: 2 inputs have one" in done.stderr
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("input") == 4
    assert {event["reason"] for event in events if event["event"] == "input"} == {None, "not_media"}
    rows = sane(out, split=("train", "val"), inputs=4)
    assert rows["split"].to_list() == split_by_hash(rows["source_sha256"], {"train": 0.5, "val": 0.5})
    again = run("build", "jav", raw, "--out", out, *SMALL, "--split", "train=0.5,val=0.5", "--strict")
    assert again.returncode == 1 and "0 inputs are new, 4 are in the plan already" in again.stderr
    checked = cold("verify", out)
    assert checked.returncode == 0 and "sound: 3 samples in 1 shards" in checked.stdout, checked.stdout
    tar = out / "shards" / "000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    checked = run("verify", out)
    assert checked.returncode == 1 and "shards/000000.tar: " in checked.stdout and "Traceback" not in checked.stderr


def test_plan_only_writes_nothing(raw: Path, tmp_path: Path) -> None:
    done = run("build", "jav", raw, "--out", tmp_path / "ds", *SMALL, "--plan-only")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"4 inputs of .* about 1\.\d s of media: about .* in 1 shards, .* of one core \(75% of", done.stdout
    ), done.stdout
    assert list(tmp_path.iterdir()) == []


def test_progress_on_a_terminal(raw: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-P",
        "-m",
        "javisc",
        "build",
        "jav",
        str(raw),
        "--out",
        str(tmp_path / "ds"),
        *map(str, SMALL),
    ]
    process = subprocess.Popen(
        command, stderr=theirs, stdout=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        shown += piece
        if not piece:
            break
    assert process.wait() == 0
    assert "4/4" in shown.decode() and "MB/s, 1 rejected" in shown.decode()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing-folder"], "missing-folder is not there"),
        ([], "RAW is missing"),
        (["RAW", "--split", "train=0.5"], "the shares sum to 0.5, they must sum to 1"),
        (["RAW", "--split", "train"], "--split 'train'"),
        (["RAW", "--shard-size", "512XB"], "--shard-size '512XB'"),
        (["RAW", "--shard-range", "4:2"], "--shard-range '4:2'"),
        (["RAW", "--shard-range", ""], "--shard-range ''"),
        (["RAW", "--part", ""], "--part ''"),  # of a variable that is not set: not all shards in each task
        (
            ["RAW", "--recipe", "cinema"],
            "--recipe 'cinema': known here are jav, jav16, archive, frame, hevc, av1, sync",
        ),
        (["RAW", "--engine", "abacus"], "--engine 'abacus': known are"),
        (["RAW", "--captions", "nothing.csv"], "nothing.csv is not there"),
        (["RAW", "--finish"], "has no plan yet"),
        (["RAW", "--fps", "0"], "--fps"),
        (["RAW", "--log-json", "/no/such/log"], "--log-json /no/such/log cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(raw: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run("build", "jav", *[raw if word == "RAW" else word for word in arguments], "--out", tmp_path / "ds")
    lines = [line for line in done.stderr.splitlines() if line.startswith("javisc: ")]
    assert done.returncode == 2 and len(lines) == 1 and said in lines[0], done.stderr
    assert "Traceback" not in done.stderr


def test_a_limit_on_file_size_stops_in_one_line_and_resumes(raw: Path, tmp_path: Path) -> None:
    """As a full disk does: the system refuses to write on, and a later run with room finishes."""

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    limit: Callable[[], None] = small
    out = tmp_path / "ds"
    done = cold("build", "jav", raw, "--out", out, *SMALL, preexec_fn=limit)
    assert done.returncode == 1, done.stderr + done.stdout
    assert re.search(r"^javisc: .* cannot be written: File too large; .* it resumes$", done.stderr, re.MULTILINE), (
        done.stderr
    )
    assert not (out / "manifest.parquet").exists() and not list((out / "shards").glob("*.tar"))
    done = run("build", "jav", raw, "--out", out, *SMALL)
    assert done.returncode == 0 and "3 samples" in done.stdout


def test_odd_ways_to_name_folders(raw: Path, tmp_path: Path) -> None:
    write_clip(tmp_path / "here" / "a b.mp4")
    done = run("build", "jav", "here/", "./here/a b.mp4", "--out", "out of/here", *SMALL, cwd=tmp_path)
    assert done.returncode == 0 and "1 samples" in done.stdout, done.stderr
    assert "1 inputs were named more than once" in done.stderr
    manifest = pl.read_parquet(tmp_path / "out of" / "here" / "manifest.parquet")
    assert manifest["path"].to_list() == [str(tmp_path / "here" / "a b.mp4")]


def test_nothing_to_do_is_said(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    done = run("build", "jav", tmp_path / "raw", "--out", tmp_path / "ds")
    assert done.returncode == 1 and "no input was found" in done.stderr

"""Each option of `javisc build` once for real, with a result that only it can cause."""

from __future__ import annotations

import io
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import polars as pl
import pytest
import soundfile
from click.testing import CliRunner

from javisc.cli import cli
from javisc.manifests.errors import UserError
from javisc.manifests.members import MemberReader
from support.films import Films
from support.forked import javisc
from support.processes import workers_of
from support.raw import write_clip
from support.sane import sane

CHEAP = ("--encoder-preset", "ultrafast", "--workers", "1")


def build(kind: str, *words: object, code: int = 0) -> str:
    result = CliRunner().invoke(cli, ["build", kind, *map(str, words)], catch_exceptions=False, standalone_mode=False)
    assert (result.return_value or 0) == code, result.output
    return result.output


def manifest(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "manifest.parquet")


def rejects(folder: Path) -> dict[str, str]:
    return dict(pl.read_parquet(folder / "rejected.parquet").select("relpath", "reason").iter_rows())


def member(folder: Path, row: dict[str, object], end: str) -> bytes:
    with MemberReader() as reader:
        return reader.read({**row, "dataset": str(folder)}, end)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sounding clips of half a second, one of a sixth, and one without sound."""
    root = tmp_path_factory.mktemp("shows") / "raw"
    for number, (name, seconds) in enumerate((("a", 0.5), ("b", 0.5), ("short", 1 / 6))):
        write_clip(root / f"{name}.mp4", seconds=seconds, seed=number)
    (root / "a.txt").write_text("the caption of a")
    with av.open(str(root / "mute.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(24), options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(12):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 9 * index, np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    return root


@pytest.mark.shows("build jav", "RAW", "--out", "--fps", "--sample-rate", "--channels", "--short-side", "--max-seconds")
def test_the_recipes_options_shape_the_members(raw: Path, tmp_path: Path) -> None:
    recipe = ["--fps", 12, "--sample-rate", 22050, "--channels", 2, "--short-side", 32, "--max-seconds", 0.25]
    recipe += ["--min-frames", 3]
    build("jav", raw / "a.mp4", "--out", tmp_path / "ds", *recipe, *CHEAP)
    row = sane(tmp_path / "ds", deep=True).row(0, named=True)
    assert (row["fps"], row["num_frames"], row["height"], row["width"]) == (12.0, 3, 32, 42)
    sound, rate = soundfile.read(io.BytesIO(member(tmp_path / "ds", row, "flac")), always_2d=True)
    assert (sound.shape, rate) == ((round(3 * 22050 / 12), 2), 22050)


@pytest.mark.shows("build jav", "--crf", "--encoder-preset")
def test_the_encoders_options_reach_the_encoder(raw: Path, tmp_path: Path) -> None:
    def bytes_with(name: str, *words: object) -> bytes:
        build("jav", raw / "a.mp4", "--out", tmp_path / name, "--workers", 1, *words)
        return member(tmp_path / name, manifest(tmp_path / name).row(0, named=True), "mp4")

    fine, coarse, quick = (
        bytes_with("a", "--crf", 12),
        bytes_with("b", "--crf", 40),
        bytes_with("c", "--crf", 12, *CHEAP),
    )
    assert len(coarse) < 0.7 * len(fine)
    assert fine != quick


@pytest.mark.shows("build jav", "--min-frames", "--allow-silent", "--strict", "--recipe")
def test_what_is_refused(raw: Path, tmp_path: Path) -> None:
    build("jav", raw, "--out", tmp_path / "a", *CHEAP, "--strict", code=1)
    assert rejects(tmp_path / "a") == {"short.mp4": "too_short", "mute.mp4": "no_audio"}
    build("jav", raw, "--out", tmp_path / "b", *CHEAP, "--strict", "--min-frames", 4, "--allow-silent")
    assert rejects(tmp_path / "b") == {} and manifest(tmp_path / "b").height == 4
    build("jav", raw / "a.mp4", "--out", tmp_path / "c", *CHEAP, "--recipe", "sync", "--short-side", 32)
    assert manifest(tmp_path / "c")["fps"].to_list() == [25.0] and manifest(tmp_path / "a")["fps"][0] == 24.0


@pytest.mark.shows("build jav", "--captions", "--require-caption", "--retry-rejected")
def test_captions_are_taken_from_the_table_and_asked_for(raw: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.csv"
    table.write_text('relpath,text\nb.mp4,"of the table, with a comma"\n')
    given = [raw / "a.mp4", raw / "b.mp4", "--workers", 1]
    build("jav", *given, "--out", tmp_path / "beside")
    sane(tmp_path / "beside", captions={"a.mp4": "the caption of a"}, split=())
    build("jav", *given, "--out", tmp_path / "table", "--captions", table)
    sane(tmp_path / "table", captions={"b.mp4": "of the table, with a comma"}, split=())
    build("jav", *given, "--out", tmp_path / "asked", "--captions", table, "--require-caption")
    assert rejects(tmp_path / "asked") == {"a.mp4": "no_caption"}
    table.write_text("relpath,text\nb.mp4,of the table\na.mp4,late\n")
    again = [*given, "--out", tmp_path / "asked", "--captions", table, "--require-caption"]
    build("jav", *again, "--retry-rejected")
    assert rejects(tmp_path / "asked") == {} and manifest(tmp_path / "asked").height == 2


@pytest.mark.shows("build jav", "--shard-samples", "--shard-size", "--seed", "--split", "--shard-range", "--finish")
def test_options_of_the_plan(raw: Path, tmp_path: Path) -> None:
    many = tmp_path / "many"
    for number in range(12):
        write_clip(many / f"{number}.mp4", seconds=0.5, seed=number, size=(32, 32))
    plan = ["--shard-samples", 4, "--split", "train=0.5,val=0.5", *CHEAP]
    build("jav", many, "--out", tmp_path / "a", *plan)
    whole = sane(tmp_path / "a", split=("train", "val"), inputs=12)
    assert whole["shard"].value_counts().sort("shard")["count"].to_list() == [4, 4, 4]
    assert set(whole["split"]) == {"train", "val"}
    build("jav", many, "--out", tmp_path / "b", *plan, "--seed", 3)
    other = sane(tmp_path / "b", split=("train", "val"))
    pairs = whole.join(other, on="key").select("shard", "shard_right", "split", "split_right").rows()
    assert any(a != b for a, b, _, _ in pairs) and any(a != b for _, _, a, b in pairs)
    assert sane(tmp_path / "a")["relpath"].sort().to_list() == other["relpath"].sort().to_list()
    said = build("jav", many, "--out", tmp_path / "c", *plan, "--shard-range", "1:2")
    assert "4 samples in 1 shards" in said and "2 shards are of other parts" in said
    assert sorted(path.name for path in (tmp_path / "c/shards").glob("*.tar")) == ["000001.tar"]
    assert not (tmp_path / "c/manifest.parquet").exists()
    for part in ("0:1", "2:"):
        build("jav", many, "--out", tmp_path / "c", *plan, "--shard-range", part)
    # --finish builds nothing and looks at no raw file
    build("jav", tmp_path / "many", "--out", tmp_path / "c", *plan, "--finish")
    assert sane(tmp_path / "c").drop("path", "audio_path").equals(whole.drop("path", "audio_path"))
    build("jav", many, "--out", tmp_path / "d", "--shard-size", "30kB", *CHEAP)
    assert pl.read_parquet(tmp_path / "d/shards.parquet").height > 1, "12 clips of about 10 kB"


@pytest.mark.shows("build jav", "--prune")
def test_prune_takes_what_is_gone_and_changed_out(raw: Path, tmp_path: Path) -> None:
    mine = tmp_path / "raw"
    for number in range(3):
        write_clip(mine / f"{number}.mp4", seed=number, size=(32, 32))
    command = [mine, "--out", tmp_path / "ds", *CHEAP]
    build("jav", *command)
    first = sane(tmp_path / "ds")
    (mine / "0.mp4").unlink()
    write_clip(mine / "1.mp4", seed=77, size=(32, 32))
    said = build("jav", *command)
    assert manifest(tmp_path / "ds").equals(first) and "--prune" in said
    build("jav", *command, "--prune")
    after = sane(tmp_path / "ds", deep=True)
    assert sorted(after["relpath"]) == ["1.mp4", "2.mp4"]
    digests = dict(after.select("relpath", "source_sha256").iter_rows())
    before = dict(first.select("relpath", "source_sha256").iter_rows())
    assert digests["1.mp4"] != before["1.mp4"] and digests["2.mp4"] == before["2.mp4"]


@contextmanager
def seen(folder: Path, pattern: str) -> Iterator[set[str]]:
    """What stood in `folder` while the block ran."""
    found: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            found.update(path.name for path in folder.glob(pattern))
            time.sleep(0.01)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


@pytest.mark.shows("build jav", "--scratch", "--log-json", "--plan-only", "--workers")
def test_options_of_the_run(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    given = [raw / "a.mp4", raw / "b.mp4", "--shard-samples", 1, "--encoder-preset", "ultrafast"]
    said = build("jav", *given, "--out", tmp_path / "ds", "--plan-only")
    assert "nothing was written" in said and not (tmp_path / "ds").exists()
    log = tmp_path / "log.jsonl"
    with seen(tmp_path / "scratch", "javisc-*") as found:
        build(
            "jav",
            *given,
            "--out",
            tmp_path / "ds",
            "--workers",
            2,
            "--scratch",
            tmp_path / "scratch",
            "--log-json",
            log,
        )
    assert len(found) == 1 and list((tmp_path / "scratch").iterdir()) == [] and not (tmp_path / "ds/.work").exists()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["event"] for event in events].count("shard") == 2
    one, three = (most_workers(given, tmp_path / str(number), number) for number in (1, 3))
    assert one == 1 < three


def most_workers(given: list[object], out: Path, workers: int) -> int:
    """The most processes that compiled at a time."""
    most = 0
    over = threading.Event()

    def look() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, len(workers_of(os.getpid())))
            time.sleep(0.01)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        build("jav", *given, "--out", out, "--workers", workers)
    finally:
        over.set()
        watcher.join()
    return most


def told(*words: object) -> tuple[int, list[str]]:
    """Exit code of a `javisc` of its own process, and its lines for the user."""
    done = javisc(*words)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("javisc: ")]


def test_where_nothing_came_out_the_exit_code_is_1_and_one_line_says_so(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "gone.txt").write_text("/nowhere/a.mp4\n/nowhere/b.mp4\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.mp4").write_text("no film")
    for name, words in {
        "empty": [tmp_path / "empty"],
        "missing files": [tmp_path / "gone.txt"],
        "all rejected": [tmp_path / "bad"],
        "all too short": [raw / "short.mp4"],
        "all without a caption": [raw / "b.mp4", "--require-caption"],
    }.items():
        code, lines = told("build", "jav", *words, "--out", tmp_path / "out" / name, "--workers", 1)
        assert (code, len(lines)) == (1, 1), (name, code, lines)
    assert lines == ["javisc: nothing came out: all 1 inputs were refused"]


@pytest.mark.parametrize(
    "words",
    [
        ["--engine", "abacus"],
        ["--engine", "ray", "--address", "127.0.0.1:1"],
        ["--captions", "{tmp}/missing.csv"],
        ["--captions", "{tmp}/columns.csv"],
        ["--split", "train=0.4"],
        ["--shard-size", "2XB"],
        ["--crf", "99"],
        ["--recipe", "cinema"],
    ],
    ids=" ".join,
)
def test_options_are_checked_before_the_scan_and_leave_no_plan(
    raw: Path, tmp_path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "columns.csv").write_text("a,b\n1,2\n")
    scanned: list[object] = []
    monkeypatch.setattr("javisc.compiler.inputs.raw.scan", lambda *given, **more: scanned.append(given) or iter(()))
    words = [word.replace("{tmp}", str(tmp_path)) for word in words]
    result = CliRunner().invoke(cli, ["build", "jav", str(raw), "--out", str(tmp_path / "ds"), *words])
    assert isinstance(result.exception, UserError) and result.exception.exit_code == 2, result.output
    assert not scanned and not (tmp_path / "ds/.build/plan.parquet").exists()


def test_a_resume_takes_what_it_is_not_told_from_the_dataset(raw: Path, tmp_path: Path) -> None:
    ds = tmp_path / "ds"
    begun = ["--split", "a=0.5,b=0.5", "--seed", 7, "--short-side", 32, "--crf", 30, "--max-seconds", 0.45]
    said = build("jav", raw / "a.mp4", "--out", ds, *begun, *CHEAP)
    assert "no sample fell into" in said, "one film lies in one of two splits"
    build("jav", raw / "a.mp4", raw / "b.mp4", "--out", ds)
    both = sane(ds, split=("a", "b"))
    assert both.height == 2 and set(both["height"]) == {32} and set(both["num_frames"]) == {11}
    header = json.loads((ds / "dataset.json").read_text())["recipe"]
    assert (header["crf"], header["encoder_preset"]) == (30.0, "ultrafast")
    for said, line in ((["--seed", 8], "--seed"), (["--crf", 31], "crf 30.0 → 31.0"), (["--recipe", "jav"], "recipe")):
        with pytest.raises(UserError, match=re.escape(line)):
            build("jav", raw / "a.mp4", raw / "b.mp4", "--out", ds, *said)
    build("audio", raw / "a.mp4", "--out", tmp_path / "sounds", "--from-video", "--max-seconds", 0.2, "--workers", 1)
    build("audio", raw / "a.mp4", raw / "b.mp4", "--out", tmp_path / "sounds", "--from-video", "--workers", 1)
    assert set(sane(tmp_path / "sounds")["duration"]) == {0.2}
    with pytest.raises(UserError, match="another recipe"):
        build("audio", raw / "a.mp4", "--from-video", "--out", ds)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("stat", "did you mean stats"),
        ("exprot", "did you mean export?"),
        ("build raw", "did you mean `javisc build jav raw`?"),
        ("build jv", "did you mean jav?"),
        ("eval snyc", "sync"),
    ],
)
def test_a_command_that_is_none_gets_the_nearest(words: str, said: str) -> None:
    done = javisc(*words.split())
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_stats_are_legible_at_80_columns(raw: Path, tmp_path: Path) -> None:
    build("jav", raw / "a.mp4", "--out", tmp_path / "ds", *CHEAP)
    done = javisc("stats", tmp_path / "ds", env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 80
    for name in ("num_frames", "silence_ratio", "clipping_ratio", "greatest", "captions"):
        assert name in done.stdout


@pytest.mark.shows("verify", "DATASET")
@pytest.mark.shows("status", "DS")
@pytest.mark.shows("repair", "DATASET")
def test_verify_status_and_repair_say_and_do_what_they_are_for(films: Films, tmp_path: Path) -> None:
    """A byte of one shard is turned round: `verify` names the shard, `repair` makes it again as it was, and both say so."""

    def run(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False, standalone_mode=False)
        return int(result.return_value or 0), result.output

    ds = films.copy(tmp_path / "copy").dataset
    assert run("verify", ds, "--level", "digests", "--workers", 1)[0] == 0
    assert "2 of 2 shards are published, 7 of 7 inputs" in run("status", ds)[1]
    assert "nothing to repair" in run("repair", ds, "--workers", 1)[1]
    tar = ds / "shards/000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:900] + bytes([whole[900] ^ 1]) + whole[901:])
    code, said = run("verify", ds, "--level", "digests", "--workers", 1)
    assert code == 1 and "shards/000001.tar: SHA-256 differs" in said and "1 defects" in said
    code, said = run("repair", ds, "--workers", 1)
    assert code == 0 and "1 published shards are lost or damaged and are made again" in said
    assert "nothing to repair" not in said
    assert tar.read_bytes() == whole and run("verify", ds, "--level", "digests", "--workers", 1)[0] == 0

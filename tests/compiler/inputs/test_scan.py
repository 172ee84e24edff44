"""Finding inputs: folders with everything in them, lists in every form, and what was passed over."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.inputs.found import MAX_KINDS, SCAN_SCHEMA, SIDECAR, ScanReport
from javisc.compiler.inputs.lists import read_list
from javisc.compiler.inputs.local import AUDIO_SUFFIXES, VIDEO_SUFFIXES, scan
from javisc.compiler.inputs.raw import from_raw
from javisc.manifests.errors import UserError
from javisc.manifests.rows import captions_of, cell
from support.raw import AWKWARD

PLAIN = (st.none(), st.text(), st.integers(), st.floats())
CELLS = st.one_of(*PLAIN, st.lists(st.one_of(*PLAIN)), st.dictionaries(st.text(), st.text()))


def found(*raw: Path | str, **more: object) -> tuple[pl.DataFrame, ScanReport]:
    report = ScanReport()
    frames = list(scan([str(root) for root in raw], report=report, **more))  # type: ignore[arg-type]
    return pl.concat(frames), report


def make(root: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def test_any_letter_case_any_depth_and_nothing_else(tmp_path: Path) -> None:
    videos = ["a.MP4", "b/c.Mkv", "b/d/e.m2ts", "f.ts", "g.webm", "h.M4V", "i.mpg", "j.avi", "k.MOV"]
    make(tmp_path, *videos, "notes.md", "b/song.wav", "l.mp4.part", "m.txt")
    rows, report = found(tmp_path)
    assert sorted(rows["relpath"]) == sorted(videos) and rows.schema == SCAN_SCHEMA
    assert report.files == 9 and report.others == {".md": 1, ".wav": 1, ".part": 1} and report.stray_sidecars == 1
    assert rows["source_bytes"].to_list() == [1] * 9 and rows["mtime_ns"].null_count() == 0
    assert found(f"{tmp_path}/")[0]["relpath"].to_list() == rows["relpath"].to_list()


def test_relative_roots_give_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "raw/a.mp4")
    monkeypatch.chdir(tmp_path)
    for root in ("raw", "./raw", "raw/", "raw/../raw"):
        rows, _ = found(root)
        assert rows.select("path", "relpath").rows() == [(str(tmp_path / "raw" / "a.mp4"), "a.mp4")]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    make(tmp_path, "raw/a.mp4", "outside/b.mp4")
    (tmp_path / "raw" / "down").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "up").symlink_to(tmp_path / "raw")
    (tmp_path / "raw" / "c.mp4").symlink_to("a.mp4")
    rows, report = found(tmp_path / "raw")
    assert sorted(rows["relpath"]) == ["a.mp4", "c.mp4", "down/b.mp4"] and report.loops == 1


def test_what_is_no_file_is_a_row_with_a_reason(tmp_path: Path) -> None:
    make(tmp_path, "empty.mp4", content=b"")
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    (tmp_path / "folder.mp4").mkdir()
    make(tmp_path, "folder.mp4/in.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    rows, report = found(tmp_path)
    reasons = dict(rows.select("relpath", "refused").iter_rows())
    assert reasons == {
        "empty.mp4": "empty",
        "dangling.mp4": "unreadable",
        "folder.mp4": "unreadable",
        "folder.mp4/in.mp4": None,
        "pipe.mp4": "unreadable",
    }
    assert report.refused == {"unreadable": 3, "empty": 1}


def test_undecodable_names_keep_their_bytes(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.mp4"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    rows, _ = found(tmp_path)
    assert rows["raw_path"].to_list() == [raw] and rows["relpath"].to_list() == ["\\xff\\xfe.mp4"]


def test_sidecars_are_found_beside_and_strays_are_counted(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "a.txt", "a.json", "b.MP4", "b.txt", "c.mp4", "stray.json")
    rows, report = found(tmp_path)
    beside = dict(rows.select("relpath", SIDECAR).iter_rows())
    assert beside == {"a.mp4": bytes(tmp_path / "a.json"), "b.MP4": bytes(tmp_path / "b.txt"), "c.mp4": None}
    assert report.stray_sidecars == 2


@pytest.mark.parametrize("form", ["txt", "marked.txt", "csv", "parquet", "jsonl"])
def test_lists_of_paths(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "data/a.mp4", "data/sub/b,c.mp4", "data/b.txt", "cwd/d.mp4", "far/e.mp4")
    monkeypatch.chdir(tmp_path / "cwd")
    paths = ["a.mp4", "sub/b,c.mp4", "d.mp4", str(tmp_path / "far" / "e.mp4"), "missing.mp4"]
    table, listed = (
        pl.DataFrame({"path": paths, "text": ["t"] * 5, "height": [1] * 5}),
        tmp_path / "data" / f"list.{form}",
    )
    if form.endswith("txt"):
        listed.write_text("\r\n".join(paths) + "\n\n", encoding="utf-8-sig" if form == "marked.txt" else "utf-8")
    else:
        {"csv": table.write_csv, "parquet": table.write_parquet, "jsonl": table.write_ndjson}[form](listed)  # type: ignore[operator]
    rows, _ = found(listed)
    far = str(tmp_path / "far" / "e.mp4").lstrip("/")
    assert rows["relpath"].to_list() == [
        "a.mp4",
        "sub/b,c.mp4",
        str(tmp_path / "cwd/d.mp4").lstrip("/"),
        far,
        "missing.mp4",
    ]
    assert rows["refused"].to_list() == [None] * 4 + ["unreadable"]
    assert rows["text"].to_list() == [None if form.endswith("txt") else "t"] * 5


def test_javisdits_csv_is_a_list(tmp_path: Path) -> None:
    make(tmp_path, "x/a.mp4")
    text = f'path,id,relpath,num_frames,fps,text\n{tmp_path}/x/a.mp4,a,x/a.mp4,240,24.0,"a dog, barking"\n'
    (tmp_path / "train.csv").write_text(text)
    rows, _ = found(tmp_path / "train.csv")
    assert rows.select("relpath", "id", "text", "refused").row(0) == ("x/a.mp4", "a", "a dog, barking", None)


def test_a_relpath_in_a_list_cannot_climb(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4")
    (tmp_path / "l.csv").write_text("path,relpath\na.mp4,../../etc/a.mp4\n")
    assert found(tmp_path / "l.csv")[0]["relpath"].to_list() == ["etc/a.mp4"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("l.csv", "file,text\na.mp4,t\n", "line 2 has no `path`"),
        ("l.csv", "", "has no rows"),
        ("l.jsonl", '{"path": "a"}\n[1]\n', "line 2: is no JSON object"),
        ("l.jsonl", "{nonsense\n", "line 1: is no JSON"),
        ("l.parquet", "no parquet", "cannot be read"),
    ],
)
def test_an_unusable_list_is_one_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        found(tmp_path / name)


def test_what_does_not_exist_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not there"):
        found(tmp_path / "nothing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder_is_a_reject(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "locked/b.mp4")
    (tmp_path / "locked").chmod(0)
    rows, _ = found(tmp_path)
    (tmp_path / "locked").chmod(0o755)
    assert dict(rows.select("relpath", "refused").iter_rows()) == {"a.mp4": None, "locked": "unreadable"}


def test_a_list_of_nonsense_is_rows_with_reasons(tmp_path: Path) -> None:
    lines = [
        r'{"path": "a\u0000b.mp4"}',
        r'{"path": "half \ud800.mp4", "text": "half \udfff"}',
        '{"path": "/dev/null"}',
        '{"path": "/"}',
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(lines))
    rows, _ = found(tmp_path / "l.jsonl")
    assert rows["refused"].to_list() == ["unreadable"] * 4 and rows["text"][1] == "half ?"


def test_awkward_names_go_through_lists(tmp_path: Path) -> None:
    names = [name for name in AWKWARD if name != ".mp4"]
    make(tmp_path, *names)
    pl.DataFrame({"path": names}).write_csv(tmp_path / "list.csv")
    rows, _ = found(tmp_path / "list.csv")
    assert sorted(rows["relpath"]) == sorted(names) and rows["refused"].null_count() == len(names)


@settings(max_examples=150, deadline=None)
@given(CELLS)
def test_any_cell_becomes_its_columns_type_or_nothing(value: object) -> None:
    texts = captions_of(value)
    assert texts is None or (texts and all(isinstance(text, str) and text == text.strip() != "" for text in texts))
    with suppress(ValueError):
        number = cell("offset_sec", value)
        assert number is None or abs(number) < float("inf")
    with suppress(ValueError):
        assert cell("label", value) is None or isinstance(cell("label", value), str)


def test_a_row_that_is_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path\n" + "x" * ((1 << 20) + 10) + "\n")
    with pytest.raises(UserError, match="line 2 is longer than"):
        list(read_list(str(tmp_path / "l.csv")))


def test_kinds_that_are_passed_over_are_named_and_counted(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Captions that are used, beside a video or as a table, are not among them; names that would break the line neither."""
    make(
        tmp_path,
        *(f"{n}.xyz" for n in range(7)),
        *(f"a/{n}.DOC" for n in range(3)),
        "README",
        "odd.\n",
        "x." + "y" * 40,
    )
    make(tmp_path, "v.mp4", "v.txt", "w.mp4", "w.json", "captions.csv", "stray.txt")
    said: list[str] = []
    make(tmp_path, "captions.csv", content=b"id,text\nv,a dog\n")
    from_raw([str(tmp_path)], captions=str(tmp_path / "captions.csv"), say=said.append)(tmp_path_factory.mktemp("plan"))
    (line,) = [line for line in said if "passed over" in line]
    assert line == "13 files of other kinds were passed over: .xyz 7, .doc 3, without a suffix 1, other 2"
    assert found(tmp_path)[1].others[".csv"] == 1
    make(tmp_path, *(f"many/{n}.k{n}" for n in range(1200)))
    report = found(tmp_path)[1]
    assert len(report.others) <= MAX_KINDS + 1 and report.others.total() == 1214
    assert len(report.lines()[1]) < 300 and "more kinds" in report.lines()[1]


@pytest.mark.parametrize("suffix", [".flv", ".3gp", ".wmv", ".mts", ".ogv", ".264", ".h264", ".h265", ".FLV"])
def test_more_kinds_of_video_are_scanned(tmp_path: Path, suffix: str) -> None:
    make(tmp_path, f"a{suffix}", "b.wav")
    assert found(tmp_path)[0]["relpath"].to_list() == [f"a{suffix}"]
    both = found(tmp_path, suffixes=VIDEO_SUFFIXES | AUDIO_SUFFIXES)[0]
    assert sorted(both["relpath"]) == [f"a{suffix}", "b.wav"]


@pytest.mark.parametrize(
    "start, end", [("start", "end"), ("start_time", "end_time"), ("begin", "end"), ("t_start", "t_end")]
)
@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_windows_by_another_name_are_refused(tmp_path: Path, start: str, end: str, suffix: str) -> None:
    """Whole films would be built in their place, and rows of one film count once."""
    table = tmp_path / f"l{suffix}"
    row = {"path": "film.mp4", start: 1.5, end: 3.0}
    table.write_text(
        f"path,{start},{end}\nfilm.mp4,1.5,3\n" if suffix == ".csv" else f'{{"path": "a.mp4"}}\n{json.dumps(row)}\n'
    )
    with pytest.raises(
        UserError, match=f"the columns {start} and {end} are not read: call them clip_start and clip_end"
    ):
        list(read_list(str(table)))
    table.write_text(json.dumps({**row, "clip_start": 1.5, "clip_end": 3.0}) + "\n")
    if suffix == ".jsonl":  # where a film was cut from may be said beside
        assert [one["window_start"] for one in read_list(str(table))] == [1.5]

"""Rows and caption files that do not say what they mean are named, never taken for something shorter or something else."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.compiler.fields.table import read as annotations
from javisc.compiler.inputs.captions import attach
from javisc.compiler.inputs.found import SCAN_SCHEMA
from javisc.compiler.inputs.lists import read_list
from javisc.compiler.inputs.local import AUDIO_SUFFIXES, scan
from javisc.compiler.inputs.raw import from_raw
from javisc.compiler.inputs.sidecars import NoCaption, read_sidecar
from javisc.manifests.errors import UserError
from javisc.manifests.rows import Faults, read_rows
from support.shared import SHARED, need

WORDS = st.text(st.sampled_from("ab ,\"'\t;\n"), min_size=1, max_size=12)


def texts(raw: list[Path], captions: Path | None = None, scratch: Path | None = None) -> dict[str, str | None]:
    folder = scratch or raw[0].parent / "scratch"
    folder.mkdir(exist_ok=True)
    table = from_raw([str(path) for path in raw], captions=None if captions is None else str(captions))(folder)
    return dict(table.select("relpath", "text").collect().iter_rows())


def media(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.lists(WORDS, min_size=1, max_size=4), max_size=5), width=st.integers(1, 3), tabs=st.booleans())
def test_rows_of_another_width_are_named_and_all_others_arrive(
    rows: list[list[str]], width: int, tabs: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("t") / ("t.tsv" if tabs else "t.csv")
    names = [f"column{i}" for i in range(width)]
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t" if tabs else ",").writerows([names, *rows])
    faults = Faults("t")
    found = [row for _, row in read_rows(str(path), faults)]
    rows = [row for row in rows if any(value.strip() for value in row)]
    assert found == [dict(zip(names, row, strict=True)) for row in rows if len(row) == width]
    assert faults.count == sum(len(row) != width for row in rows)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"path,text\na.mp4,a dog barks, then a car passes\n", "line 2: 3 fields where the header has 2: 'a.mp4,a dog"),
        (b"path,text\nb.mp4,x\na.mp4\n", "line 3: 1 fields where the header has 2"),
        (b'path,text\na.mp4,"never ends\nb.mp4,x\n', "line 2: its quotes do not pair"),
        (b'path,text\na.mp4,"one" two\n', "line 2: its quotes do not pair"),
        (b"path,text\na.mp4,caf\xe9\n", "line 2: is not UTF-8"),
        (b"path,text,text\na.mp4,x,y\n", "the column text is there twice"),
        (b"\xff\xfep\x00", "is UTF-16"),
        (b"file;text\na.mp4;x\n", "column.*path"),
        (b"path,text,clip_start,clip_end\na.mp4,x,0:01,0:02\n", "1 row is unusable: line 2: clip_start '0:01' is no number"),
        (b"path,text,window_start\na.mp4,x,soon\n", "line 2: window_start 'soon' is no number"),
        (b"path,text,window_start\na.mp4,x,inf\n", "line 2: window_start 'inf' is no finite number"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_said_with_its_line(content: bytes, said: str, tmp_path: Path) -> None:
    media(tmp_path / "raw", "a.mp4", "b.mp4")
    (tmp_path / "raw" / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        texts([tmp_path / "raw" / "t.csv"])
    if b"window" not in content and b"clip_" not in content:
        with pytest.raises(UserError, match=said):
            texts([tmp_path / "raw"], tmp_path / "raw" / "t.csv")


def test_a_list_row_without_a_path_is_named(tmp_path: Path) -> None:
    media(tmp_path, "a.mp4")
    (tmp_path / "l.csv").write_text("path,text\na.mp4,x\n,y\n")
    with pytest.raises(UserError, match="line 3: path is empty"):
        texts([tmp_path / "l.csv"])


def test_a_list_in_utf16_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("/a.mp4\n", encoding="utf-16")
    with pytest.raises(UserError, match="is UTF-16, lists are read as UTF-8"):
        texts([tmp_path / "l.txt"])


@pytest.mark.parametrize(
    ("cell", "said"),
    [(7, "7"), (1.5, "1.5"), (True, "True"), ({"en": "a"}, "an object"), (["a", 3], "a list with 3"),
     ([["a"]], "a list with a list"), (b"\xff", "no UTF-8")],
)  # fmt: skip
def test_what_is_no_text_is_no_absent_caption(cell: Any, said: str, tmp_path: Path) -> None:
    media(tmp_path, "a.mp4")
    rows = [{"path": "a.mp4", "text": cell}]
    if isinstance(cell, bytes) or cell in (7, [["a"]]):
        pl.DataFrame(rows).write_parquet(table := tmp_path / "t.parquet")
    else:
        (table := tmp_path / "t.jsonl").write_text(json.dumps(rows[0]) + "\n")
    for read in (lambda: texts([table]), lambda: texts([tmp_path], table), lambda: annotations(str(table), "annotate")):
        with pytest.raises(UserError, match=rf"t\.\w+: .*(text is {said}, a caption|text is \w+.*: a caption) is text"):
            read()


@pytest.mark.parametrize("line", ["[1]", "{", '{"path": "a.mp4", "label": ["x", "y"]}'])
def test_bad_lines_of_json_are_named(line: str, tmp_path: Path) -> None:
    media(tmp_path, "a.mp4")
    (tmp_path / "l.jsonl").write_text(f'{{"path": "a.mp4"}}\n{line}\n')
    with pytest.raises(UserError, match="1 row is unusable: line 2: "):
        list(read_list(str(tmp_path / "l.jsonl")))


def test_the_shared_case_of_an_unquoted_comma(tmp_path: Path) -> None:
    case = need(SHARED / "cases" / "unquoted_comma.csv")
    media(tmp_path / "raw", *(f"q{i}.mp4" for i in range(1, 6)))
    with pytest.raises(UserError, match="'q3.*a dog barks, then runs"):
        texts([tmp_path / "raw"], case)


def test_blanks_after_commas_are_no_part_of_names_or_quotes(tmp_path: Path) -> None:
    media(tmp_path / "raw", "a.mp4", "b.mp4")
    (tmp_path / "c.csv").write_text('id, text, split\na, "a dog, barking", train\nb, x, \n')
    table, _ = attach(pl.concat(list(scan([str(tmp_path / "raw")]))).lazy(), str(tmp_path / "c.csv"), tmp_path)
    assert table.select("id", "text", "split").collect().rows() == [("a", "a dog, barking", "train"), ("b", "x", None)]


@pytest.mark.parametrize("names", ["a.mp4 a.mov", "dog/0001.mp4 car/0001.mp4"])
def test_an_id_that_stands_for_two_inputs_is_an_error_that_names_both(names: str, tmp_path: Path) -> None:
    first, second = names.split()
    media(tmp_path / "raw", first, second, "b.mp4")
    (tmp_path / "c.csv").write_text(f"id,text\n{Path(first).stem},one\n{Path(first).stem},two\nb,x\n")
    with pytest.raises(UserError, match="stands for several inputs") as caught:
        texts([tmp_path / "raw"], tmp_path / "c.csv")
    assert first in str(caught.value) and second in str(caught.value)
    (tmp_path / "c.csv").write_text(f"relpath,text\n{first},one\n{second},two\n")
    assert texts([tmp_path / "raw"], tmp_path / "c.csv") == {first: "one", second: "two", "b.mp4": None}
    (tmp_path / "c.csv").write_text("id,text\nb,x\n")  # an id that nobody asks for may be there twice
    assert texts([tmp_path / "raw"], tmp_path / "c.csv")["b.mp4"] == "x"


def test_relpaths_that_two_roots_share_are_ambiguous_too(tmp_path: Path) -> None:
    for root in ("one", "two"):
        media(tmp_path / root, "a.mp4")
    (tmp_path / "c.csv").write_text("relpath,text\na.mp4,x\n")
    with pytest.raises(
        UserError, match=r"the relpath 'a.mp4' stands for several inputs \(.*one/a.mp4 and .*two/a.mp4\)"
    ):
        texts([tmp_path / "one", tmp_path / "two"], tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("path,text\none/a.mp4,x\ntwo/a.mp4,y\n")
    table = from_raw([str(tmp_path / "one"), str(tmp_path / "two")], captions=str(tmp_path / "c.csv"))(tmp_path)
    assert sorted(table.select("path", "text").collect()["text"]) == ["x", "y"]


def test_one_clip_in_two_splits_is_an_error(tmp_path: Path) -> None:
    media(tmp_path / "raw", "a.mp4")
    (tmp_path / "c.csv").write_text("id,text,split\na,x,train\na,y,val\n")
    with pytest.raises(UserError, match=r"id 'a' stands in several splits \(train, val\)"):
        texts([tmp_path / "raw"], tmp_path / "c.csv")


@pytest.mark.parametrize(
    "table", ["id,text\nz,x\n", "path,text\n/elsewhere/a.mp4,x\n", "relpath,text\nsub/a.mp4,x\n", "path,text\n"]
)
def test_captions_that_match_nothing_are_an_error(table: str, tmp_path: Path) -> None:
    media(tmp_path / "raw", "a.mp4")
    (tmp_path / "c.csv").write_text(table)
    with pytest.raises(
        UserError, match=r"c.csv(: none of its 1 rows belongs to an input: by \w+ it names '.*'| has no rows)"
    ):
        texts([tmp_path / "raw"], tmp_path / "c.csv")


def test_relative_paths_mean_the_same_in_lists_and_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the table's folder, or, not being there, from the working folder; with . and .. and // in them."""
    media(tmp_path / "tables", "a.mp4", "sub/b.mp4")
    media(tmp_path / "work", "c.mp4", "sub/b.mp4")
    media(tmp_path, "d.mp4")
    monkeypatch.chdir(tmp_path / "work")
    names = ["a.mp4", "./sub//b.mp4", "c.mp4", "../d.mp4"]
    table = tmp_path / "tables" / "t.csv"
    pl.DataFrame({"path": names, "text": ["A", "B", "C", "D"]}).write_csv(table)
    expected = {"a.mp4": "A", "sub/b.mp4": "B", "c.mp4": "C", "d.mp4": "D"}
    listed = {
        path.rsplit("tables/", 1)[-1].rsplit("/work/", 1)[-1].rsplit("/", 1)[-1]: text
        for path, text in texts([table]).items()
    }
    assert listed == {Path(name).name: text for name, text in expected.items()}
    (tmp_path / "tables" / "paths.txt").write_text("\n".join(names))
    by_list = from_raw([str(tmp_path / "tables" / "paths.txt")], captions=str(table))(tmp_path)
    assert sorted(by_list.select("text").collect()["text"]) == ["A", "B", "C", "D"]
    by_folder = texts([tmp_path / "tables"], table, tmp_path)
    assert by_folder == {"a.mp4": "A", "sub/b.mp4": "B"}


@pytest.mark.parametrize("column", ["text", "caption", "texts", "captions"])
@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "jsonl"])
def test_a_lists_own_words_win_over_any_file_beside(column: str, form: str, tmp_path: Path) -> None:
    media(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "a.txt").write_text("beside a")
    (tmp_path / "b.json").write_text('"beside b"')
    rows = [{"path": "a.mp4", column: "own, a"}, {"path": "b.mp4", column: None}]
    table = tmp_path / f"list.{form}"
    if form == "jsonl":
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "parquet":
        pl.DataFrame(rows).write_parquet(table)
    else:
        pl.DataFrame(rows).write_csv(table, separator="\t" if form == "tsv" else ",")
    assert texts([table]) == {"a.mp4": "own, a", "b.mp4": "beside b"}


def test_a_list_for_sounds_takes_the_sounds_own_file(tmp_path: Path) -> None:
    media(tmp_path, "a.mp4", "a.wav", "b.wav")
    (tmp_path / "a.wav").write_bytes(b"sound")
    (tmp_path / "l.csv").write_text("path,audio_path,text\na.mp4,a.wav,x\nb.wav,,y\n")
    table = from_raw([str(tmp_path / "l.csv")], suffixes=AUDIO_SUFFIXES)(tmp_path).collect()
    assert table.select("path", "audio_path", "source_bytes", "relpath").rows() == [
        (str(tmp_path / "a.wav"), None, 5, "a.mp4"),
        (str(tmp_path / "b.wav"), None, 1, "b.wav"),
    ]


def test_a_manifest_is_a_list(tmp_path: Path) -> None:
    media(tmp_path, "a.mp4")
    row = {"path": str(tmp_path / "a.mp4"), "relpath": "x/a.mp4", "audio_path": str(tmp_path / "a.mp4"), "text": "one",
           "texts": ["one", "two"], "clip_start": 1.0, "clip_end": None, "group": "film", "split": "val"}  # fmt: skip
    pl.DataFrame([row]).write_parquet(tmp_path / "manifest.parquet")
    found = pl.concat(list(scan([str(tmp_path / "manifest.parquet")]))).row(0, named=True)
    same = ("path", "relpath", "text", "texts", "group", "split")
    assert {name: found[name] for name in same} == {name: row[name] for name in same}
    assert (found["window_start"], found["window_end"], found["audio_path"]) == (1.0, None, None)


@pytest.mark.parametrize("suffix", [".txt", ".TXT", ".Json", ".JSON"])
@pytest.mark.parametrize("clip", ["CLIP.MP4", "clip.mp4", "c.l.i.p.mov"])
def test_a_caption_file_may_be_spelt_in_any_case(clip: str, suffix: str, tmp_path: Path) -> None:
    media(tmp_path / "raw", clip, "other.mp4")
    (tmp_path / "raw" / (Path(clip).stem + suffix)).write_text('"words"' if "J" in suffix else "words")
    assert texts([tmp_path / "raw"])[clip] == "words"
    assert texts([tmp_path / "raw" / clip]) == {clip: "words"}
    (tmp_path / "list.txt").write_text(f"raw/{clip}\n")
    assert list(texts([tmp_path / "list.txt"]).values()) == ["words"]


def test_two_videos_of_one_stem_share_their_caption(tmp_path: Path) -> None:
    media(tmp_path / "raw", "a.mp4", "a.MOV", "b.mp4")
    (tmp_path / "raw" / "a.txt").write_text("both")
    assert texts([tmp_path / "raw"]) == {"a.mp4": "both", "a.MOV": "both", "b.mp4": None}


def test_a_name_that_is_no_text_has_its_caption(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    stem = os.fsencode(tmp_path / "raw") + b"/\xff"
    for end, content in ((b".mp4", b"x"), (b".txt", b"words")):
        Path(os.fsdecode(stem + end)).write_bytes(content)
    assert texts([tmp_path / "raw"]) == {"\\xff.mp4": "words"}


NO_CAPTIONS = {
    "LRS3": "Text:  AND SO IT GOES\nConf:  4\n\nRef:  ab\nFRAME \tX \tY \tW \tH \n000000 \t0.3 \t0.3 \t0.1 \t0.2\n",
    "faces": "0 0.5 0.5 0.25 0.25\n1 0.1 0.2 0.3 0.4\n",
    "subtitles": "1\n00:00:01,000 --> 00:00:02,500\nHello\n",
    "vtt": "WEBVTT\n\n00:01.000 --> 00:02.500\nHello\n",
    "binary": "a\x00b",
    "nothing": " \n\n",
    "word": "None\n",
}


@pytest.mark.parametrize("name", NO_CAPTIONS)
def test_a_sidecar_that_is_no_caption_is_not_one_and_is_named(name: str, tmp_path: Path) -> None:
    media(tmp_path / "raw", "a.mp4")
    (tmp_path / "raw" / "a.txt").write_text(NO_CAPTIONS[name])
    assert texts([tmp_path / "raw"]) == {"a.mp4": None}
    _, report = attach(pl.concat(list(scan([str(tmp_path / "raw")]))).lazy(), None, tmp_path)
    assert report.unreadable == 1 and any("(a.txt " in line for line in report.lines())


def test_the_published_texts_of_lrs3_are_no_captions() -> None:
    with pytest.raises(NoCaption, match="LRS3"):
        read_sidecar(str(need(SHARED / "annotations" / "LRS3" / "00018.txt")))


def test_a_sidecar_that_cannot_be_read_is_no_absent_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store that says 403: nobody knows what the caption is, so nothing is built without it."""
    import fsspec

    monkeypatch.setenv("JAVISC_PATIENCE", "0.1")
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/refused/a.mp4", b"x")
    fs.pipe_file("/refused/a.txt", b"words")
    whole = type(fs)._open

    def refuse(self: object, path: str, *arguments: object, **more: object) -> object:
        if path.endswith(".txt"):
            raise PermissionError(13, "403 Forbidden", path)
        return whole(self, path, *arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(type(fs), "_open", refuse)
    with pytest.raises(UserError, match="a.txt") as caught:
        from_raw(["memory://refused"])(tmp_path)
    assert caught.value.exit_code == 1
    monkeypatch.undo()
    table = from_raw(["memory://refused"])(tmp_path)
    assert table.select("text").collect()["text"].to_list() == ["words"]


def test_a_sidecar_on_a_failing_disk_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from javisc.compiler.inputs import sidecars

    media(tmp_path / "raw", "a.mp4")
    (tmp_path / "raw" / "a.txt").write_text("words")
    monkeypatch.setenv("JAVISC_PATIENCE", "0.1")

    def fail(path: str) -> bytes:
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(sidecars, "_read", fail)
    with pytest.raises(UserError, match="Input/output error") as caught:
        texts([tmp_path / "raw"])
    assert caught.value.exit_code == 1


def test_rows_by_another_column_are_counted_as_unused(tmp_path: Path) -> None:
    frame = pl.DataFrame([{"path": "/a.mp4", "relpath": "a.mp4", "id": "a"}], SCAN_SCHEMA).lazy()
    (tmp_path / "c.jsonl").write_text(
        '{"id": "a", "text": "x"}\n{"relpath": "b.mp4", "text": "y"}\n{"id": "c", "text": "z"}\n'
    )
    _, report = attach(frame, str(tmp_path / "c.jsonl"), tmp_path)
    assert (report.captioned, report.unused) == (1, 2)

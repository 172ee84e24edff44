"""Captions from beside the files, from tables and from TAVGBench: joined, counted, and never invented."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from javisc.compiler.inputs.beside import CaptionReport
from javisc.compiler.inputs.captions import attach
from javisc.compiler.inputs.found import SCAN_SCHEMA
from javisc.compiler.inputs.local import scan
from javisc.compiler.inputs.sidecars import NoCaption, read_sidecar
from javisc.compiler.inputs.table import INPUT_SCHEMA
from javisc.manifests.errors import UserError

PRINTED = st.characters(exclude_categories=["Cs", "Cc"])
NAMES = ("a.mp4", "sub/b.mp4", "sub/c d.MP4", "other/b.mp4")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "raw" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name).write_bytes(b"x")
    return tmp_path / "raw"


def attached(
    raw: Path, spec: str | None, **more: bool
) -> tuple[dict[str, list[str] | None], CaptionReport, pl.DataFrame]:
    scratch = raw.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    table, report = attach(pl.concat(list(scan([str(raw)]))).lazy(), spec, scratch, **more)
    rows = table.collect()
    assert rows.schema == INPUT_SCHEMA
    assert rows["text"].to_list() == [texts[0] if texts else None for texts in rows["texts"].to_list()]
    return dict(rows.select("relpath", "texts").iter_rows()), report, rows


@pytest.mark.parametrize("column", ["id", "relpath", "path"])
@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl", "tsv"])
def test_a_table_is_joined_by_what_it_has(raw: Path, column: str, form: str) -> None:
    keys = {"id": ["a", "c d", "nobody"], "relpath": ["a.mp4", "sub/c d.MP4", "x.mp4"]}
    keys["path"] = [str(raw / name) for name in keys["relpath"]]
    table = pl.DataFrame(
        {column: keys[column], "caption": ['one, "two"', "drei\nvier", "lost"], "lang": ["en", "de", None]}
    )
    file = raw.parent / f"captions.{form}"
    if form in ("csv", "tsv"):
        table.write_csv(file, separator="," if form == "csv" else "\t")
    else:
        {"parquet": table.write_parquet, "jsonl": table.write_ndjson}[form](file)  # type: ignore[operator]
    texts, report, rows = attached(raw, str(file))
    assert texts == {"a.mp4": ['one, "two"'], "sub/b.mp4": None, "sub/c d.MP4": ["drei\nvier"], "other/b.mp4": None}
    assert (report.joined_by, report.captioned, report.without, report.unused) == (column, 2, 2, 1)
    assert rows.filter(pl.col("relpath") == "a.mp4")["lang"].to_list() == ["en"]
    assert "1 captions belong to no input" in report.lines()


def test_several_rows_and_lists_become_several_captions(raw: Path) -> None:
    lines = [
        {"id": "a", "text": "first"},
        {"id": "a", "texts": ["second", "third"]},
        {"id": "b.mp4", "captions": ["both"]},
    ]
    (raw / "other" / "b.mp4").unlink()
    (raw.parent / "c.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    texts, report, _ = attached(raw, str(raw.parent / "c.jsonl"))
    assert texts["a.mp4"] == ["first", "second", "third"]
    assert texts["sub/b.mp4"] == ["both"] and report.captioned == 2


def test_beside_the_file(raw: Path) -> None:
    (raw / "a.txt").write_text("\ufeffone line\n\n and another \n", encoding="utf-8")
    (raw / "sub" / "b.json").write_text('{"text": ["x", "y"], "other": 1}')
    (raw / "sub" / "c d.json").write_text("{broken")
    texts, report, _ = attached(raw, None)
    assert texts == {
        "a.mp4": ["one line", "and another"],
        "sub/b.mp4": ["x", "y"],
        "sub/c d.MP4": None,
        "other/b.mp4": None,
    }
    assert report.unreadable == 1
    assert any(
        "1 caption files hold no caption that can be read (c d.json is no JSON" in line for line in report.lines()
    )


def test_half_surrogates_become_question_marks(raw: Path) -> None:
    (raw.parent / "c.jsonl").write_text(r'{"id": "a", "text": "a \ud83d dog"}')
    (raw / "sub" / "b.json").write_text(r'{"text": "\udead"}')
    assert attached(raw, str(raw.parent / "c.jsonl"))[0]["a.mp4"] == ["a ? dog"]
    assert attached(raw, None)[0]["sub/b.mp4"] == ["?"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_tavgbench(raw: Path, mark: str) -> None:
    (raw / "vid_1_2.mp4").write_bytes(b"x")
    lines = ["vid_1_2.mp4 a train whistles, twice", "gone_0_1.mp4 nobody is there", "", "no caption here", "a.mp4 "]
    (raw.parent / "release_captions.txt").write_text(mark + "\n".join(lines))
    texts, report, _ = attached(raw, f"tavgbench:{raw.parent / 'release_captions.txt'}")
    assert texts["vid_1_2.mp4"] == ["a train whistles, twice"] and report.captioned == 1 and report.unused == 1


def test_required_captions_refuse_the_rest(raw: Path) -> None:
    (raw.parent / "c.csv").write_text("id,text\na,here\n")
    _, report, rows = attached(raw, str(raw.parent / "c.csv"), require=True)
    assert dict(rows.select("relpath", "refused").iter_rows()) == {
        "a.mp4": None,
        "sub/b.mp4": "no_caption",
        "sub/c d.MP4": "no_caption",
        "other/b.mp4": "no_caption",
    }
    assert report.without == 3


@pytest.mark.parametrize(
    ("content", "said"),
    [("name,text\na,b\n", "no column to join by"), ("id,label\na,b\n", "has no captions"), (None, "is not there")],
)
def test_an_unusable_table_is_one_line(raw: Path, content: str | None, said: str) -> None:
    if content is not None:
        (raw.parent / "c.csv").write_text(content)
    with pytest.raises(UserError, match=said):
        attached(raw, str(raw.parent / "c.csv"))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200), st.text(max_size=60).map(lambda text: json.dumps({"caption": text}).encode())
    )
)
def test_no_sidecar_breaks_the_build(tmp_path: Path, content: bytes) -> None:
    for suffix in (".txt", ".json"):
        (tmp_path / f"s{suffix}").write_bytes(content)
        try:
            texts = read_sidecar(str(tmp_path / f"s{suffix}"))
        except NoCaption as reason:
            assert str(reason)
        else:
            assert texts and all(text.strip() == text and text for text in texts)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(captions=st.dictionaries(st.sampled_from(["a", "b", "c d", "z"]), st.text(PRINTED, min_size=1)))
def test_csv_captions_arrive_as_they_were_written(tmp_path: Path, captions: dict[str, str]) -> None:
    """What the csv module reads from polars' writer is what was written, but for spaces at the ends and JSON lists."""
    captions = {key: text for key, text in captions.items() if text.strip() and not text.strip().startswith("[")}
    frame = pl.DataFrame(
        {"id": list(captions), "text": list(captions.values())}, schema={"id": pl.String, "text": pl.String}
    )
    assume(set(captions) & {"a", "b", "c d"})  # captions that match nothing are an error
    frame.write_csv(tmp_path / "c.csv")
    rows = pl.DataFrame(
        [{"path": f"/{name}", "relpath": name, "id": name} for name in ("a", "b", "c d")], schema=SCAN_SCHEMA
    )
    table, _ = attach(rows.lazy(), str(tmp_path / "c.csv"), tmp_path)
    texts = dict(table.collect().select("id", "text").iter_rows())
    assert texts == {name: captions[name].strip() if name in captions else None for name in ("a", "b", "c d")}


@pytest.mark.parametrize(
    "text, source", [("said", "the list of inputs and files beside them"), (None, "files beside the inputs")]
)
def test_where_captions_come_from_is_told(tmp_path: Path, text: str | None, source: str) -> None:
    """A list that has words of its own is named, in the log and in what is refused for having none."""
    (tmp_path / "raw").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "raw" / name).write_text("no film")
    rows = pl.concat(list(scan([str(tmp_path / "raw")])))
    rows = rows.with_columns(text=pl.when(pl.col("relpath") == "a.mp4").then(pl.lit(text)))
    table, report = attach(rows.lazy(), None, tmp_path, require=True)
    assert report.lines()[0].startswith(f"captions from {source}: {int(text is not None)} inputs have one")
    assert f"no caption in {source}" in table.collect()["refused_message"].to_list()

"""Each option of the commands over manifests once for real: bounds and choices against plain Python, the rest by their effect."""

from __future__ import annotations

import csv
import json
import operator
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import soundfile
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from javisc.cli import cli
from javisc.manifests.errors import UserError
from javisc.manifests.schema import MANIFEST_SCHEMA
from support.films import Films
from support.options.tables import BOUNDS
from support.tables import dataset, rows

#: What each bound of `filter` is about, written down here once more: the column, and on which side of the value a row is kept.
MEANING = {
    "min-frames": ("num_frames", operator.ge), "max-frames": ("num_frames", operator.le),
    "min-seconds": ("duration", operator.ge), "max-seconds": ("duration", operator.le),
    "min-fps": ("fps", operator.ge), "max-fps": ("fps", operator.le),
    "min-resolution": ("resolution", operator.ge), "max-resolution": ("resolution", operator.le),
    "min-height": ("height", operator.ge), "min-width": ("width", operator.ge),
    "min-aspect": ("aspect_ratio", operator.ge), "max-aspect": ("aspect_ratio", operator.le),
    "min-loudness": ("loudness", operator.ge), "max-loudness": ("loudness", operator.le),
    "min-bandwidth": ("bandwidth", operator.ge), "max-silence": ("silence_ratio", operator.le),
    "max-clipping": ("clipping_ratio", operator.le), "max-still": ("still_ratio", operator.le),
    "max-black": ("black_ratio", operator.le), "max-cuts": ("scene_cuts", operator.le), "min-motion": ("motion", operator.ge),
}  # fmt: skip


def run(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


def refused(*words: object) -> str:
    with pytest.raises(UserError) as caught:
        run(*words)
    return str(caught.value)


def read(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path if path.suffix == ".parquet" else path / "manifest.parquet")


def test_every_bound_has_its_meaning() -> None:
    assert set(MEANING) == set(BOUNDS)


@st.composite
def tables(draw: st.DrawFn, column: str) -> tuple[pl.DataFrame, float]:
    """A few rows with random values of a column, nulls among them, and a bound that is often one of the values."""
    kind = MANIFEST_SCHEMA[column]
    values = st.integers(0, 40) if kind.is_integer() else st.floats(-50, 50, width=32).map(float)
    cells = draw(st.lists(st.none() | values, min_size=1, max_size=12))
    known = [cell for cell in cells if cell is not None]
    bound = draw(st.sampled_from(known) if known else values)
    table = rows(len(cells)).with_columns(pl.Series(column, cells, kind, strict=False))
    return table, float(bound)


@pytest.mark.shows("filter", *(f"--{name}" for name in MEANING))
@pytest.mark.parametrize("name", MEANING)
@settings(max_examples=6)
@given(data=st.data())
def test_a_bound_keeps_what_plain_python_keeps(name: str, data: st.DataObject) -> None:
    column, side = MEANING[name]
    table, bound = data.draw(tables(column))
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "in.parquet"), Path(folder, "out.parquet")
        table.write_parquet(source)
        said = run("filter", source, f"--{name}={bound!r}", "--out", out)
        values = table[column].to_list()
        kept = [key for key, value in zip(table["key"], values) if value is not None and side(value, bound)]
        assert read(out)["key"].to_list() == kept
        unknown = values.count(None)
        assert (f"{unknown} of them have no value" in said) == (unknown > 0)
        assert f"{len(kept)} of {table.height} kept" in said


@pytest.mark.shows(
    "filter", "SOURCE", "EXPRESSIONS", "--no-silent", "--no-still", "--lang", "--corpus", "--split", "--out"
)
@settings(max_examples=15)
@given(data=st.data())
def test_flags_choices_and_expressions_keep_what_plain_python_keeps(data: st.DataObject) -> None:
    table = rows(30, seed=data.draw(st.integers(0, 50)))
    flags = data.draw(st.sets(st.sampled_from(["silent", "still"])))
    chosen = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "lang": st.lists(st.sampled_from(["en", "de", "fr"]), min_size=1, max_size=2, unique=True),
                "corpus": st.lists(st.sampled_from(["tavgbench", "vggsound"]), min_size=1, max_size=2, unique=True),
                "split": st.lists(st.sampled_from(["train", "val", "test"]), min_size=1, max_size=2, unique=True),
            },
        )
    )
    least = data.draw(st.integers(0, 500))
    words: list[Any] = [f"--no-{flag}" for flag in flags]
    words += [word for name, values in chosen.items() for value in values for word in (f"--{name}", value)]
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "in.parquet"), Path(folder, "out.parquet")
        table.write_parquet(source)
        run("filter", source, f"num_frames > {least}", *words, "--out", out)
        kept = [
            row["key"]
            for row in table.iter_rows(named=True)
            if row["num_frames"] > least
            and not any(row[flag] for flag in flags)
            and all(row[name] in values for name, values in chosen.items())
        ]
        assert read(out)["key"].to_list() == kept


@pytest.mark.shows("split", "INPUTS", "--ratios", "--seed", "--by", "--out")
def test_split_gives_each_name_its_share(tmp_path: Path) -> None:
    table = rows(2000).with_columns((pl.int_range(pl.len()) // 5).cast(pl.String).alias("label"))
    table.write_parquet(tmp_path / "in.parquet")
    run("split", tmp_path / "in.parquet", "--ratios", "a=0.7,b=0.25,c=0.05", "--out", tmp_path / "one")
    one = read(tmp_path / "one")
    shares = dict(one["split"].value_counts(normalize=True).iter_rows())
    assert all(abs(shares[name] - share) < 0.04 for name, share in (("a", 0.7), ("b", 0.25), ("c", 0.05))), shares
    run("split", tmp_path / "in.parquet", "--ratios", "a=0.7,b=0.25,c=0.05", "--seed", 4, "--out", tmp_path / "two")
    assert read(tmp_path / "two")["split"].to_list() != one["split"].to_list()
    run("split", tmp_path / "in.parquet", "--ratios", "a=0.5,b=0.5", "--by", "label", "--out", tmp_path / "three")
    torn = read(tmp_path / "three").group_by("label").agg(pl.col("split").n_unique())
    assert set(torn["split"]) == {1} and one.group_by("label").agg(pl.col("split").n_unique())["split"].max() > 1


WRITERS = {
    "merge": ["merge", "{a}", "{b}"],
    "filter": ["filter", "{a}", "num_frames >= 0"],
    "dedupe": ["dedupe", "{a}"],
    "split": ["split", "{a}", "--ratios", "a=0.5,b=0.5"],
}


@pytest.mark.shows("merge", "INPUTS", "--out", "--relative", "--force")
@pytest.mark.shows("filter", "--relative", "--force")
@pytest.mark.shows("dedupe", "INPUTS", "--out", "--relative", "--force")
@pytest.mark.shows("split", "--relative", "--force")
@pytest.mark.parametrize("command", WRITERS)
def test_views_are_written_where_how_and_over_what_is_asked(tmp_path: Path, command: str) -> None:
    a, b = dataset(tmp_path / "here/a", rows(8)), dataset(tmp_path / "here/b", rows(8, seed=1))
    words = [word.format(a=a, b=b) for word in WRITERS[command]]
    out = tmp_path / "here/view"
    run(*words, "--out", out)
    whole = read(out)
    homes = {key: home for home in (a, b) for key in read(home)["key"]}
    assert len(homes) == 16 and whole.height
    assert whole["dataset"].to_list() == [str(homes[key]) for key in whole["key"]]
    assert "--force" in refused(*words, "--out", out)
    run(*words, "--out", out, "--relative", "--force")
    again = read(out)
    assert again["key"].to_list() == whole["key"].to_list()
    assert again["dataset"].to_list() == [f"../{homes[key].name}" for key in again["key"]]
    moved = Path(shutil.move(tmp_path / "here", tmp_path / "there"))
    assert json.loads(run("stats", moved / "view", "--json"))["total"]["samples"] == whole.height


@pytest.mark.shows("merge", "--on-duplicate")
def test_keys_that_two_datasets_share(tmp_path: Path) -> None:
    a = dataset(tmp_path / "a", rows(6))
    b = dataset(tmp_path / "b", rows(6).with_columns(text=pl.lit("of b")))
    assert "--on-duplicate" in refused("merge", a, b, "--out", tmp_path / "m")
    said = run("merge", a, b, "--out", tmp_path / "first", "--on-duplicate", "first")
    assert "6 samples of 2 inputs" in said and "(6 repeated rows left out)" in said
    said = run("merge", a, b, "--out", tmp_path / "keep", "--on-duplicate", "keep")
    assert "12 samples of 2 inputs" in said and "repeated" not in said
    assert read(tmp_path / "first")["text"].to_list() == rows(6)["text"].to_list()
    assert read(tmp_path / "keep")["text"].to_list() == [*rows(6)["text"], *["of b"] * 6]


@pytest.mark.shows("stats", "INPUTS", "--by", "--json")
def test_stats_count_by_what_is_asked(tmp_path: Path) -> None:
    table = rows(50)
    a = dataset(tmp_path / "a", table)
    told = json.loads(run("stats", a, "--json", "--by", "lang", "--by", "split"))
    found = {(row["lang"], row["split"]): row["samples"] for row in told["groups"]}
    plain: dict[tuple[str, str], int] = {}
    for pair in table.select("lang", "split").iter_rows():
        plain[pair] = plain.get(pair, 0) + 1
    assert found == plain
    assert {tuple(row)[:2] for row in json.loads(run("stats", a, "--json"))["groups"]} == {("corpus", "split")}


def test_stats_print_what_they_counted(tmp_path: Path) -> None:
    table = rows(4, corpus="c", split="train", duration=1800.0, mp4_size=1_500_000_000, flac_size=250_000_000)
    table.with_columns(
        text=pl.Series(["a", "b", "c", None]),
        texts=pl.lit(None, pl.List(pl.String)),
        silent=pl.Series([True, False, False, None]),
        still=pl.Series([True, True, False, False]),
    ).write_parquet(tmp_path / "t.parquet")
    lines = [re.findall(r"[\w.%]+", line) for line in run("stats", tmp_path / "t.parquet").splitlines()]
    numbers = ["4", "2.0", "7.00", "75.0%", "25.0%", "50.0%"]
    assert ["c", "train", *numbers] in lines and numbers in lines, lines


@pytest.mark.shows("export", "INPUTS", "--csv", "--kind", "--media", "--audio-format", "--allow-no-caption")
def test_export_writes_the_table_and_the_media_that_are_asked_for(films: Films, tmp_path: Path) -> None:
    def exported(name: str, *words: object) -> list[dict[str, str]]:
        run("export", films.dataset, "--csv", tmp_path / name, *words)
        with (tmp_path / name).open(newline="") as file:
            return list(csv.DictReader(file))

    plain = exported("jav.csv")
    given = {text for text in films.given.values() if text}
    assert {row["text"] for row in plain} == given
    assert {row["path"] for row in plain} == {str(films.raw / name) for name, text in films.given.items() if text}
    assert len(exported("all.csv", "--allow-no-caption")) == 6
    sounds = exported("audio.csv", "--kind", "audio")
    assert set(sounds[0]) - set(plain[0]) == {"audio_text"} and {row["audio_text"] for row in sounds} == given
    assert "unpaired_audio_path" in exported("prior.csv", "--kind", "prior")[0]
    for end in ("flac", "wav"):
        media = tmp_path / end
        for row in exported(f"{end}.csv", "--media", media, "--audio-format", end):
            assert Path(row["path"]).parent.is_relative_to(media) and Path(row["path"]).read_bytes()[4:8] == b"ftyp"
            assert row["audio_path"].endswith(end) and soundfile.info(row["audio_path"]).format == end.upper()


def test_export_says_what_it_left_out_and_why(tmp_path: Path) -> None:
    table = rows(6).with_columns(
        text=pl.Series([None, None, "c", "d", "e", "f"]), num_frames=pl.Series([9, 9, 9, 0, 9, 9], dtype=pl.Int32)
    )
    table.write_parquet(tmp_path / "t.parquet")

    def lines(*words: object) -> list[str]:
        said = run("export", tmp_path / "t.parquet", "--csv", tmp_path / "t.csv", *words)
        return [line.split(" (")[0] for line in said.splitlines() if "rows" in line]

    none, few = "1 rows left out: without sound or picture", "2 rows left out: without a caption"
    assert lines() == [f"3 rows → {tmp_path / 't.csv'}", none, few]
    assert lines("--allow-no-caption") == [f"5 rows → {tmp_path / 't.csv'}", none]


@pytest.mark.shows("import", "--csv", "--out", "--root")
def test_import_gathers_tables_below_a_root(films: Films, tmp_path: Path) -> None:
    for name, path in (("a", "a dog.mp4"), ("b", "rain.mov")):
        (tmp_path / f"{name}.csv").write_text(f"path,text\n{path},{name} says\n")
    tables = ["--csv", tmp_path / "a.csv", "--csv", tmp_path / "b.csv"]
    said = run("import", *tables, "--root", films.raw, "--out", tmp_path / "l.parquet")
    assert "2 inputs" in said
    found = dict(pl.read_parquet(tmp_path / "l.parquet").select("path", "text").iter_rows())
    assert found == {str(films.raw / "a dog.mp4"): "a says", str(films.raw / "rain.mov"): "b says"}


@pytest.mark.shows("dedupe", "--groups", "--rule")
def test_repeats_are_grouped_and_the_rule_says_who_stays(tmp_path: Path) -> None:
    table = rows(6).with_columns(
        source_sha256=pl.Series(["a" * 64, "a" * 64, "a" * 64, "b" * 64, "c" * 64, "c" * 64]),
        split=pl.Series(["train", "test", "train", "train", "train", "train"]),
        flac_size=pl.lit(7, pl.Int64), mp4_size=pl.lit(9, pl.Int64),
    )  # fmt: skip
    a = dataset(tmp_path / "a", table)
    keys = table["key"].to_list()
    said = run("dedupe", a, "--out", tmp_path / "one", "--groups", tmp_path / "g.parquet")
    assert "3 of 6 samples kept" in said
    assert read(tmp_path / "one")["key"].to_list() == [keys[1], keys[3], keys[4]], (
        "the test row stays, and one of each group"
    )
    assert pl.read_parquet(tmp_path / "g.parquet").height == 5
    run("dedupe", a, "--out", tmp_path / "leaks", "--rule", "leaks")
    assert read(tmp_path / "leaks")["key"].to_list() == [keys[1], *keys[3:]], (
        "only training rows that repeat a test row go"
    )


@pytest.mark.shows("report", "SOURCE", "--out", "--samples")
def test_report_writes_the_page_where_and_with_what_is_asked(films: Films, tmp_path: Path) -> None:
    run("report", films.dataset, "--out", tmp_path / "none", "--samples", 0)
    run("report", films.dataset, "--out", tmp_path / "two", "--samples", 2)
    pages = {name: (tmp_path / name / "index.html").read_text() for name in ("none", "two")}
    assert pages["none"].count("<video") == 0 and pages["two"].count("<video") == 2
    assert "not_media" in pages["none"] and not (films.dataset / "report").exists()

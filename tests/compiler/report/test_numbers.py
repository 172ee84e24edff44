"""What the page says is what the tables hold: every tile, every chart's column, and which samples are shown."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import polars as pl
import pytest

from javisc.compiler.report.charts import Bars, compact
from javisc.compiler.report.data import Summary, gather
from javisc.compiler.report.page import _bytes, _time, page
from javisc.manifests.io import Dataset
from javisc.manifests.schema import REJECTED_SCHEMA
from support.tables import dataset, rows

#: A value for each column that a chart shows, and the chart: no two of one unit fall into one bar.
SHOWN = {
    "Duration": ("duration", 7.25), "Source frame rate": ("source_fps", 29.97), "Loudness": ("loudness", -31.5),
    "Silence": ("silence_ratio", 0.93), "Still picture": ("still_ratio", 0.41), "Black picture": ("black_ratio", 0.07),
    "Damaged pictures": ("damaged_pictures", 0.22), "Damaged sound": ("damaged_sound", 0.33),
    "Missing tail": ("missing_tail", 0.62), "Wobble of the sound's time stamps": ("audio_wobble_ms", 3.0),
    "Sound stretched to follow its time stamps": ("audio_stretched_ms", 50.0),
    "Sound filled in or cut at leaps": ("audio_repaired_ms", 700.0), "Sound bandwidth": ("bandwidth", 6100.0),
    "Motion": ("motion", 0.015),
}  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, Summary]:
    """100 rows, of which 25 have no caption, 10 are silent and 3 still, 4 refusals, and what the report gathers of them."""
    number = pl.int_range(pl.len())
    values = dict(SHOWN.values())
    words = {"label": "a bark", "source_video_codec": "vp9", "source_audio_codec": "opus"}
    table = rows(100, corpus="c", split="train", height=480, width=1280, mp4_size=7, flac_size=5, **values, **words)
    captions = pl.when(number % 4 != 0).then(pl.lit("a dog barks at cars"))
    table = table.with_columns(
        text=captions, texts=pl.lit(None, pl.List(pl.String)), silent=number < 10, still=number >= 97
    )
    refused = [dict.fromkeys(REJECTED_SCHEMA) | {"path": f"/raw/{n}", "key": f"r{n}", "reason": why}
               for n, why in enumerate(("corrupt", "corrupt", "corrupt", "too_short"))]  # fmt: skip
    made = dataset(tmp_path_factory.mktemp("numbers") / "DS", table, pl.DataFrame(refused, REJECTED_SCHEMA))
    return table, gather(Dataset.open(made), 4)


def filled(bars: Bars) -> tuple[float | str, float | str]:
    """The ends of the one bar that holds all; of a bar without numbers its name."""
    (place,) = (place for place, count in enumerate(bars.counts) if count)
    if bars.edges is None:
        return bars.names[place], bars.names[place]
    return bars.edges[place], bars.edges[place + 1]


def test_every_chart_counts_the_column_that_its_title_names(told: tuple[pl.DataFrame, Summary]) -> None:
    charts = {bars.title: bars for bars in told[1].charts}
    assert set(charts) == {*SHOWN, "Picture size", "Caption length"}
    assert filled(charts["Source frame rate"])[0] == "30" and filled(charts["Picture size"])[0] == "480+"
    assert (sum(charts["Caption length"].counts), charts["Caption length"].unknown) == (75, 25)
    for title, (_, value) in SHOWN.items():
        assert sum(charts[title].counts) == 100 and charts[title].unknown == 0, title
        low, high = filled(charts[title])
        assert title == "Source frame rate" or float(low) <= value <= float(high), title


def test_every_tile_says_what_was_counted(told: tuple[pl.DataFrame, Summary]) -> None:
    text = page(told[1], ["not shown"] * 4)
    tiles = {
        name: (value, html.unescape(note))
        for name, value, note in re.findall(r"<dt>([^<]+)</dt><dd>([^<]*)<small>([^<]*)</small>", text)
    }
    assert tiles["Samples"] == ("100", "in 1 shard")
    assert tiles["Duration"] == ("12.1 min", "7.2 s on average")
    assert tiles["With caption"] == ("75.0%", "25 without")
    assert tiles["Silent or still"] == ("13", "10 silent, 3 still")
    assert tiles["Size"] == ("1.2 kB", "5.96 kB per hour")
    assert tiles["Rejected"] == ("4", "3.8% of the inputs")
    assert [(reason.code, reason.count, reason.path) for reason in told[1].reasons] == [
        ("corrupt", 3, "/raw/0"), ("too_short", 1, "/raw/3")
    ]  # fmt: skip


def test_the_samples_are_spread_over_the_whole(told: tuple[pl.DataFrame, Summary]) -> None:
    table, summary = told
    assert [row["key"] for row in summary.samples] == [table["key"][place] for place in (12, 37, 62, 87)]


def test_a_card_and_a_group_say_their_own_columns(told: tuple[pl.DataFrame, Summary]) -> None:
    text = page(told[1], ["not shown"] * 4)
    cards = re.findall(r"<dt>([^<]+)</dt><dd>([^<]*)</dd>", text)
    first = dict(cards[: len(cards) // 4])
    row = told[0].row(12, named=True)
    assert first == {
        "key": row["key"], "shard": "000000", "corpus": "c", "split": "train", "label": "a bark", "length": "7.25 s",
        "frames": f"{row['num_frames']:,}", "picture": "1280×480", "source": "vp9 opus", "source rate": "29.97 fps",
        "loudness": "-31.5 LUFS", "silence": "93%", "still": "41%",
    }  # fmt: skip
    groups = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", text[text.index(">c</t") - 20 :])[:8]
    assert groups == ["c", "train", "100", "12.1 min", "1.2 kB", "75.0%", "10.0%", "3.0%"]


@pytest.mark.parametrize(
    ("said", "values"),
    [
        (_bytes, {1500: "1.5 kB", 2e6: "2 MB", 3.25e9: "3.25 GB", 4e12: "4 TB", 5e15: "5e+03 TB"}),
        (_time, {0.02: "1.2 min", 0.5: "30.0 min", 1: "1.0 h", 1234.5: "1,234.5 h"}),
        (compact, {0: "0", 950: "950", 12_000: "12k", 3.4e6: "3.4M", -2e9: "-2B", 0.125: "0.125"}),
    ],
)
def test_units(said: Callable[[float], str], values: dict[float, str]) -> None:
    assert {value: said(value) for value in values} == values

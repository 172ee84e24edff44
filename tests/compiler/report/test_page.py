"""The report in a browser: it plays, it shows hostile text as text, it fits a phone, and it asks for nothing from elsewhere."""

from __future__ import annotations

import functools
import http.server
import io
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import av
import jinja2
import numpy as np
import polars as pl
import pytest
import soundfile

from javisc.compiler import report as report_package
from javisc.compiler.report import report
from javisc.compiler.report.charts import Bars, draw, nice_edges, nice_step
from javisc.compiler.report.page import template
from javisc.manifests.errors import UserError
from javisc.manifests.schema import REJECTED_SCHEMA
from support.browser import Browser
from support.tables import clip, dataset, real_dataset, rows

HOSTILE = [
    "<script>window.hacked = 1; alert(1)</script>",
    '"><img src=x onerror="window.hacked=1">',
    "</title></style><svg onload=alert(1)>",
    "javascript:alert(1) ' onmouseover='alert(1)",
    "nul \x00 and \ud7ff 日本語 \u202e right to left " + "w" * 5000,
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of a dataset of two tiny clips whose every text is hostile."""
    folder = tmp_path_factory.mktemp("report") / "DS <b>&"
    ds = real_dataset(folder, [clip(1.5, seed=1), clip(1.0, seed=2, size=(48, 80))], per_shard=1)
    texts = {name: HOSTILE[i % 4] for i, name in enumerate(("label", "corpus", "lang", "source_video_codec"))}
    table = pl.read_parquet(ds / "manifest.parquet").with_columns(
        pl.lit(text).alias(name) for name, text in texts.items()
    )
    table = table.with_columns(pl.Series("text", HOSTILE[:2]), pl.Series("texts", [HOSTILE, HOSTILE]))
    table.write_parquet(ds / "manifest.parquet")
    refused = [
        {"path": text, "relpath": text, "key": "k", "reason": "corrupt", "message": text, "source_bytes": 1}
        for text in HOSTILE
    ]
    pl.DataFrame([*refused, {**refused[0], "reason": HOSTILE[0]}], schema=REJECTED_SCHEMA).write_parquet(
        ds / "rejected.parquet"
    )
    report(str(ds), samples=2)
    return ds / "report"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(scope="module")
def served(made: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(made)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()


PLAY = """(async () => {
    const video = document.querySelectorAll('video')[%d];
    video.muted = true;
    await video.play();
    for (let i = 0; i < 200 && video.currentTime < 0.3; i++) await new Promise(r => setTimeout(r, 50));
    const decoded = [video.webkitAudioDecodedByteCount, video.webkitDecodedFrameCount];
    const told = [video.currentTime, video.videoWidth, ...decoded, video.duration];
    video.pause();
    return told;
})()"""


@pytest.mark.parametrize("where", ["disk", "server"])
def test_samples_play_with_sound_and_the_page_complains_of_nothing(
    made: Path, browser: Browser, served: str, where: str
) -> None:
    browser.problems.clear()
    browser.requests.clear()
    browser.open((made / "index.html").as_uri() if where == "disk" else served)
    for index, (width, seconds) in enumerate([(64, 1.5), (48, 1.0)]):
        now, shown, sound, frames, length = browser.run(PLAY % index)
        assert now >= 0.3 and shown == width and sound > 0 and frames > 0
        assert abs(length - seconds) < 0.1
    assert browser.run("[...document.images].every(image => { image.loading = 'eager'; return true })")
    assert (
        browser.run("Promise.all([...document.images].map(image => image.decode())).then(() => document.images.length)")
        == 4
    )
    assert browser.problems == []
    root = made.as_uri() if where == "disk" else served.rpartition("/")[0]
    assert all(url.startswith((root, "data:")) for url in browser.requests), browser.requests


def test_hostile_text_is_text(made: Path, browser: Browser) -> None:
    browser.problems.clear()
    browser.open((made / "index.html").as_uri())
    assert browser.run("window.hacked === undefined")
    assert browser.run("document.querySelectorAll('script, iframe, object, embed, form, base').length") == 0
    assert browser.run(
        "[...document.querySelectorAll('*')].every(e => [...e.attributes].every(a => !a.name.startsWith('on')))"
    )
    assert browser.run("document.querySelector('.caption').textContent") == HOSTILE[0]
    assert browser.run("document.querySelector('h1').textContent") == "DS <b>&"
    assert browser.problems == []
    # And if something did slip through: the policy of the page runs no script.
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hacked=1\">')")
    browser.run("new Promise(r => setTimeout(r, 200))")
    assert browser.run("window.hacked === undefined")
    assert any("Content Security Policy" in problem for problem in browser.problems)


@pytest.mark.parametrize("width", [320, 390, 768, 1600])
def test_no_width_scrolls_sideways(made: Path, browser: Browser, width: int) -> None:
    browser.open((made / "index.html").as_uri(), width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width


def contrast(browser: Browser, selector: str) -> float:
    """WCAG 2's contrast ratio of an element's text to the page's or card's background."""
    script = f"""(() => {{ let e = document.querySelector('{selector}'); const ink = getComputedStyle(e).color;
        while (e && getComputedStyle(e).backgroundColor === 'rgba(0, 0, 0, 0)') e = e.parentElement;
        return [ink, getComputedStyle(e).backgroundColor]; }})()"""
    levels = []
    for colour in browser.run(script):
        channels = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        levels.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(levels) + 0.05) / (min(levels) + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_light_and_dark(made: Path, browser: Browser, dark: bool) -> None:
    browser.open((made / "index.html").as_uri(), dark=dark)
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in re.findall(r"\d+", background)[:3]) < 384) is dark
    for selector in ("body", ".quiet", "nav a", ".reason", ".warn dd", ".facts dt", "figcaption", "footer", "summary"):
        assert contrast(browser, selector) >= 4.5, selector


class Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if tag not in ("meta", "img", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_bounded(tmp_path: Path) -> None:
    table = pl.concat([rows(1000)] * 10).with_columns(pl.int_range(pl.len()).cast(pl.String).alias("corpus"))
    table = table.with_columns(
        pl.lit("word " * 300).alias("text"),
        pl.lit(None, pl.Int64).alias("mp4_size"),
        pl.lit(None, pl.Int64).alias("flac_size"),
    )
    ds = dataset(tmp_path / "ds", table)
    done = report(str(ds), samples=5)
    assert (done.samples, done.broken) == (5, 5)  # there are no media: each card says so
    text = done.page.read_text()
    assert len(text) < 200_000
    assert text.count("cannot be shown") == 5 and "9,960 smaller groups are not shown" in text and "10,000" in text
    parser = Balanced()
    parser.feed(text)
    assert parser.open == [] and "script" not in parser.names


def test_a_broken_sample_is_shown_as_such_and_old_files_go(tmp_path: Path) -> None:
    ds = real_dataset(tmp_path / "ds", [clip(0.5, seed=seed) for seed in range(4)], per_shard=4)
    assert report(str(ds), samples=4).broken == 0
    assert len(list((ds / "report/media").iterdir())) == 16
    (ds / "report/media/notes.txt").write_text("mine")
    shard = ds / "shards/000000.tar"
    content = bytearray(shard.read_bytes())
    row = pl.read_parquet(ds / "manifest.parquet").row(1, named=True)
    content[row["mp4_offset"] : row["mp4_offset"] + row["mp4_size"]] = bytes(row["mp4_size"])
    shard.write_bytes(content)
    assert report(str(ds), samples=2).broken == 1  # rows 1 and 3
    left = sorted(path.name for path in (ds / "report/media").iterdir())
    assert len(left) == 5 and "notes.txt" in left


def test_the_playable_clip_is_the_sample(tmp_path: Path) -> None:
    mp4, flac = clip(2.0, seed=3)
    ds = real_dataset(tmp_path / "ds", [(mp4, flac)])
    report(str(ds), samples=1)
    (played,) = (ds / "report/media").glob("*.mp4")
    with av.open(str(played)) as one, av.open(io.BytesIO(mp4)) as other:
        assert one.streams.video[0].codec_context.name == "h264" and one.streams.audio[0].codec_context.name == "aac"
        for mine, theirs in zip(one.decode(video=0), other.decode(video=0), strict=True):
            assert mine.time == pytest.approx(theirs.time, abs=1e-3)
            np.testing.assert_array_equal(mine.to_ndarray(), theirs.to_ndarray())
    with av.open(str(played)) as one:
        sound = np.concatenate([frame.to_ndarray()[0] for frame in one.decode(audio=0)])
    reference = soundfile.read(io.BytesIO(flac), dtype="float32")[0]
    sound = sound[: len(reference)]
    lags = range(-320, 321, 4)
    fits = [float(np.dot(np.roll(sound, lag), reference[: len(sound)])) for lag in lags]
    assert abs(lags[int(np.argmax(fits))]) <= 16  # one millisecond: the encoder's delay is undone
    assert np.corrcoef(sound, reference[: len(sound)])[0, 1] > 0.99


def test_what_is_no_dataset_or_report_is_refused(tmp_path: Path) -> None:
    rows(2).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="--out"):
        report(str(tmp_path / "t.parquet"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").touch()
    with pytest.raises(UserError, match=r"thesis.tex, which is no report's"):
        report(str(tmp_path / "t.parquet"), str(tmp_path / "full"))
    (tmp_path / "site").mkdir()
    (tmp_path / "site/index.html").write_text("<title>my javisc report of reports</title>")
    with pytest.raises(UserError, match=r"index.html, which is no report's"):
        report(str(tmp_path / "t.parquet"), str(tmp_path / "site"))


def test_an_empty_dataset_has_a_report(tmp_path: Path) -> None:
    done = report(str(dataset(tmp_path / "ds", rows(0))))
    assert done.samples == 0 and "No samples to show." in done.page.read_text()


def test_the_template_escapes_whatever_it_prints() -> None:
    shown = template("page.html").environment.from_string('<p class="{{ a }}">{{ b }}{{ c }}{{ empty }}</p>')
    assert shown.render(a='"x', b="<b>&'", c="\x00\x1b\ud800", empty=None) == (
        '<p class="&#34;x">&lt;b&gt;&amp;&#39;\ufffd\ufffd?</p>'
    )
    with pytest.raises(jinja2.UndefinedError):
        shown.render(a="a name that is missing is an error")
    source = (Path(report_package.__file__).parent / "page.html").read_text()
    assert re.findall(r"\w+ \| safe", source) == ["style | safe"], "nothing of a dataset may be marked safe"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.003), (-60, 0), (3.2, 97.1), (0, 1e7), (5, 5)])
def test_edges_are_round_and_cover(low: float, high: float) -> None:
    edges = nice_edges(low, high, 20)
    assert edges[0] <= low and edges[-1] >= high and 2 <= len(edges) <= 22
    assert nice_step(max(high - low, 0), 20) > 0
    drawn = draw(Bars("T", "u", [str(e) for e in edges[1:]], [1] * (len(edges) - 1), edges))
    assert len(drawn.bars) == len(edges) - 1 and drawn.total == len(edges) - 1

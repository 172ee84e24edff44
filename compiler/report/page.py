"""The page: one file without scripts, its style inside, everything from the dataset escaped by `markup`."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from javisc.compiler.reasons import REASONS
from javisc.compiler.report.charts import chart, compact
from javisc.compiler.report.data import Reason, Summary
from javisc.compiler.report.markup import Markup, raw, tag
from javisc.compiler.report.media import Preview

MAX_CAPTION = 1000
MAX_CAPTIONS = 8
MAX_SETTINGS = 80
#: Pictures of more samples than this load as they come into view.
EAGER = 24
MEDIA = "media"


def page(summary: Summary, previews: Sequence[Preview | str]) -> str:
    """The whole page. `previews` go with `summary.samples`; a text in place of one says why the sample cannot be shown."""
    style = importlib.resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = "; ".join(
        (
            "default-src 'none'",
            "img-src 'self' data:",
            "media-src 'self'",
            f"style-src 'sha256-{digest}'",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", f"{summary.name} – javisc report"),
        tag("link", rel="icon", href="data:,"),
        tag("style", raw(style)),
    )
    sections = [
        _section("corpora", "Corpora", _groups(summary)),
        _section(
            "distributions", "Distributions", tag("div", [chart(bars) for bars in summary.charts], class_="charts")
        )
        if summary.charts
        else None,
        _section("rejects", "Rejected inputs", _rejects(summary)),
        _section("samples", "Samples", _samples(summary, previews)),
        _section("recipe", "Recipe", _recipe(summary.header)) if summary.header.get("recipe") else None,
    ]
    body = tag(
        "body",
        _header(summary),
        tag("main", sections),
        tag("footer", "Made by javisc from the dataset's tables alone. No scripts, nothing loaded from elsewhere."),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _section(name: str, title: str, content: Markup) -> Markup:
    return tag("section", tag("h2", title), content, id=name, aria_label=title)


def _header(summary: Summary) -> Markup:
    total, rejected = summary.total, summary.rejected
    inputs = total["samples"] + rejected
    hours = total["hours"]
    tiles = [
        ("Samples", f"{total['samples']:,}", f"in {summary.shards:,} shard{'s' if summary.shards != 1 else ''}", False),
        ("Duration", _time(hours), f"{3600 * hours / max(1, total['samples']):.1f} s on average", False),
        (
            "Size",
            _bytes(total["bytes"]),
            f"{_bytes(total['bytes'] / max(1e-9, hours))} per hour" if hours else "",
            False,
        ),
        (
            "With caption",
            _share(total["captioned"], total["samples"]),
            f"{total['samples'] - total['captioned']:,} without",
            False,
        ),
        (
            "Silent or still",
            f"{total['silent'] + total['still']:,}",
            f"{total['silent']:,} silent, {total['still']:,} still",
            False,
        ),
        ("Rejected", f"{rejected:,}", f"{_share(rejected, inputs)} of the inputs", rejected > 0),
    ]
    cells = [
        tag("div", tag("dt", name), tag("dd", value, tag("small", note)), class_="warn" if warn else None)
        for name, value, note, warn in tiles
    ]
    links = [
        ("corpora", "Corpora"),
        ("distributions", "Distributions"),
        ("rejects", "Rejected inputs"),
        ("samples", "Samples"),
    ]
    made = "view of several datasets" if "datasets" in summary.header else _recipe_line(summary.header)
    return tag(
        "header",
        tag("p", "javisc dataset report", class_="made"),
        tag("h1", summary.name),
        tag("p", made, class_="made"),
        tag("nav", [tag("a", text, href=f"#{name}") for name, text in links], aria_label="Sections"),
        tag("dl", cells, class_="tiles"),
    )


def _recipe_line(header: Mapping[str, Any]) -> str:
    recipe = header.get("recipe")
    if not isinstance(recipe, dict):
        return "table"
    named = [f"recipe {recipe['name']}"] if isinstance(recipe.get("name"), str) else []
    for key, unit in (("fps", "fps"), ("sample_rate", "Hz"), ("channels", "ch")):
        if isinstance(recipe.get(key), str | int | float):
            named.append(f"{recipe[key]} {unit}")
    return " · ".join(named)[:200]


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:,.1f} min"


def _bytes(size: float) -> str:
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= limit:
            return f"{size / limit:.3g} {unit}"
    return f"{size / 1e3:.3g} kB"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


def _groups(summary: Summary) -> Markup:
    names = ("Corpus", "Split", "Samples", "Duration", "Size", "With caption", "Silent", "Still")
    head = tag("tr", [tag("th", name, scope="col", class_="right" if i > 1 else None) for i, name in enumerate(names)])

    def line(first: str, second: str, row: Mapping[str, Any], class_: str | None = None) -> Markup:
        count = row["samples"]
        numbers = [
            f"{count:,}",
            _time(row["hours"]),
            _bytes(row["bytes"]),
            *(_share(row[name], count) for name in ("captioned", "silent", "still")),
        ]
        return tag(
            "tr",
            tag("th", first, scope="row"),
            tag("td", second),
            [tag("td", number, class_="right") for number in numbers],
            class_=class_,
        )

    rows = [line(_cut(row["corpus"] or "–", 80), _cut(row["split"] or "–", 40), row) for row in summary.groups]
    rows.append(line("All", "", summary.total, "total"))
    more = (
        tag("p", f"{summary.groups_left_out:,} smaller groups are not shown.", class_="quiet")
        if summary.groups_left_out
        else None
    )
    return tag("div", tag("table", tag("thead", head), tag("tbody", rows)), more, class_="card scroll")


def _rejects(summary: Summary) -> Markup:
    if not summary.reasons:
        return tag("div", tag("p", "None: every input became a sample.", class_="quiet"), class_="card")
    most = max(reason.count for reason in summary.reasons)
    rows = [_reason(reason, most) for reason in summary.reasons]
    names = (("Reason", None), ("Inputs", "right"), ("", None), ("For example", None))
    head = tag("tr", [tag("th", name, scope="col", class_=class_) for name, class_ in names])
    where = tag("p", "All of them are in ", tag("code", "rejected.parquet"), ".", class_="quiet")
    return tag(
        "div", tag("table", tag("thead", head), tag("tbody", rows), class_="rejects"), where, class_="card scroll"
    )


def _reason(reason: Reason, most: int) -> Markup:
    back = tag("rect", width=100, height=10, rx=2, class_="back")
    front = tag("rect", width=f"{max(1, 100 * reason.count / most):.1f}", height=10, rx=2)
    box = {"viewBox": "0 0 100 10", "preserveAspectRatio": "none"}
    bar = tag("svg", back, front, **box, class_="share", aria_hidden="true")
    words = tag("span", _cut(reason.code, 60), class_="tag reason")
    return tag(
        "tr",
        tag("th", words, tag("p", _marked(REASONS.get(reason.code, "")), class_="quiet"), scope="row"),
        tag("td", f"{reason.count:,}", class_="right"),
        tag("td", bar),
        tag("td", tag("code", _cut(reason.path, 160)), tag("p", _cut(reason.message, 240), class_="quiet")),
    )


def _marked(text: str) -> list[Markup | str]:
    """Words between backticks as code."""
    return [tag("code", part) if index % 2 else part for index, part in enumerate(text.split("`"))]


def _cut(text: object, length: int) -> str:
    words = str(text)
    return words if len(words) <= length else words[: length - 1] + "…"


def _samples(summary: Summary, previews: Sequence[Preview | str]) -> Markup:
    if not previews:
        return tag("div", tag("p", "No samples to show.", class_="quiet"), class_="card")
    note = tag(
        "p",
        f"{len(previews)} of {summary.total['samples']:,}, taken at even distances from the manifest.",
        class_="quiet",
    )
    lazy = len(previews) > EAGER
    rows = zip(summary.samples, previews, strict=True)
    cards = [_sample(row, shown, number, lazy) for number, (row, shown) in enumerate(rows, 1)]
    return tag("div", note, tag("div", cards, class_="samples"))


def _sample(row: Mapping[str, Any], shown: Preview | str, number: int, lazy: bool) -> Markup:
    captions = [text for text in [row["text"], row["audio_text"], *(row["texts"] or [])[:MAX_CAPTIONS]] if text]
    captions = list(dict.fromkeys(captions))
    first = (
        tag("p", _cut(captions[0], MAX_CAPTION), class_="caption")
        if captions
        else tag("p", "No caption.", class_="caption quiet")
    )
    rest = [tag("li", _cut(text, MAX_CAPTION)) for text in captions[1:MAX_CAPTIONS]]
    more = tag("details", tag("summary", f"{len(rest)} more"), tag("ul", rest, class_="more")) if rest else None
    if isinstance(shown, str):
        left = tag("p", f"This sample cannot be shown: {_cut(shown, 300)}", class_="broken")
        right = None
    else:
        left, right = (
            _player(shown, captions[0] if captions else f"sample {number}"),
            tag("div", _tracks(shown, row, "lazy" if lazy else None)),
        )
    return tag(
        "article", tag("div", left), right, tag("div", first, more, _facts(row), class_="words"), class_="card sample"
    )


def _player(shown: Preview, caption: str) -> Markup:
    source = f"{MEDIA}/{shown.clip}"
    name = _cut(caption, 120)
    if shown.clip.endswith(".flac"):
        return tag("audio", src=source, controls=True, preload="metadata", aria_label=name)
    poster = f"{MEDIA}/{shown.poster}" if shown.poster else None
    return tag("video", src=source, poster=poster, controls=True, preload="metadata", playsinline=True, aria_label=name)


def _tracks(shown: Preview, row: Mapping[str, Any], loading: str | None) -> list[Markup]:
    tracks = []
    if shown.strip:
        tracks.append(
            tag(
                "figure",
                tag(
                    "img", src=f"{MEDIA}/{shown.strip}", alt="Eight frames of the clip", class_="strip", loading=loading
                ),
                tag("figcaption", "Frames, evenly spread"),
            )
        )
    if shown.peaks:
        highs = [f"{x} {50 - 48 * min(1, high):.1f}" for x, (_, high) in enumerate(shown.peaks)]
        lows = [f"{x} {50 - 48 * max(-1, low):.1f}" for x, (low, _) in reversed(list(enumerate(shown.peaks)))]
        path = tag("path", d="M" + "L".join([*highs, *lows]) + "Z")
        box = {"viewBox": f"0 0 {max(1, len(shown.peaks) - 1)} 100", "preserveAspectRatio": "none"}
        tracks.append(
            tag(
                "figure",
                tag("svg", path, **box, class_="wave", role="img", aria_label="Waveform"),
                tag("figcaption", "Waveform"),
            )
        )
    if shown.spectrogram:
        top = (row["audio_fps"] or 0) / 2000
        words = f"Spectrogram, 0 to {top:g} kHz, 80 dB" if top else "Spectrogram, 80 dB"
        tracks.append(
            tag(
                "figure",
                tag(
                    "img", src=f"{MEDIA}/{shown.spectrogram}", alt="Spectrogram", class_="spectrogram", loading=loading
                ),
                tag("figcaption", words),
            )
        )
    return tracks


def _facts(row: Mapping[str, Any]) -> Markup:
    def number(name: str, form: str) -> str | None:
        return None if row[name] is None else form.format(row[name])

    facts = {
        "key": row["key"],
        "shard": number("shard", "{:06d}"),
        "corpus": row["corpus"],
        "split": row["split"],
        "label": row["label"],
        "length": number("duration", "{:.2f} s"),
        "frames": number("num_frames", "{:,}") if row["mp4_size"] is not None else None,
        "picture": f"{row['width']}×{row['height']}" if row["mp4_size"] is not None else None,
        "source": " ".join(str(row[name]) for name in ("source_video_codec", "source_audio_codec") if row[name])
        or None,
        "source rate": number("source_fps", "{:.4g} fps"),
        "loudness": number("loudness", "{:.1f} LUFS"),
        "silence": number("silence_ratio", "{:.0%}"),
        "still": number("still_ratio", "{:.0%}"),
    }
    cells = [
        tag("div", tag("dt", name), tag("dd", _cut(value, 200))) for name, value in facts.items() if value is not None
    ]
    return tag("dl", cells, class_="facts")


def _recipe(header: Mapping[str, Any]) -> Markup:
    lines: list[tuple[str, str]] = []
    for group in ("recipe", "tools"):
        values = header.get(group)
        for key, value in sorted(values.items()) if isinstance(values, dict) else []:
            lines.append(
                (
                    f"{key}" if group == "recipe" else f"{key} (version)",
                    compact(value) if isinstance(value, float) else str(value),
                )
            )
    rows = [
        tag("tr", tag("th", _cut(key, 60), scope="row"), tag("td", tag("code", _cut(value, 200))))
        for key, value in lines[:MAX_SETTINGS]
    ]
    return tag(
        "details",
        tag("summary", "Every setting that shapes the bytes, and the versions used"),
        tag("table", tag("tbody", rows)),
        class_="card scroll",
    )

"""The page: one file without scripts, its style inside, made of page.html with everything from the dataset escaped by Jinja."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from javisc.compiler.reasons import REASONS
from javisc.compiler.report.charts import compact, draw
from javisc.compiler.report.data import Reason, Summary
from javisc.compiler.report.media import Preview

MAX_CAPTION = 1000
MAX_CAPTIONS = 8
MAX_SETTINGS = 80
#: Pictures of more samples than this load as they come into view.
EAGER = 24
MEDIA = "media"
_LAZY = Markup(' loading="lazy"')


def clean(value: Any) -> Any:
    """What the template prints: control characters, which no page may hold, become U+FFFD; None is nothing."""
    if value is None:
        return ""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    text = "".join(c if c >= " " or c in "\n\t" else "\ufffd" for c in value)
    return text.encode("utf-8", "replace").decode("utf-8")


def template(name: str) -> jinja2.Template:
    """A template of this folder. What it prints is escaped, and a name it does not know is an error."""
    files = importlib.resources.files(__package__)
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda path: files.joinpath(path).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=clean,
    )
    return environment.get_template(name)


def page(summary: Summary, previews: Sequence[Preview | str]) -> str:
    """The whole page. `previews` go with `summary.samples`; a text in place of one says why the sample cannot be shown."""
    style = importlib.resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src 'self' data:; media-src 'self'; "
        f"style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    pairs = zip(summary.samples, previews, strict=True)
    return (
        template("page.html")
        .render(
            policy=policy,
            style=style,
            name=summary.name,
            made="view of several datasets" if "datasets" in summary.header else _recipe_line(summary.header),
            tiles=list(_tiles(summary)),
            groups=[_group(row["corpus"] or "–", row["split"] or "–", row) for row in summary.groups]
            + [{**_group("All", "", summary.total), "total": True}],
            groups_left_out=f"{summary.groups_left_out:,}" if summary.groups_left_out else "",
            charts=[draw(bars) for bars in summary.charts],
            reasons=[_reason(reason, max(r.count for r in summary.reasons)) for reason in summary.reasons],
            samples=[_sample(row, shown, number) for number, (row, shown) in enumerate(pairs, 1)],
            total=f"{summary.total['samples']:,}",
            media=MEDIA,
            loading=_LAZY if len(previews) > EAGER else "",
            settings=list(_settings(summary.header))[:MAX_SETTINGS] if summary.header.get("recipe") else [],
        )
        .lstrip()
        + "\n"
    )


def _tiles(summary: Summary) -> Iterator[dict[str, Any]]:
    total, rejected, hours = summary.total, summary.rejected, summary.total["hours"]
    count = total["samples"]
    odd, silent, still = total["silent"] + total["still"], total["silent"], total["still"]
    for name, value, note in (
        ("Samples", f"{count:,}", f"in {summary.shards:,} shard{'s' if summary.shards != 1 else ''}"),
        ("Duration", _time(hours), f"{3600 * hours / max(1, count):.1f} s on average"),
        (
            "Size",
            _bytes(total["bytes"]),
            f"{_bytes(total['bytes'] / max(1e-9, hours))} per hour" if hours else "",
        ),
        ("With caption", _share(total["captioned"], count), f"{count - total['captioned']:,} without"),
        ("Silent or still", f"{odd:,}", f"{silent:,} silent, {still:,} still"),
        ("Rejected", f"{rejected:,}", f"{_share(rejected, count + rejected)} of the inputs"),
    ):
        yield {"name": name, "value": value, "note": note, "warn": name == "Rejected" and rejected > 0}


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


def _group(corpus: str, split: str, row: Mapping[str, Any]) -> dict[str, Any]:
    count = row["samples"]
    numbers = [f"{count:,}", _time(row["hours"]), _bytes(row["bytes"])]
    numbers += [_share(row[name], count) for name in ("captioned", "silent", "still")]
    return {"corpus": _cut(corpus, 80), "split": _cut(split, 40), "numbers": numbers, "total": False}


def _reason(reason: Reason, most: int) -> dict[str, Any]:
    """A reason's row; words of its meaning between backticks are code: every other part."""
    return {
        "code": _cut(reason.code, 60),
        "meaning": REASONS.get(reason.code, "").split("`"),
        "count": f"{reason.count:,}",
        "share": f"{max(1, 100 * reason.count / most):.1f}",
        "path": _cut(reason.path, 160),
        "message": _cut(reason.message, 240),
    }


def _cut(text: object, length: int) -> str:
    words = str(text)
    return words if len(words) <= length else words[: length - 1] + "…"


def _sample(row: Mapping[str, Any], shown: Preview | str, number: int) -> dict[str, Any]:
    texts = [text for text in [row["text"], row["audio_text"], *(row["texts"] or [])[:MAX_CAPTIONS]] if text]
    captions = [_cut(text, MAX_CAPTION) for text in dict.fromkeys(texts)][:MAX_CAPTIONS]
    words: dict[str, Any] = {"captions": captions, "facts": list(_facts(row)), "broken": ""}
    if isinstance(shown, str):
        return words | {"broken": _cut(shown, 300) or "for no reason that is known"}
    top = (row["audio_fps"] or 0) / 2000
    return words | {
        "clip": shown.clip,
        "sound_only": shown.poster is None,
        "poster": shown.poster,
        "name": _cut(captions[0] if captions else f"sample {number}", 120),
        "strip": shown.strip,
        "wave": _wave(shown.peaks) if shown.peaks else None,
        "spectrogram": shown.spectrogram,
        "spectrogram_words": f"Spectrogram, 0 to {top:g} kHz, 80 dB" if top else "Spectrogram, 80 dB",
    }


def _wave(peaks: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The outline of (low, high) per column as an SVG path, 100 high."""
    highs = [f"{x} {50 - 48 * min(1, high):.1f}" for x, (_, high) in enumerate(peaks)]
    lows = [f"{x} {50 - 48 * max(-1, low):.1f}" for x, (low, _) in reversed(list(enumerate(peaks)))]
    return {"width": max(1, len(peaks) - 1), "path": "M" + "L".join([*highs, *lows]) + "Z"}


def _facts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    def number(name: str, form: str) -> str | None:
        return None if row[name] is None else form.format(row[name])

    pictures = row["mp4_size"] is not None
    facts = {
        "key": row["key"],
        "shard": number("shard", "{:06d}"),
        "corpus": row["corpus"],
        "split": row["split"],
        "label": row["label"],
        "length": number("duration", "{:.2f} s"),
        "frames": number("num_frames", "{:,}") if pictures else None,
        "picture": f"{row['width']}×{row['height']}" if pictures else None,
        "source": " ".join(str(row[name]) for name in ("source_video_codec", "source_audio_codec") if row[name])
        or None,
        "source rate": number("source_fps", "{:.4g} fps"),
        "loudness": number("loudness", "{:.1f} LUFS"),
        "silence": number("silence_ratio", "{:.0%}"),
        "still": number("still_ratio", "{:.0%}"),
    }
    yield from ((name, _cut(value, 200)) for name, value in facts.items() if value is not None)


def _settings(header: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for group, words in (("recipe", ""), ("tools", " (version)")):
        values = header.get(group)
        for key, value in sorted(values.items()) if isinstance(values, dict) else ():
            text = compact(value) if isinstance(value, float) else str(value)
            yield _cut(f"{key}{words}", 60), _cut(text, 200)

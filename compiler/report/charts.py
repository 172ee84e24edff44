"""Charts as inline SVG: bars with axes, each bar named for pointers and readers, the numbers in a table beneath."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from javisc.compiler.report.markup import Markup, tag

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 10, 30
#: Widest bar of a chart with few classes.
MAX_BAR = 72.0


@dataclass(frozen=True)
class Bars:
    """A chart's content: one name and count per bar. With `edges`, bars lie between numbers; without, each is labelled."""

    title: str
    unit: str
    names: Sequence[str]
    counts: Sequence[int]
    edges: Sequence[float] | None = None
    unknown: int = 0
    note: str = ""


def compact(value: float) -> str:
    """A number in few characters: 950, 12k, 3.4M."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.4g}"


def nice_step(span: float, parts: int) -> float:
    """The least of 1, 2, 5 times a power of ten of which at most `parts` cover `span`."""
    if span <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / parts))
    return next(step * power for step in (1, 2, 5, 10, 20) if span <= parts * step * power * (1 + 1e-9))


def nice_edges(low: float, high: float, parts: int) -> list[float]:
    """Edges at round numbers that cover [low, high] in at most `parts` + 1 bins."""
    step = nice_step(high - low, parts)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(step * k, 10) for k in range(first, last + 1)]


def chart(bars: Bars) -> Markup:
    """A card with the chart, its caption, and its numbers as a table behind a fold."""
    total = sum(bars.counts)
    if not total:
        return tag("section", tag("h3", bars.title), tag("p", "No values.", class_="quiet"), class_="card chart")
    rows = [
        tag("tr", tag("th", name, scope="row"), tag("td", f"{count:,}"))
        for name, count in zip(bars.names, bars.counts, strict=True)
    ]
    if bars.unknown:
        rows.append(tag("tr", tag("th", "no value", scope="row"), tag("td", f"{bars.unknown:,}")))
    head = tag("tr", tag("th", bars.unit or bars.title, scope="col"), tag("th", "samples", scope="col"))
    table = tag("details", tag("summary", "Numbers"), tag("table", head, rows, class_="numbers"))
    without = f"{bars.unknown:,} without a value. " if bars.unknown else ""
    return tag(
        "section",
        tag("h3", bars.title, tag("span", bars.unit, class_="unit") if bars.unit else None),
        _svg(bars, total),
        tag("p", without + bars.note, class_="quiet") if without or bars.note else None,
        table,
        class_="card chart",
    )


def _svg(bars: Bars, total: int) -> Markup:
    count = len(bars.counts)
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    step = max(1.0, nice_step(max(bars.counts), 4))
    ceiling = step * max(1, math.ceil(max(bars.counts) / step - 1e-9))
    base = TOP + plot_height
    parts: list[Markup] = []
    for k in range(round(ceiling / step) + 1):
        y = base - plot_height * k * step / ceiling
        parts.append(
            tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="axis" if k == 0 else "grid")
        )
        parts.append(tag("text", compact(k * step), x=LEFT - 6, y=f"{y + 4:.1f}", class_="tick end"))
    slot = plot_width / count
    gap = min(2.0, slot * 0.2) if bars.edges else max(slot * 0.25, slot - MAX_BAR)
    for index, (name, value) in enumerate(zip(bars.names, bars.counts, strict=True)):
        height = plot_height * value / ceiling
        if value:  # a bar of one sample among millions stays visible
            height = max(height, 1.5)
        x = LEFT + index * slot + gap / 2
        label = f"{name} {bars.unit}: {value:,} samples ({value / total:.1%})".replace("  ", " ")
        box = {"x": f"{x:.1f}", "y": f"{base - height:.1f}", "width": f"{slot - gap:.1f}", "height": f"{height:.1f}"}
        parts.append(tag("rect", tag("title", label), **box, rx=1.5, class_="bar"))
    parts += _labels(bars, slot, base)
    most = bars.names[max(range(count), key=lambda i: bars.counts[i])]
    summary = f"{bars.title}: {total:,} samples in {count} classes, most at {most} {bars.unit}".strip()
    return tag("svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=summary)


def _labels(bars: Bars, slot: float, base: float) -> list[Markup]:
    y = base + 18
    if bars.edges is None:
        return [
            tag("text", name, x=f"{LEFT + (i + 0.5) * slot:.1f}", y=y, class_="tick mid")
            for i, name in enumerate(bars.names)
        ]
    bins = len(bars.edges) - 1
    # The fewest bins per label that keep labels apart, and if possible end with one.
    most = 8 if max(len(compact(edge)) for edge in bars.edges) <= 4 else 5
    every = next((k for k in range(1, bins + 1) if bins % k == 0 and 3 <= bins // k <= most), math.ceil(bins / most))
    return [
        tag("text", compact(edge), x=f"{LEFT + i * slot:.1f}", y=y, class_="tick mid")
        for i, edge in enumerate(bars.edges)
        if i % every == 0
    ]

"""Charts laid out: bars with axes, each bar named for pointers and readers, the numbers in a table beneath."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Drawing:
    """A chart laid out in a box of WIDTH × HEIGHT: what page.html draws. Coordinates are text with a tenth of a unit."""

    title: str
    unit: str
    total: int
    summary: str = ""
    note: str = ""
    rows: Sequence[tuple[str, str]] = ()
    lines: Sequence[Mapping[str, Any]] = ()
    bars: Sequence[Mapping[str, Any]] = ()
    ticks: Sequence[Mapping[str, Any]] = ()
    width: int = WIDTH
    height: int = HEIGHT


def draw(bars: Bars) -> Drawing:
    """Lay a chart out: axis and grid, bars with their names, ticks, and the numbers as rows of a table."""
    total = sum(bars.counts)
    if not total:
        return Drawing(bars.title, bars.unit, 0)
    rows = [(name, f"{count:,}") for name, count in zip(bars.names, bars.counts, strict=True)]
    if bars.unknown:
        rows.append(("no value", f"{bars.unknown:,}"))
    without = f"{bars.unknown:,} without a value. " if bars.unknown else ""
    most = bars.names[max(range(len(bars.counts)), key=lambda i: bars.counts[i])]
    summary = f"{bars.title}: {total:,} samples in {len(bars.counts)} classes, most at {most} {bars.unit}".strip()

    step = max(1.0, nice_step(max(bars.counts), 4))
    ceiling = step * max(1, math.ceil(max(bars.counts) / step - 1e-9))
    plot_width, plot_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    base = TOP + plot_height
    lines, ticks = [], []
    for k in range(round(ceiling / step) + 1):
        y = base - plot_height * k * step / ceiling
        lines.append({"x1": LEFT, "x2": WIDTH - RIGHT, "y": f"{y:.1f}", "kind": "axis" if k == 0 else "grid"})
        ticks.append({"text": compact(k * step), "x": LEFT - 6, "y": f"{y + 4:.1f}", "kind": "end"})
    slot = plot_width / len(bars.counts)
    gap = min(2.0, slot * 0.2) if bars.edges else max(slot * 0.25, slot - MAX_BAR)
    boxes = []
    for index, (name, value) in enumerate(zip(bars.names, bars.counts, strict=True)):
        height = plot_height * value / ceiling
        if value:  # a bar of one sample among millions stays visible
            height = max(height, 1.5)
        label = f"{name} {bars.unit}: {value:,} samples ({value / total:.1%})".replace("  ", " ")
        place = {"x": LEFT + index * slot + gap / 2, "y": base - height, "width": slot - gap, "height": height}
        boxes.append({"label": label, **{key: f"{at:.1f}" for key, at in place.items()}})
    ticks += [{"text": text, "x": f"{x:.1f}", "y": base + 18, "kind": "mid"} for text, x in _labels(bars, slot)]
    return Drawing(bars.title, bars.unit, total, summary, without + bars.note, rows, lines, boxes, ticks)


def _labels(bars: Bars, slot: float) -> list[tuple[str, float]]:
    """Text and place of the labels beneath the axis."""
    if bars.edges is None:
        return [(name, LEFT + (i + 0.5) * slot) for i, name in enumerate(bars.names)]
    bins = len(bars.edges) - 1
    # The fewest bins per label that keep labels apart, and if possible end with one.
    most = 8 if max(len(compact(edge)) for edge in bars.edges) <= 4 else 5
    every = next((k for k in range(1, bins + 1) if bins % k == 0 and 3 <= bins // k <= most), math.ceil(bins / most))
    return [(compact(edge), LEFT + i * slot) for i, edge in enumerate(bars.edges) if i % every == 0]

"""The page over a run's previews: the newest step first, one static file, nothing from elsewhere."""

from __future__ import annotations

import html
from pathlib import Path

from javisc.manifests.files import published

_STYLE = """
:root { color-scheme: light dark; font-family: system-ui, sans-serif }
body { margin: 1.5rem auto; max-width: 80rem; padding: 0 1rem }
.clips { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)) }
figure { margin: 0; padding: .5rem; border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: .5rem }
video, audio { width: 100%; display: block; border-radius: .25rem }
figcaption { margin-top: .5rem; overflow-wrap: anywhere }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .8rem }
td, th { padding: .2rem .4rem; text-align: right }
td.text { text-align: left; overflow-wrap: anywhere; min-width: 10rem }
td[style] { color: #000 }
"""


def write_page(folder: Path, title: str) -> None:
    """`index.html` over all `step-*/part.html` of a folder."""
    parts = []
    for step in sorted(folder.glob("step-*"), reverse=True):
        if (step / "part.html").is_file():
            number = int(step.name.removeprefix("step-"))
            shown = (step / "part.html").read_text(encoding="utf-8").replace("{here}", step.name)
            parts.append(f'<section id="{step.name}"><h2>step {number}</h2>{shown}</section>')
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}: previews</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n"
    )
    with published(folder / "index.html") as temporary:
        temporary.write_text(page, encoding="utf-8")


def shade(share: float) -> str:
    """A cell's background: white at 0, blue at 1, dark text readable on all of it."""
    share = min(max(share, 0.0), 1.0)
    return f"background:rgb({255 - round(155 * share)},{255 - round(100 * share)},255)"

"""In a worker: what the beginning of a source becomes, so that a build's size and cost can be told before it runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from javisc.compiler.reasons import Rejected
from javisc.compiler.run.engine import PROBE
from javisc.compiler.run.sources import local_source
from javisc.compiler.run.unit import compile_input
from javisc.manifests.entries import named
from javisc.manifests.kinds import extensions

#: Seconds of each that are compiled for real.
SECONDS = 4.0


def measure(
    path: str,
    raw_path: str | None,
    window: list[float | None],
    recipe: dict[str, Any],
    compiler: str,
    scratch: str,
    audio: str | None = None,
    fetched: str | None = None,
    fetched_audio: str | None = None,
    renditions: Sequence[dict[str, Any]] = (),
) -> dict[str, float]:
    """Probe a file, compile its first SECONDS, and scale to its length: bytes, seconds of media, of work.

    beside: bytes of its renditions, of these recipes.
    """
    folder = Path(scratch)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with local_source(path, raw_path, folder, fetched) as source:
        whole = named(PROBE)(source).duration
    start = window[0] or 0.0
    end = window[1] if window[1] is not None else whole
    if recipe["max_seconds"] is not None and end is not None:
        end = min(end, start + float(recipe["max_seconds"]))
    length = SECONDS if end is None or end <= start else end - start
    began = time.perf_counter()
    piece: list[float | None] = [start, start + min(length, SECONDS)] if end is not None else window
    beside: dict[str, Any] = {
        "audio": audio,
        "fetched": fetched,
        "fetched_audio": fetched_audio,
        "renditions": renditions,
    }
    columns = compile_input("0", path, raw_path, piece, recipe, compiler, scratch, **beside)
    seconds = columns.get("duration") or 0.0
    if not seconds:
        raise Rejected("too_short", "nothing came out")
    scale = max(1.0, length / seconds)
    sizes = {file.name.partition(".")[2]: file.stat().st_size for file in folder.iterdir()}
    made = sum(size for end, size in sizes.items() if end in extensions())
    smaller = sum(sizes.get(f"{recipe['name']}.mp4", 0) for recipe in renditions)
    return {
        "bytes": made * scale,
        "beside": smaller * scale,
        "seconds": seconds * scale,
        "work": (time.perf_counter() - began) * scale,
    }

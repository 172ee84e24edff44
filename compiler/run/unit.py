"""What workers do with one input: compile it. Called by name, with JSON in and JSON out."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe
from javisc.compiler.run.digests import Known, digested
from javisc.compiler.run.effort import LINE, needed
from javisc.compiler.run.engine import PROBE
from javisc.compiler.run.sources import local_sources
from javisc.compiler.store.shard import MAX_MEMBER
from javisc.manifests.entries import named

#: Seconds: longer than any clip becomes.
MAX_CLIP = 6 * 3600.0


def compile_input(
    key: str,
    path: str,
    raw_path: str | None,
    window: list[float | None],
    recipe: dict[str, Any],
    compiler: str,
    scratch: str,
    boxes: str | None = None,
    fetched: str | None = None,
    audio: str | None = None,
    fetched_audio: str | None = None,
    known: dict[str, Known] | None = None,
    renditions: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Compile one input; its members land as `scratch`/KEY.EXTENSION, complete or not at all.

    raw_path: the path's bytes as hex where they are no UTF-8. compiler: `module:function`. boxes: a file of boxes to
    crop to, for a compiler that takes one. audio: the file of the sound, where it is not the source. fetched, fetched_audio: the
    local copies of URLs. known: see `digested`. renditions: recipes of smaller pictures to make with the clip, as
    `scratch`/KEY.r240.mp4, whose heights and widths are the `renditions` of what is returned. Returns the manifest columns
    that the clip knows, with the digests of its sources, and `staged`, the bytes of its members. Raises Rejected, or Unavailable
    where the source's storage is at fault.
    """
    compile_file = named(compiler)
    folder = _empty(Path(scratch, f"{os.getpid()}.part"))
    try:
        given = [(path, raw_path, fetched), *([] if audio is None else [(audio, None, fetched_audio)])]
        with local_sources(*given, folder=folder) as local:
            source, sources = local[0], dict(zip(("source_sha256", "audio_sha256"), local, strict=False))
            span = (
                None if window == [None, None] else (window[0] or 0.0, float("inf") if window[1] is None else window[1])
            )
            more: dict[str, Any] = {} if boxes is None else {"boxes": Path(boxes)}
            more |= {} if audio is None else {"sound": sources["audio_sha256"]}
            more |= {"renditions": [Recipe.from_json(each) for each in renditions]} if renditions else {}
            made_by = Recipe.from_json(recipe)
            # Sound alone never needs more than the usual: it asks nobody, which costs more than a short one.
            asking = (
                LINE.asking(lambda: _needed(source, made_by, window[1])) if made_by.kind != "audio" else nullcontext()
            )
            with asking:
                clip, digests = digested(
                    sources, lambda: compile_file(source, made_by, folder, window=span, **more), known
                )
            staged = 0
            for extension, made in clip.files.items():
                staged += (size := made.stat().st_size)
                if size > MAX_MEMBER:
                    raise Rejected("too_large", f"the compiled {extension} has more than {MAX_MEMBER} bytes")
                made.replace(Path(scratch, f"{key}.{extension}"))
            columns = {name: _plain(value) for name, value in clip.columns.items()}
            columns |= {"renditions": clip.renditions} if renditions else {}
            return {**columns, **digests, "source_bytes": source.stat().st_size, "staged": staged}
    finally:
        _empty(folder)


def _empty(folder: Path) -> Path:
    """A worker's own folder, made if it is not there, without what a clip before left. It stays: to remove it takes long."""
    folder.mkdir(parents=True, exist_ok=True)
    with os.scandir(folder) as left:
        for entry in left:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                Path(entry.path).unlink(missing_ok=True)
    return folder


def _needed(source: Path, recipe: Recipe, end: float | None) -> float:
    """Seconds of CPU time beyond the usual that a file may take, by its declared length and size of picture."""
    try:
        probed = named(PROBE)(source)
    except Rejected:
        return 0.0
    seconds = min(probed.duration or 0.0, end or MAX_CLIP, MAX_CLIP)
    if recipe.max_seconds is not None and end is None:
        seconds = min(seconds, recipe.max_seconds)
    return needed(seconds, probed.width * probed.height)


def _plain(value: Any) -> Any:
    """A column's value as JSON has it: numpy scalars as Python's, what is no number as null."""
    if value is None or type(value) in (str, int, bool):
        return value
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not abs(value) < float("inf") else value

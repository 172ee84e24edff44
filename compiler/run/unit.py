"""What workers do: compile one input, pack one shard. Called by name, with JSON in and JSON out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe
from javisc.compiler.run.digests import digested
from javisc.compiler.run.effort import LINE, needed
from javisc.compiler.run.engine import PROBE
from javisc.compiler.run.sources import local_sources
from javisc.compiler.store.files import Store
from javisc.compiler.store.shard import MAX_MEMBER, Packed
from javisc.compiler.store.writer import pack_shard
from javisc.manifests.entries import named
from javisc.manifests.errors import UserError
from javisc.manifests.kinds import extensions

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
) -> dict[str, Any]:
    """Compile one input; its members land as `scratch`/KEY.EXTENSION, complete or not at all.

    raw_path: the path's bytes as hex where they are no UTF-8. compiler: `module:function`. boxes: a file of boxes to
    crop to, for a compiler that takes one. audio: the file of the sound, where it is not the source. fetched, fetched_audio: the
    local copies of URLs. Returns the manifest columns that the clip knows, with the digests of its sources.
    Raises Rejected, or Unavailable where the source's storage is at fault.
    """
    compile_file = named(compiler)
    folder = Path(scratch, f"{key}.part")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        given = [(path, raw_path, fetched), *([] if audio is None else [(audio, None, fetched_audio)])]
        with local_sources(*given, folder=folder) as local:
            source, sources = local[0], dict(zip(("source_sha256", "audio_sha256"), local, strict=False))
            work = folder / "clip"
            work.mkdir()
            span = (
                None if window == [None, None] else (window[0] or 0.0, float("inf") if window[1] is None else window[1])
            )
            more = {} if boxes is None else {"boxes": Path(boxes)}
            more |= {} if audio is None else {"sound": sources["audio_sha256"]}
            made_by = Recipe.from_json(recipe)
            with LINE.asking(lambda: _needed(source, made_by, window[1])):
                clip, digests = digested(sources, lambda: compile_file(source, made_by, work, window=span, **more))
            for extension, made in clip.files.items():
                if made.stat().st_size > MAX_MEMBER:
                    raise Rejected("too_large", f"the compiled {extension} has more than {MAX_MEMBER} bytes")
                made.replace(Path(scratch, f"{key}.{extension}"))
            columns = {name: _plain(value) for name, value in clip.columns.items()}
            return {**columns, **digests, "source_bytes": source.stat().st_size}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _needed(source: Path, recipe: Recipe, end: float | None) -> float:
    """Seconds of CPU time beyond the usual that a file may take, by its declared length and size of picture."""
    try:
        probed = named(PROBE)(source)
    except Rejected:
        return 0.0
    seconds = min(probed.duration or 0.0, end or MAX_CLIP, MAX_CLIP)
    if recipe.max_seconds is not None and end is None:
        seconds = min(seconds, recipe.max_seconds)
    return needed(seconds, 0 if recipe.kind == "audio" else probed.width * probed.height)


def _plain(value: Any) -> Any:
    """A column's value as JSON has it: numpy scalars as Python's, what is no number as null."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def other_bytes(shard: int, why: str) -> UserError:
    """What ends the run where a lost shard comes out otherwise than it was."""
    return UserError(
        f"shard {shard:06d} is lost and cannot be made again as it was: {why}; bring its sources back as they were, or run the "
        "build with --prune, which takes what is there now",
        exit_code=1,
    )


def pack(
    out: str,
    shard: int,
    samples: list[dict[str, str]],
    scratch: str,
    uploads: str,
    expected: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write and publish a shard from clips in `scratch`. samples: `key` and `json` (KEY.json's text), in key order.

    expected: see Unit. Returns bytes, digests and every member's place. Raises UserError if it cannot be published.
    """
    store = Store(out, Path(uploads))

    def contents() -> Iterator[tuple[str, dict[str, bytes | Path]]]:
        for sample in samples:
            key = sample["key"]
            members: dict[str, bytes | Path] = {"json": sample["json"].encode()}
            members |= {end: file for end in extensions() if (file := Path(scratch, f"{key}.{end}")).exists()}
            yield key, members

    def agree(packed: Packed) -> None:
        if expected is not None and (packed.sha256, packed.idx_sha256) != (expected["sha256"], expected["idx_sha256"]):
            raise other_bytes(shard, "its sources or the tools that encode them have changed")

    packed = pack_shard(store, shard, contents(), agree)
    return {
        "made": packed.made,
        "members": [[[m.extension, m.offset, m.size, m.crc32] for m in members] for members in packed.samples],
    }

"""`javisc render`: smaller pictures of a dataset's clips, encoded for reading, as a field on the base's own grid."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import polars as pl

from javisc.compiler.media.renditions import Rendition
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe
from javisc.compiler.run.engine import EngineOptions, limit_of
from javisc.compiler.run.sources import fetch
from javisc.compiler.run.spread import Job, Resources, spread
from javisc.compiler.run.stopping import stoppable
from javisc.compiler.run.unit import compile_input
from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.fields import FieldWriter
from javisc.compiler.store.files import Store
from javisc.compiler.store.renditions import (
    CLIPS,
    COLUMNS,
    CRF,
    SOURCES,
    begun_with,
    commit_renditions,
    recipe_of,
    settings_of,
)
from javisc.compiler.store.rows import rejected_row
from javisc.manifests.environment import patiently
from javisc.manifests.errors import UserError
from javisc.manifests.fields import check_name, open_field
from javisc.manifests.io import Dataset
from javisc.manifests.members import MemberReader
from javisc.manifests.schema import DATASET_COLUMN
from javisc.manifests.urls import is_url

_NEEDED = (
    "key", "shard", "relpath", "path", "source_bytes", "source_sha256", "num_frames", "height", "width", "mp4_offset", "mp4_size",
    "clip_start", "clip_end",
)  # fmt: skip
#: CPU seconds that a shard may take, and each of its clips beside what its bytes give it.
_START, _CLIP = 600.0, 600.0
#: What makes renditions alone of a source, as a build makes them with its clips.
_OF_SOURCE = "javisc.compiler.media.renditions:pictures_only"


class NothingLarger(UserError):
    """No clip is larger than the rendition would be."""


@dataclass(frozen=True)
class Rendered:
    """What a rendition holds: of how many samples of all, and how many were left: as small already, or that do not decode.

    made_from: `sources` or `clips`.
    """

    name: str
    samples: int
    of: int
    smaller: int
    broken: int
    bytes: int
    made_from: str = SOURCES


def render(
    dataset: str,
    short_side: int,
    *,
    crf: float | None = None,
    name: str | None = None,
    made_from: str | None = None,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    held: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Rendered:
    """Add a rendition whose shorter side has `short_side` pixels to a dataset, as the field `name` (r240 for 240).

    made_from: `sources`, the films that the dataset was compiled of: encoded once, with the bytes that `build --renditions`
    makes; `clips`, the dataset's own: encoded twice. None: as it was begun, else sources where all of them are there. Clips that
    are as small already have none. Killed, the same call goes on; after a build has added clips, it makes theirs. held: the
    dataset's lock is the caller's. Raises UserError.
    """
    opened = Dataset.open(dataset)
    made = opened.header.get("recipe")
    if opened.bare or "datasets" in opened.header or not isinstance(made, dict):
        raise UserError(
            f"{dataset} was not made by `javisc build`: renditions are made of a compiled dataset's pictures"
        )
    chosen = check_name(name or f"r{short_side}")
    root, base = opened.folder, Recipe.from_json(made)
    pictures = opened.manifest().filter(pl.col("mp4_size") > 0).select(_NEEDED).collect()
    if not pictures.height:
        raise NothingLarger(f"{dataset} holds sounds without pictures: renditions are made of pictures")
    larger = pictures.filter(pl.min_horizontal("height", "width") > short_side)
    if not larger.height:
        option = "--renditions" if held else "--short-side"
        raise NothingLarger(f"{option} {short_side}: no clip of {dataset} is larger than that: give a smaller one")
    with tempfile.TemporaryDirectory(prefix="javisc-render-") as folder:
        store = Store(root, Path(folder))
        before = begun_with(store, chosen) or {}
        if before:
            made_from = made_from or before.get("from", CLIPS)
            crf = before.get("recipe", {}).get("crf") if crf is None else crf
        source = made_from or (SOURCES if base.kind == "jav" and _all_there(larger) else CLIPS)
        if source == SOURCES and base.kind != "jav":
            raise UserError(
                "--from sources: only clips of `javisc build jav` are made anew of their films: give --from clips"
            )
        raw = _raw_paths(store) if source == SOURCES else None
    recipe = recipe_of(base, short_side, CRF if crf is None else crf)
    writer = FieldWriter(
        dataset,
        chosen,
        member="mp4",
        columns=COLUMNS,
        settings=settings_of(recipe, source),
        made_by={"command": "render", "short_side": short_side, "crf": recipe.crf},
        held=held,
    )
    if not before and source == CLIPS:
        say(
            f"made of the clips of {dataset}: encoded twice"
            + ("" if made_from else ", since not all of its sources are there")
        )
    try:
        with stoppable():
            writer.begin()
            left = larger.filter(~pl.col("shard").is_in(list(writer._done)))
            if raw is not None:
                left = left.join(raw, on="key", how="left", maintain_order="left")
            shared = {"root": root, "name": chosen, "recipe": recipe.to_json()}
            shared |= {"base": base.to_json()} if source == SOURCES else {}
            _run(shared, left, writer.parents, workers, engine, address, say)
            writer.publish()
    finally:
        writer.close()
    field = open_field(root, chosen)
    counts = field.header["counts"]
    return Rendered(
        chosen,
        counts["samples"],
        field.header["of"],
        pictures.height - larger.height,
        larger.height - counts["samples"],
        counts["bytes"],
        source,
    )


def _all_there(rows: pl.DataFrame) -> bool:
    """Whether the films of all clips lie where they lay, with the sizes that they had; those of object stores are not asked."""
    for path, size in rows.select("path", "source_bytes").unique().iter_rows():
        try:
            if is_url(path) or Path(path).stat().st_size != size:
                return False
        except (OSError, ValueError):
            return False
    return True


def _raw_paths(store: Store) -> pl.DataFrame | None:
    """The bytes of paths that are no UTF-8, which the build's plan alone has."""
    if not store.exists(BUILD, "plan.parquet"):
        return None
    plan = pl.scan_parquet(store.fetch(BUILD, "plan.parquet"), glob=False)
    return plan.filter(pl.col("raw_path").is_not_null()).select("key", "raw_path").collect()


def _run(
    shared: dict[str, Any],
    rows: pl.DataFrame,
    parents: dict[int, str],
    workers: int | None,
    engine: str,
    address: str | None,
    say: Callable[[str], None],
) -> None:
    """Render the shards of some rows. Raises UserError where one cannot be."""
    whole = rows["shard"].n_unique()
    of = "source_bytes" if "base" in shared else "mp4_size"
    calls = (
        (
            int(shard),  # type: ignore[call-overload]
            {**shared, "shard": int(shard), "parent": parents[int(shard)], "rows": _as_json(part)},  # type: ignore[call-overload]
            _START + sum(limit_of(size, _CLIP) for size in part[of]),
        )
        for (shard,), part in rows.group_by("shard", maintain_order=True)
    )
    job = Job(f"{__name__}:render_shard", Resources(memory=500_000_000))
    with closing(
        spread(job, calls, workers=workers, engine=engine, options=EngineOptions(address=address))
    ) as outcomes:  # type: ignore[type-var]
        for done, outcome in enumerate(outcomes, 1):
            if outcome.error is not None:
                raise UserError(
                    f"shard {outcome.call.tag:06d} could not be rendered: {outcome.error}: {outcome.message}; run the same "
                    "command again, it resumes",
                    exit_code=1,
                )
            say(f"{done} of {whole} shards")


def _as_json(part: pl.DataFrame) -> list[dict[str, Any]]:
    rows = part.sort("key").to_dicts()
    for row in rows:
        row["raw_path"] = row["raw_path"].hex() if row.get("raw_path") is not None else None
    return rows


def render_shard(
    root: str,
    name: str,
    shard: int,
    parent: str,
    rows: list[dict[str, Any]],
    recipe: dict[str, Any],
    base: dict[str, Any] | None = None,
) -> int:
    """In a worker: render the clips of a shard and publish the field's. Returns how many there are.

    base: the recipe of the clips, where renditions are made of their sources. Raises UserError where a source is another now.
    """
    made: list[tuple[str, Path, Sequence[int]]] = []
    rejects = []
    told = Recipe.from_json(recipe)
    with tempfile.TemporaryDirectory(prefix="javisc-render-") as folder, MemberReader() as reader:
        for row in rows:
            out = Path(folder, f"{row['key']}.{told.name}.mp4")
            try:
                if base is not None:
                    size = _of_source(row, Path(folder), base, recipe)
                else:
                    at = {**row, DATASET_COLUMN: root}
                    clip = Path(folder, "base.mp4")
                    content = patiently(lambda at=at: reader.read(at, "mp4"), root, remote=is_url(root))  # type: ignore[misc]
                    clip.write_bytes(content or b"")
                    size = scaled(clip, out, told, row["num_frames"])
            except Rejected as error:
                if base is not None:
                    raise UserError(
                        f"{row['path']!r} is not what {row['key']} was made of ({error}): bring it back, or render --from clips "
                        "under another name (--as)",
                        exit_code=1,
                    ) from error
                rejects.append(rejected_row(row, error.reason, error.message))
                continue
            made.append((row["key"], out, size))
        commit_renditions(root, name, shard, parent, made, Path(folder) / "uploads", rejects)
    return len(made)


def _of_source(row: dict[str, Any], folder: Path, base: dict[str, Any], recipe: dict[str, Any]) -> Sequence[int]:
    """Write the rendition of a clip from its source; (height, width). Raises Rejected where the source is another now."""
    fetched = None
    if is_url(row["path"]):
        fetched = str(folder / f"{row['key']}.fetched{Path(row['path']).suffix[:8]}")
        fetch(row["path"], fetched, row["source_bytes"])
    window = [row["clip_start"], row["clip_end"]]
    at = (row["key"], row["path"], row["raw_path"], window, base, _OF_SOURCE, str(folder))
    done = compile_input(*at, fetched=fetched, renditions=[recipe])
    if fetched is not None:
        Path(fetched).unlink(missing_ok=True)
    for name in ("source_sha256", "num_frames"):
        if done[name] != row[name]:
            raise Rejected("vanished", f"its {name} is {done[name]}, it was {row[name]}")
    size: Sequence[int] = done["renditions"][recipe["name"]]
    return size


def scaled(clip: Path, out: Path, recipe: Recipe, frames: int, scaler: str = "area") -> tuple[int, int]:
    """Write a compiled clip again as `recipe` says, frame by frame; (height, width) of its pictures.

    Raises Rejected where it does not decode, or has other frames than the manifest says.
    """
    rendition, count = Rendition(out, recipe, scaler), 0
    try:
        with av.open(str(clip), "r", format="mp4") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts * stream.time_base * recipe.rate != count:  # type: ignore[operator]
                    raise Rejected("timestamps", f"frame {count} is off the grid")
                rendition.add(frame)
                count += 1
            if rendition.size is None or count != frames:
                raise Rejected("corrupt", f"{count} frames, the manifest has {frames}")
            rendition.close()
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise Rejected("corrupt", str(error)) from error
    finally:
        rendition.abandon()
    return rendition.size


def remake(dataset: str | os.PathLike[str], name: str, *, workers: int | None = None) -> Rendered:
    """Render again what a rendition lacks, as it was made; the dataset's lock is the caller's. Raises UserError."""
    field = open_field(os.fspath(dataset), name)
    recipe = Recipe.from_json(json.loads(json.dumps(field.header["settings"]["recipe"])))
    assert recipe.short_side is not None
    return render(os.fspath(dataset), recipe.short_side, crf=recipe.crf, name=name, workers=workers, held=True)

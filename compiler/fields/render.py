"""`javisc render`: smaller pictures of a dataset's clips, encoded for reading, as a field on the base's own grid."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import polars as pl

from javisc.compiler.media.encode import Converter, Encoder
from javisc.compiler.media.orientation import Orientation
from javisc.compiler.reasons import Rejected
from javisc.compiler.recipe import Recipe
from javisc.compiler.run.engine import EngineOptions
from javisc.compiler.run.spread import Job, Resources, spread
from javisc.compiler.run.stopping import stoppable
from javisc.compiler.store.fields import FieldWriter, commit_field_shard, field_schema, field_store
from javisc.compiler.store.rows import rejected_row
from javisc.manifests.environment import patiently
from javisc.manifests.errors import UserError
from javisc.manifests.fields import check_name, open_field
from javisc.manifests.io import Dataset
from javisc.manifests.members import MemberReader
from javisc.manifests.schema import DATASET_COLUMN
from javisc.manifests.urls import is_url

#: A rendition is encoded finer than its base, since it is scaled down from what was encoded once.
CRF = 18.0
COLUMNS = {"height": pl.Int32(), "width": pl.Int32()}
_NEEDED = ("key", "shard", "relpath", "path", "source_bytes", "num_frames", "height", "width", "mp4_offset", "mp4_size")
#: A shard is rendered at least so fast, bytes of its pictures a second, after a start.
_RATE, _START = 5_000.0, 600.0


@dataclass(frozen=True)
class Rendered:
    """What a rendition holds: of how many samples of all, and how many were left: as small already, or that do not decode."""

    name: str
    samples: int
    of: int
    smaller: int
    broken: int
    bytes: int


def recipe_of(base: Recipe, short_side: int, crf: float, encoder_preset: str | None = None) -> Recipe:
    """The recipe of a rendition: rate and key frames are the base's. Raises UserError for a size or quality that cannot be."""
    preset = encoder_preset or base.encoder_preset
    return base.replace(
        name=f"r{short_side}", kind="jav", short_side=short_side, crf=crf, tune="fastdecode", encoder_preset=preset
    )


def render(
    dataset: str,
    short_side: int,
    *,
    crf: float = CRF,
    name: str | None = None,
    workers: int | None = None,
    engine: str = "local",
    address: str | None = None,
    held: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Rendered:
    """Add a rendition whose shorter side has `short_side` pixels to a dataset, as the field `name` (r240 for 240).

    Clips that are as small already have none. Killed, the same call goes on; after a build has added clips, it makes theirs.
    held: the dataset's lock is the caller's. Raises UserError.
    """
    opened = Dataset.open(dataset)
    made = opened.header.get("recipe")
    if opened.bare or "datasets" in opened.header or not isinstance(made, dict):
        raise UserError(
            f"{dataset} was not made by `javisc build`: renditions are made of a compiled dataset's pictures"
        )
    chosen = check_name(name or f"r{short_side}")
    recipe = recipe_of(Recipe.from_json(made), short_side, crf)
    writer = FieldWriter(
        dataset,
        chosen,
        member="mp4",
        columns=COLUMNS,
        settings={"recipe": recipe.to_json()},
        made_by={"command": "render", "short_side": short_side, "crf": crf},
        held=held,
    )
    root = opened.folder
    try:
        with stoppable():
            writer.begin()
            pictures = opened.manifest().filter(pl.col("mp4_size") > 0).select(_NEEDED).collect()
            larger = pictures.filter(pl.min_horizontal("height", "width") > short_side)
            if not larger.height:
                raise UserError(
                    f"--short-side {short_side}: no clip of {dataset} is larger than that: give a smaller one"
                )
            left = larger.filter(~pl.col("shard").is_in(list(writer._done)))
            _run(root, chosen, recipe, left, writer.parents, workers, engine, address, say)
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
    )


def _run(
    root: str,
    name: str,
    recipe: Recipe,
    rows: pl.DataFrame,
    parents: dict[int, str],
    workers: int | None,
    engine: str,
    address: str | None,
    say: Callable[[str], None],
) -> None:
    """Render the shards of some rows. Raises UserError where one cannot be."""
    whole = rows["shard"].n_unique()
    calls = (
        (
            int(shard),  # type: ignore[call-overload]
            {
                "root": root, "name": name, "shard": int(shard), "parent": parents[int(shard)],  # type: ignore[call-overload]
                "rows": part.sort("key").to_dicts(), "recipe": recipe.to_json(),
            },
            _START + int(part["mp4_size"].sum()) / _RATE,
        )
        for (shard,), part in rows.group_by("shard", maintain_order=True)
    )  # fmt: skip
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


def render_shard(
    root: str, name: str, shard: int, parent: str, rows: list[dict[str, Any]], recipe: dict[str, Any]
) -> int:
    """In a worker: render the clips of a shard and publish the field's. Returns how many there are."""
    made, rejects, contents = [], [], []
    told = Recipe.from_json(recipe)
    with tempfile.TemporaryDirectory(prefix="javisc-render-") as folder, MemberReader() as reader:
        store = field_store(root, name, Path(folder) / "uploads")
        for row in rows:
            at = {**row, DATASET_COLUMN: root}
            clip = Path(folder, "base.mp4")
            content = patiently(lambda at=at: reader.read(at, "mp4"), root, remote=is_url(root))  # type: ignore[misc]
            clip.write_bytes(content or b"")
            out = Path(folder, f"{row['key']}.mp4")
            try:
                height, width = scaled(clip, out, told, row["num_frames"])
            except Rejected as error:
                rejects.append(rejected_row(row, error.reason, error.message))
                continue
            made.append({"key": row["key"], "shard": shard, "height": height, "width": width})
            contents.append(out)
        schema = field_schema("mp4", COLUMNS)
        frame = pl.DataFrame(made, schema={column: schema[column] for column in ("key", "shard", *COLUMNS)})
        commit_field_shard(store, schema, "mp4", frame, contents, shard, parent, rejects)
    return len(made)


def scaled(clip: Path, out: Path, recipe: Recipe, frames: int) -> tuple[int, int]:
    """Write a compiled clip again as `recipe` says, frame by frame; (height, width) of its pictures.

    Raises Rejected where it does not decode, or has other frames than the manifest says.
    """
    converter, encoder = Converter(recipe, Orientation(), Fraction(1)), None
    try:
        with av.open(str(clip), "r", format="mp4") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for number, frame in enumerate(container.decode(stream)):
                if frame.pts is None or frame.pts * stream.time_base * recipe.rate != number:  # type: ignore[operator]
                    raise Rejected("timestamps", f"frame {number} is off the grid")
                ready = converter.convert(frame)
                if encoder is None:
                    assert converter.size is not None
                    encoder = Encoder(out, recipe, *converter.size)
                encoder.add(ready)
            if encoder is None or encoder.frames != frames:
                raise Rejected("corrupt", f"{encoder.frames if encoder else 0} frames, the manifest has {frames}")
            encoder.close()
            encoder = None
    except (av.error.FFmpegError, IndexError, OSError) as error:
        raise Rejected("corrupt", str(error)) from error
    finally:
        if encoder is not None:
            encoder.abandon()
    assert converter.size is not None
    return converter.size[1], converter.size[0]


def remake(dataset: str | os.PathLike[str], name: str, *, workers: int | None = None) -> Rendered:
    """Render again what a rendition lacks, as it was made; the dataset's lock is the caller's. Raises UserError."""
    field = open_field(os.fspath(dataset), name)
    recipe = Recipe.from_json(json.loads(json.dumps(field.header["settings"]["recipe"])))
    assert recipe.short_side is not None
    return render(os.fspath(dataset), recipe.short_side, crf=recipe.crf, name=name, workers=workers, held=True)

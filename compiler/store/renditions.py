"""Renditions as fields: what one is begun with, and the shards of it, whoever encodes their pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from javisc.compiler.recipe import Recipe
from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.fields import commit_field_shard, field_schema, field_store
from javisc.compiler.store.files import Store
from javisc.compiler.store.writer import BEGUN
from javisc.manifests.errors import UserError

COLUMNS = {"height": pl.Int32(), "width": pl.Int32()}
#: What renditions are scaled from: the films that a dataset was compiled of, or its own clips, which were encoded once already.
SOURCES, CLIPS = "sources", "clips"
#: x264's quality of a rendition where nothing is said (benchmarks/results/renditions.md).
CRF = 12.0


def recipe_of(base: Recipe, short_side: int, crf: float = CRF, encoder_preset: str | None = None) -> Recipe:
    """The recipe of a rendition: rate and key frames are the base's. Raises UserError for a size or quality that cannot be."""
    preset = encoder_preset or base.encoder_preset
    return base.replace(
        name=f"r{short_side}",
        kind="jav",
        codec="h264",
        short_side=short_side,
        crf=crf,
        tune="fastdecode",
        encoder_preset=preset,
    )


def settings_of(recipe: Recipe, made_from: str) -> dict[str, Any]:
    """What shapes the bytes of a rendition."""
    # A setting that recipes have had only since then, and renditions always at its default: older fields are the same.
    told = {name: value for name, value in recipe.to_json().items() if name != "codec"}
    return {"recipe": told, "from": made_from, "scaler": "area", "sizes": "nearest even"}


def made_as_now(settings: Mapping[str, Any]) -> bool:
    """True if a rendition of these settings would be made with the same bytes today: an older javisc made other sizes."""
    now = settings_of(Recipe.from_json(settings["recipe"]), settings.get("from", CLIPS))
    return all(settings.get(name) == value for name, value in now.items() if name != "recipe")


def begun_with(base: Store, name: str) -> dict[str, Any] | None:
    """The settings that a field was begun with, None where there is none."""
    store = field_store(base.root, name, base.scratch)
    if not store.exists(BUILD, BEGUN):
        return None
    found = json.loads(store.read(BUILD, BEGUN))
    return found if isinstance(found, dict) else None


def begin_built(base: Store, recipe: Recipe) -> None:
    """Begin the rendition that a build makes with its clips. Raises UserError where it was made otherwise before."""
    before = begun_with(base, recipe.name)
    columns = {column: str(dtype) for column, dtype in COLUMNS.items()}
    wanted = json.loads(json.dumps({"member": "mp4", "columns": columns, **settings_of(recipe, SOURCES)}))
    if before is None:
        store = field_store(base.root, recipe.name, base.scratch)
        store.write((json.dumps(wanted, indent=1, sort_keys=True) + "\n").encode(), BUILD, BEGUN)
    elif before != wanted:
        raise UserError(
            f"--renditions {recipe.short_side}: field {recipe.name} of {base.root} was made otherwise before: leave it out, "
            f"or undo it first (`javisc annotate {base.root} --undo {recipe.name}`)"
        )


def commit_renditions(
    root: str,
    name: str,
    shard: int,
    parent: str,
    clips: Sequence[tuple[str, Path, Sequence[int]]],
    uploads: Path,
    rejects: Sequence[dict[str, Any]] = (),
) -> None:
    """Publish a shard of a rendition. clips: (key, file, (height, width)) in the order of keys. Raises UserError."""
    schema = field_schema("mp4", COLUMNS)
    rows: list[Mapping[str, Any]] = [
        {"key": key, "shard": shard, "height": size[0], "width": size[1]} for key, _, size in clips
    ]
    frame = pl.DataFrame(rows, schema={column: schema[column] for column in ("key", "shard", *COLUMNS)})
    store = field_store(root, name, uploads)
    commit_field_shard(store, schema, "mp4", frame, [file for _, file, _ in clips], shard, parent, rejects)

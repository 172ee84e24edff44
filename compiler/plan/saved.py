"""The settings a dataset was begun with, kept beside its plan, and whether a later build agrees with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from javisc.compiler.plan.layout import Layout
from javisc.compiler.plan.options import BuildOptions
from javisc.compiler.recipe import Recipe
from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store
from javisc.manifests.errors import UserError

SETTINGS = (BUILD, "settings.json")


def read_settings(store: Store) -> dict[str, Any]:
    """The settings as they were written. Raises FileNotFoundError."""
    found: dict[str, Any] = json.loads(store.read(*SETTINGS))
    return found


def check_settings(store: Store, recipe: Recipe, options: BuildOptions) -> None:
    """Raise UserError if the dataset was begun with settings that shape bytes otherwise."""
    settings = read_settings(store)
    if settings["recipe_digest"] != recipe.digest:
        was, now = settings["recipe"], recipe.to_json()
        what = ", ".join(f"{name} {was.get(name)!r} → {now[name]!r}" for name in now if was.get(name) != now[name])
        raise UserError(
            f"{store.root} was built with another recipe ({what}): give the settings it had, or another --out"
        )
    for name, value in (("seed", options.seed), ("split", shares_as_json(options.split))):
        if settings[name] != value:
            raise UserError(
                f"{store.root} was built with --{name} {settings[name]!r}, now it is {value!r}: give the same, or another --out"
            )


def write_settings(store: Store, recipe: Recipe, options: BuildOptions, layout: Layout) -> None:
    """Publish the settings of this build."""
    settings = {
        "recipe": recipe.to_json(),
        "recipe_digest": recipe.digest,
        "seed": options.seed,
        "split": shares_as_json(options.split),
        "shard_size": options.shard_size,
        "per_shard": layout.per_shard,
    }
    store.write((json.dumps(settings, indent=1) + "\n").encode(), *SETTINGS)


def shares_as_json(split: Mapping[str, float]) -> list[list[Any]]:
    """A split as JSON that keeps its order, which decides too."""
    return [[name, float(share)] for name, share in split.items()]

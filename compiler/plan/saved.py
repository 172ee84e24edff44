"""The settings a dataset was begun with, kept beside its plan, and whether a later build agrees with them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from javisc.compiler.plan.layout import Layout
from javisc.compiler.plan.options import BuildOptions
from javisc.compiler.recipe import FORMER, Recipe
from javisc.compiler.store.commits import BUILD
from javisc.compiler.store.files import Store
from javisc.compiler.store.tables import tools
from javisc.manifests.errors import UserError

SETTINGS = (BUILD, "settings.json")


#: Tools whose versions shape no shard, only the tables' encoding.
_TABLES_ONLY = frozenset({"polars"})


def read_settings(store: Store) -> dict[str, Any]:
    """The settings as they were written. Raises UserError where they are missing or damaged."""
    try:
        found = json.loads(store.read(*SETTINGS))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(
            f"{store.path(*SETTINGS)} is missing or damaged ({error}): restore it, or give another --out", exit_code=1
        ) from error
    if not isinstance(found, dict) or not {"recipe", "recipe_digest", "seed", "split"} <= set(found):
        raise UserError(f"{store.path(*SETTINGS)} is damaged: restore it, or give another --out", exit_code=1)
    return found


def as_begun(out: str, recipe: Recipe, options: BuildOptions, said: Collection[str]) -> tuple[Recipe, BuildOptions]:
    """The recipe and options of a build into `out`, with what nobody said taken from what the dataset was begun with.

    said: names of settings of the recipe, `recipe` itself for a choice of preset, `seed` and `split`. A preset that was chosen is
    what it was when the dataset was begun. A dataset of another kind,
    or none, changes nothing: what does not agree is refused where the plan is made. Raises UserError for damaged settings.
    """
    with tempfile.TemporaryDirectory(prefix="javisc-settings-") as folder:
        store = Store(out, Path(folder))
        if not store.exists(*SETTINGS):
            return recipe, options
        begun = read_settings(store)
    was = Recipe.from_json(begun["recipe"])
    given = {name: value for name, value in recipe.to_json().items() if name in said}
    former = [one.replace(**given) for one in FORMER.get(recipe.name, ())]
    if was.kind == recipe.kind and ("recipe" not in said or was in former):
        recipe = was.replace(**given)
    if "seed" not in said:
        options = replace(options, seed=int(begun["seed"]))
    if "split" not in said:
        options = replace(options, split={str(name): float(share) for name, share in begun["split"]})
    return recipe, options


def check_settings(store: Store, recipe: Recipe, options: BuildOptions) -> None:
    """Raise UserError if the dataset was begun with settings that shape bytes otherwise."""
    settings = read_settings(store)
    began, here = settings.get("tools") or {}, shaping_tools()
    differ = [f"{name} {began[name]} → {here.get(name)}" for name in sorted(began) if began[name] != here.get(name)]
    if differ and here not in settings.get("mixed_tools", []) and not options.mix_tools:
        raise UserError(
            f"{store.root} was built with other tools ({', '.join(differ)}), and shards of two encoders would meet in it: "
            "install what it was built with, give another --out, or say --mix-tools",
            exit_code=1,
        )
    if settings["recipe_digest"] != recipe.digest:
        was, now = settings["recipe"], recipe.to_json()
        what = ", ".join(f"{name} {was.get(name)!r} → {now[name]!r}" for name in now if was.get(name) != now[name])
        raise UserError(
            f"{store.root} was built with another recipe ({what}): give the settings it had, or another --out"
        )
    for name, value in (("seed", options.seed), ("split", shares_as_json(options.split))):
        if settings[name] != value:
            raise UserError(
                f"{store.root} was built {_given(name, settings[name])}, now it is {_given(name, value)}: give the same, or "
                "another --out"
            )


def _given(name: str, value: Any) -> str:
    """A setting as the command line gives it."""
    if name != "split":
        return f"with --{name} {value}"
    return f"with --split {','.join(f'{part}={share:g}' for part, share in value)}" if value else "without --split"


def shaping_tools() -> dict[str, str]:
    """Versions of the tools that shape shards."""
    return {name: version for name, version in tools().items() if name not in _TABLES_ONLY}


def write_settings(store: Store, recipe: Recipe, options: BuildOptions, layout: Layout, plan: str) -> None:
    """Publish the settings of this build. plan: the digest of its plan, which joins those of the plans before it."""
    old = read_settings(store) if store.exists(*SETTINGS) else {}
    plans, mixed, now = list(old.get("plans", [])), list(old.get("mixed_tools", [])), shaping_tools()
    first = old.get("tools") or now
    if now != first and now not in mixed:
        mixed.append(now)
    settings = {
        "recipe": recipe.to_json(),
        "recipe_digest": recipe.digest,
        "seed": options.seed,
        "split": shares_as_json(options.split),
        "shard_size": options.shard_size,
        "per_shard": layout.per_shard,
        "tools": first,
        "mixed_tools": mixed,
        "plans": plans if plan in plans else [*plans, plan],
    }
    store.write((json.dumps(settings, indent=1) + "\n").encode(), *SETTINGS)


def add_plan(store: Store, plan: str) -> None:
    """Let the settings know the digest of another plan, which follows those before it."""
    settings = read_settings(store)
    plans = settings.get("plans", [])
    if plan not in plans:
        store.write((json.dumps({**settings, "plans": [*plans, plan]}, indent=1) + "\n").encode(), *SETTINGS)


def shares_as_json(split: Mapping[str, float]) -> list[list[Any]]:
    """A split as JSON that keeps its order, which decides too."""
    return [[name, float(share)] for name, share in split.items()]

"""Options that change a recipe, made of what compiler/recipe.py declares of its settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from javisc.compiler.recipe import PRESETS, Recipe, settings


def recipe_options(
    *names: str, preset: str | None = None, help: dict[str, str] | None = None, **defaults: Any
) -> Callable[[Any], Any]:
    """Decorate a command with options for these settings; they arrive as keyword arguments, None where nothing is said.

    preset: whose values are shown as defaults; None: the command lets its user choose one. help: other words for some. defaults:
    values that the command has instead of the preset's.
    """

    def decorate(command: Any) -> Any:
        for name in reversed(names):
            setting = settings()[name]
            shown = {} if preset is None else _default(defaults.get(name, getattr(PRESETS[preset], name)))
            more = {"is_flag": True, "default": None} if bool in setting.types else {"type": _type(setting.types)}
            text = (help or {}).get(name, setting.help)
            command = click.option(
                f"--{name.replace('_', '-')}", metavar=setting.metavar, help=text, **{**more, **shown}
            )(command)
        return command

    return decorate


def changed(recipe: Recipe, options: dict[str, Any], *names: str) -> Recipe:
    """Take these settings out of `options` and return the recipe with those that were given. Raises UserError."""
    given = {name: options.pop(name) for name in names}
    return recipe.replace(**{name: value for name, value in given.items() if value is not None})


def _default(value: Any) -> dict[str, Any]:
    return {} if value is None else {"default": value, "show_default": True}


def _type(types: tuple[type, ...]) -> type:
    return str if str in types else float if float in types else int

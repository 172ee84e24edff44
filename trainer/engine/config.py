"""Recipes: YAML over typed dataclasses, with `key=value` overrides. An unknown key is an error that names the nearest one."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from javisc.manifests.errors import UserError
from javisc.trainer.engine.distributed import ParallelConfig
from javisc.trainer.engine.optim import EMAConfig, LossScaleConfig, OptimizerConfig
from javisc.trainer.engine.schedule import ScheduleConfig

#: A recipe is a page of settings; larger files are no recipes.
MAX_RECIPE_BYTES = 1 << 20


@dataclass
class RunConfig:
    """How long a run is and what it leaves behind. Intervals are in optimizer steps; 0 switches the thing off."""

    steps: int = 1000
    #: Passes over the data after which a run ends before `steps`; 0 counts none.
    epochs: int = 0
    accumulate: int = 1
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    validate_every: int = 0
    #: Validation stops the run after so many validations without a better `metric`; 0 never does.
    patience: int = 0
    metric: str = "accuracy_1"
    metric_to_max: bool = True
    #: Steps in a row whose gradient was not finite before the run gives up.
    max_skipped: int = 20
    deterministic: bool = True
    tensorboard: bool = True
    wandb: bool = False


@dataclass
class Recipe:
    """What every task shares. A task's own recipe adds its data and its model."""

    task: str = MISSING
    seed: int = 1337
    run: RunConfig = field(default_factory=RunConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


R = TypeVar("R", bound=Recipe)


def recipe_names() -> list[str]:
    """The recipes that javisc brings."""
    folder = importlib.resources.files("javisc.trainer.recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _text(name: str) -> tuple[str, str]:
    """The text of a recipe by name or path, and what to call it in messages."""
    if name in recipe_names():
        return (importlib.resources.files("javisc.trainer.recipes") / f"{name}.yaml").read_text(encoding="utf-8"), name
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, recipe_names(), 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"recipe {name!r}: {hint}it may be {', '.join(recipe_names())}, or the path of a YAML file")
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes; a recipe has at most {MAX_RECIPE_BYTES}")
    return path.read_text(encoding="utf-8"), str(path)


def _tree(name: str) -> tuple[DictConfig, str]:
    text, source = _text(name)
    try:
        tree = OmegaConf.create(yaml.safe_load(text) or {})
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{source} is no YAML of settings: {str(error).splitlines()[0]}") from error
    if not isinstance(tree, DictConfig):
        raise UserError(f"{source} is a list: a recipe is a mapping of settings")
    return tree, source


def task_of(name: str) -> str:
    """The task a recipe names."""
    tree, source = _tree(name)
    task = tree.get("task")
    if not isinstance(task, str):
        raise UserError(f"{source} names no task: add a line such as 'task: sync'")
    return task


def load_recipe(name: str, schema: type[R], overrides: Sequence[str] = ()) -> R:
    """The recipe called or stored at `name`, merged over `schema`'s defaults, then the overrides `a.b=value`.

    Raises UserError that names the key (and the nearest known one), the value and where it came from.
    """
    tree, source = _tree(name)
    config = OmegaConf.structured(schema)
    config = _merge(config, tree, source, schema)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key:
            raise UserError(f"override {override!r}: write key=value, for example run.steps=100")
        try:
            part = OmegaConf.from_dotlist([override])
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"override {override!r}: {str(error).splitlines()[0]}") from error
        config = _merge(config, part, f"override {override!r}", schema)
    try:
        recipe = OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}; set it in the recipe or as key=value") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{source}: {str(error).splitlines()[0]}") from error
    assert isinstance(recipe, schema)
    return recipe


def _merge(config: Any, part: DictConfig, source: str, schema: type) -> Any:
    try:
        return OmegaConf.merge(config, part)
    except ConfigKeyError as error:
        unknown = str(error.full_key)
        known = list(_keys(OmegaConf.structured(schema)))
        near = difflib.get_close_matches(unknown, known, 1) or [
            key for key in known if key.rsplit(".", 1)[-1] == unknown.rsplit(".", 1)[-1]
        ]
        hint = (
            f"; did you mean {near[0]}?" if near else f"; the sections are {', '.join(f.name for f in fields(schema))}"
        )
        raise UserError(f"{source}: there is no setting {unknown!r}{hint}") from error
    except OmegaConfBaseException as error:
        where = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{source}: {where}{str(error.msg or error).splitlines()[0]}") from error


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    for key in config:
        yield prefix + str(key)
        if not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig):
            yield from _keys(config[key], f"{prefix}{key}.")


def as_dict(recipe: Any) -> dict[str, Any]:
    """A recipe as plain values, for checkpoints and logs."""
    assert is_dataclass(recipe)
    container = OmegaConf.to_container(OmegaConf.structured(recipe))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `key: old → new` for every setting that differs."""
    lines = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} → {after}")
    return lines

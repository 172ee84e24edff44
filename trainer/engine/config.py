"""Recipes: YAML over typed dataclasses, with `key=value` overrides. An unknown key is an error that names the nearest one."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from javisc.manifests.errors import UserError
from javisc.trainer.engine.distributed import ParallelConfig, check, sharing
from javisc.trainer.engine.fitting import counted, fitted, yaml_told
from javisc.trainer.engine.optim import SGD_IS_WHOLE, EMAConfig, LossScaleConfig, OptimizerConfig
from javisc.trainer.engine.schedule import ScheduleConfig
from javisc.trainer.engine.settings import check_values, setting, told

#: A recipe is a page of settings; larger files are no recipes.
MAX_RECIPE_BYTES = 1 << 20
#: See `RunConfig.nondeterministic`.
NONDETERMINISTIC = ("warn", "raise")


@dataclass
class RunConfig:
    """How long a run is and what it leaves behind. Intervals are in optimizer steps; 0 switches the thing off."""

    name: str = setting("", "What the run is called at Weights & Biases; its folder's name if empty.")
    steps: int = setting(1000, "Optimizer steps of the whole run.", least=1)
    epochs: int = setting(0, "Passes over the data after which a run ends before `steps`; 0 counts none.", least=0)
    accumulate: int = setting(1, "Batches whose gradients make one step.", least=1)
    log_every: int = setting(10, "Steps between two rows of the log.", least=1)
    checkpoint_every: int = setting(500, "Steps between checkpoints; 0 writes none but the last weights.", least=0)
    keep_checkpoints: int = setting(3, "The newest checkpoints that are kept.", least=1)
    validate_every: int = setting(0, "Steps between validations; 0 never validates.", least=0)
    preview_every: int = setting(0, "Steps between previews (docs/train.md); 0 makes none.", least=0)
    patience: int = setting(0, "Validations without a better `metric` that stop the run; 0 never does.", least=0)
    metric: str = setting("accuracy_1", "The measured value that chooses `best/` and that patience waits for.")
    metric_to_max: bool = setting(True, "Whether a larger `metric` is better.")
    max_skipped: int = setting(20, "Steps in a row without a finite gradient before the run gives up.", least=0)
    deterministic: bool = setting(True, "Take operations whose sums run in a fixed order, where there are such.")
    nondeterministic: str = setting(
        "warn",
        "What `deterministic` does at an operation that has no such form on the device.",
        choices=NONDETERMINISTIC,
    )
    watchdog_sec: float = setting(
        300.0, "Seconds without a step after which a process writes its stacks and last batch; 0 never does.", least=0
    )
    gc_every: int = setting(0, "Steps between collections of Python's garbage; 0 leaves it to Python.", least=0)
    profile: int = setting(0, "Steps that are traced after the first three, into the run's folder `profile`.", least=0)
    tensorboard: bool = setting(True, "Write TensorBoard's files, too.")
    wandb: bool = setting(False, "Log to Weights & Biases, too; needs javisc[wandb].")


@dataclass
class Recipe:
    """What every task shares. A task's own recipe adds its data and its model."""

    task: str = setting(MISSING, "Which of the trainer's tasks this is a recipe of.")
    seed: int = setting(1337, "From it follows every random choice: weights, order, crops, noise, dropout.")
    run: RunConfig = field(default_factory=RunConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    loss_scale: LossScaleConfig = field(default_factory=LossScaleConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)


R = TypeVar("R", bound=Recipe)


class _OnceLoader(yaml.SafeLoader):
    """YAML's safe loader, which would take the last of two equal keys without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name is not None and name in seen:
                raise yaml.YAMLError(f"line {key.start_mark.line + 1} names {key.value!r} a second time")
            seen.add(name)
        return super().construct_mapping(node, deep)


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
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no text in UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from None


def _tree(name: str) -> tuple[Mapping[Any, Any], str]:
    text, source = _text(name)
    try:
        tree = yaml.load(text, _OnceLoader) or {}
        counted(tree, source)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is no YAML of settings: {yaml_told(error)}") from error
    except RecursionError:
        raise UserError(f"{source} is no YAML of settings: it nests too deep") from None
    if not isinstance(tree, Mapping):
        kind = "list" if isinstance(tree, list) else "single value"
        raise UserError(f"{source} is a {kind}: a recipe is a mapping of settings, as 'run: {{steps: 100}}'")
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

    An override sets: `key={...}` replaces all that `key` held, `key.sub=...` changes one part of it.
    Raises UserError that names the key (and the nearest known one), the value and where it came from.
    """
    tree, source = _tree(name)
    config = _merge(OmegaConf.structured(schema), tree, f"{source}: ", schema)
    for override in overrides:
        config = _set(config, override, schema)
    return _made(config, source, schema)


def recipe_from(settings: Any, schema: type[R], source: str) -> R:
    """A recipe from plain values, as `as_dict` gave them. Raises UserError as `load_recipe` does."""
    return _made(_merge(OmegaConf.structured(schema), settings, f"{source}: ", schema), source, schema)


def _made(config: Any, source: str, schema: type[R]) -> R:
    if missing := sorted(OmegaConf.missing_keys(config)):
        raise UserError(f"{source}: {missing[0]} is not set; set it in the recipe, or as {missing[0]}=VALUE")
    recipe = OmegaConf.to_object(config)
    assert isinstance(recipe, schema)
    check_values(recipe)
    return recipe


def _set(config: Any, override: str, schema: type) -> Any:
    """The settings with one override."""
    key, equals, _ = override.partition("=")
    if not equals or not all(part.strip() == part != "" for part in key.split(".")):
        raise UserError(f"override {override!r}: write key=value, for example run.steps=100")
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={override[len(key) + 1 :]}"]), resolve=False)
    except yaml.YAMLError as error:
        raise UserError(f"override {override!r}: its value is no YAML: {yaml_told(error)}") from error
    except (OmegaConfBaseException, RecursionError) as error:
        raise UserError(f"override {override!r}: {str(error).splitlines()[0]}") from error
    assert isinstance(given, dict)
    part: Any = given["value"]
    replaces = isinstance(part, Mapping)
    for name in reversed(key.split(".")):
        part = {name: part}
    merged = _merge(config, part, "", schema)
    if not replaces:
        return merged
    # A mapping sets the whole of its key: what stood there is emptied first, a section back to its defaults.
    section = OmegaConf.get_type(OmegaConf.select(merged, key))
    empty = OmegaConf.structured(section) if is_dataclass(section) else {}
    OmegaConf.update(merged, key, empty, merge=False)
    return _merge(merged, part, "", schema)


def _merge(config: Any, part: Mapping[Any, Any], where: str, schema: type) -> Any:
    """The settings with some changed. `where`: what an error begins with."""
    try:
        return OmegaConf.merge(config, OmegaConf.create(fitted(part, schema, where)))
    except OmegaConfBaseException as error:  # what `fitted` does not know of
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{where}{key}{str(error.msg or error).splitlines()[0]}") from error


def check_together(recipe: Recipe, processes: int) -> None:
    """Raise UserError for settings that exclude each other, or that so many processes cannot serve."""
    check(recipe.parallel)
    sharing(recipe.parallel, processes)
    if recipe.optimizer.name == "sgd" and recipe.parallel.strategy != "ddp":
        raise UserError(SGD_IS_WHOLE)


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
        before, after = _listed(old.get(key)), _listed(new.get(key))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {told(before)} → {told(after)}")
    return lines


def _listed(value: Any) -> Any:
    """A value as JSON gives it back: tuples are lists."""
    return list(value) if isinstance(value, tuple) else value


def as_yaml(recipe: Any) -> str:
    """A recipe as YAML that `load_recipe` reads back as the same settings."""
    return OmegaConf.to_yaml(OmegaConf.create(as_dict(recipe)))

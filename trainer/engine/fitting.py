"""What a recipe says, held against what its dataclasses want: every value by its type, every mistake by its setting's name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from omegaconf.errors import ValidationError
from omegaconf.nodes import BooleanNode, FloatNode, IntegerNode, StringNode

from javisc.manifests.errors import UserError
from javisc.trainer.engine.settings import told, type_told

#: What is a whole number, a number, a truth value or a text: OmegaConf's word, which takes the recipe afterwards.
_NODES: dict[Any, Callable[[Any], Any]] = {int: IntegerNode, float: FloatNode, bool: BooleanNode, str: StringNode}
#: Values of a recipe, counted as often as its aliases spell them out.
MAX_VALUES = 100_000


class _Unfit(Exception):
    """A value that no type takes: its key, itself, the type that was asked for."""

    def __init__(self, key: str, value: Any, hint: Any) -> None:
        super().__init__(key)
        self.key, self.value, self.hint = key, value, hint


def fitted(tree: Mapping[Any, Any], schema: type, where: str, prefix: str = "") -> dict[str, Any]:
    """The settings of a section, checked; names in mappings become text, as 17 in `{240p: {17: …}}`.

    `where`: what the message begins with, as the file's name; "" for none. Raises UserError for a setting that is not known (and
    names the nearest one), a section that is no mapping, and a value of another type.
    """
    hints, made = get_type_hints(schema), {}
    names = [one.name for one in fields(schema)]
    for name, value in tree.items():
        if name not in names:
            raise UserError(
                f"{where}there is no setting {prefix + str(name)!r}{_near(str(name), names, schema, prefix)}"
            )
        key, hint = f"{prefix}{name}", hints[name]
        section = section_of(hint)
        if section is not None and isinstance(value, Mapping):
            made[name] = fitted(value, section, where, f"{key}.")
        elif section is not None and not (value is None and NoneType in get_args(hint)):
            inside = [one.name for one in fields(section)]
            raise UserError(
                f"{where}{key}={told(value)}: {key} is a section; write {key}.NAME=VALUE, NAME being {_some(inside)}"
            )
        else:
            try:
                made[name] = value if section is not None else _fit(hint, value, key)
            except _Unfit as unfit:
                raise UserError(
                    f"{where}{unfit.key}={told(unfit.value)}: its type is {type_told(unfit.hint)}; change {unfit.key}"
                ) from None
    return made


def section_of(hint: Any) -> type | None:
    """The dataclass that a setting holds, None if it holds a value."""
    return next((kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and is_dataclass(kind)), None)


def _fit(hint: Any, value: Any, key: str) -> Any:
    """The value with names as text. Raises _Unfit."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{key}={value}: a recipe fills in no ${{…}}; write what it stands for")
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        (rest,) = (one for one in inner if one is not NoneType)
        try:
            return _fit(rest, value, key)
        except _Unfit as unfit:
            raise _Unfit(unfit.key, unfit.value, hint if unfit.hint is rest else unfit.hint) from None
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _Unfit(key, value, hint)
        return {_name(name, key): _fit(inner[1], item, f"{key}.{name}") for name, item in value.items()}
    if origin in (list, tuple):
        fixed = origin is tuple and inner[-1] is not Ellipsis
        if not isinstance(value, list | tuple) or (fixed and len(value) != len(inner)):
            raise _Unfit(key, value, hint)
        try:
            return [_fit(inner[i] if fixed else inner[0], item, key) for i, item in enumerate(value)]
        except _Unfit:
            raise _Unfit(key, value, hint) from None
    if hint is Any:
        return {_name(name, key): item for name, item in value.items()} if isinstance(value, Mapping) else value
    if isinstance(value, Mapping | list | tuple) or value is None:
        raise _Unfit(key, value, hint)
    if isinstance(value, date):  # YAML reads 2026-11-29 as one
        value = str(value)
    try:
        _NODES[hint](value)
    except ValidationError:
        raise _Unfit(key, value, hint) from None
    return value


def _name(name: Any, key: str) -> str:
    """A name in a mapping as text; a number that YAML read in it is written as it was. Raises UserError for what is no name."""
    if isinstance(name, str) or type(name) is int:
        return str(name)
    raise UserError(f"{key}: {told(name)} is no name; write it in quotes, as {key}={{'{told(name)}': …}}")


def _near(name: str, names: Sequence[str], schema: type, prefix: str) -> str:
    """What was meant: a setting of the same section, else one of that name elsewhere in it, else what there is."""
    near = difflib.get_close_matches(name, names, 1)
    deeper = [key for key in _known(schema) if key.rsplit(".", 1)[-1] == name]
    if near or deeper:
        return f"; did you mean {prefix}{[*near, *deeper][0]}?"
    return f"; {prefix.rstrip('.') or 'a recipe'} has {_some(names)}"


def _known(schema: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    hints = get_type_hints(schema)
    for one in fields(schema):
        yield prefix + one.name
        if (section := section_of(hints[one.name])) is not None:
            yield from _known(section, f"{prefix}{one.name}.")


def _some(names: Sequence[str], most: int = 12) -> str:
    """Names in a row; of many the first, and where the others stand."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more (--keys lists them)" if len(names) > most else "")


def counted(value: Any, source: str) -> None:
    """Raise UserError if a recipe's aliases make it refer to itself, or spell out more values than any recipe has."""
    known: dict[int, int] = {}

    def count(value: Any) -> int:
        if not isinstance(value, Mapping | list):
            return 1
        if id(value) not in known:
            known[id(value)] = MAX_VALUES + 1  # what a list that holds itself finds
            items = value.values() if isinstance(value, Mapping) else value
            known[id(value)] = 1 + sum(map(count, items))
        return known[id(value)]

    if count(value) > MAX_VALUES:
        raise UserError(
            f"{source}: its aliases (*name) spell out more than {MAX_VALUES} values; write them out, or fewer"
        )


def yaml_told(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text, and where, in one line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None:
        return str(error).splitlines()[0]
    if problem.startswith("but "):
        problem = f"{error.context}, {problem}"  # type: ignore[attr-defined]
    spaces = "; indent with spaces" if "'\\t'" in problem else ""
    return f"{problem}{spaces}" + (f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else "")

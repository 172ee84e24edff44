"""What a setting is beside its name: its bounds and its meaning, written where it is declared, checked and listed from there."""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from javisc.manifests.errors import UserError

_BOUNDS, _MEANING = "bounds", "meaning"
#: Where a class has no word for a setting of its own, the last resort of `--keys`.
_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class Bounds:
    """What a value may be: from `least` to `most`, strictly above `above`, or one of `choices`. For lists, every item."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(self.choices)
        if self.above is not None:
            return f"above {self.above:g}" + ("" if self.most is None else f", at most {self.most:g}")
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}"
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"

    @property
    def rule(self) -> str:
        """The bounds as a sentence."""
        return f"it {'may' if self.choices else 'must'} be {self}"

    def hold(self, value: Any) -> bool:
        """Whether a value is allowed; None and what no bound is meant for are."""
        if isinstance(value, list | tuple):
            return all(self.hold(item) for item in value)
        if self.choices:
            return value is None or value in self.choices
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
        )


def setting(
    default: Any,
    meaning: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field with bounds and a meaning. A list, a dict or a class as `default` is made anew for every instance."""
    metadata: dict[str, Any] = {_MEANING: meaning}
    if choices or not (least is None and most is None and above is None):
        metadata[_BOUNDS] = Bounds(least, most, above, tuple(choices))
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def check_values(settings: Any, prefix: str = "") -> None:
    """Raise a UserError for the first value out of its bounds, or not finite, in a dataclass and all within it."""
    for one in fields(settings):
        value, key = getattr(settings, one.name), prefix + one.name
        if is_dataclass(value):
            check_values(value, f"{key}.")
            continue
        bounds: Bounds | None = one.metadata.get(_BOUNDS)
        if bounds is not None and not bounds.hold(value):
            raise UserError(f"{key}={told(value)}: {bounds.rule}; change {key}")
        if not _finite(value):
            raise UserError(f"{key}={told(value)}: it must be finite; change {key}")


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(_finite(item) for item in value.values())
    return not isinstance(value, list | tuple) or all(_finite(item) for item in value)


def told(value: Any) -> str:
    """A value as it is written in a recipe or on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {told(item)}" for key, item in value.items()) + "}"
    return str(list(value)) if isinstance(value, tuple) else str(value)


def coerced(schema: type, options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options as the types of the dataclass `schema` want them, within their bounds: for what comes from JSON or a mapping.

    Raises UserError that names the option, what it was and what it may be. Names that the schema does not have are the caller's.
    """
    hints, made = _hints(schema), {}
    for one in fields(schema):
        if one.name not in options:
            continue
        value = options[one.name]
        is_setting = where.replace(".", "").isidentifier()
        key = f"{where}.{one.name}" if is_setting else f"{where}: {one.name}"
        named = key if is_setting else one.name
        made[one.name] = fit = _fit(hints[one.name], value)
        if fit is _WRONG:
            raise UserError(f"{key}={told(value)}: its type is {type_told(hints[one.name])}; change {named}")
        bounds: Bounds | None = one.metadata.get(_BOUNDS)
        if (bounds is not None and not bounds.hold(fit)) or not _finite(fit):
            raise UserError(f"{key}={told(value)}: {bounds.rule if bounds else 'it must be finite'}; change {named}")
    return made


class _Wrong:
    """What no type accepts."""


_WRONG = _Wrong()


def _fit(hint: Any, value: Any) -> Any:
    """`value` as `hint` wants it, or _WRONG."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return next((fit for fit in (_fit(one, value) for one in inner) if fit is not _WRONG), _WRONG)
    if origin is Literal:
        return value if value in inner else _WRONG
    if origin in (tuple, list, Sequence):
        if not isinstance(value, list | tuple):
            return _WRONG
        items = (
            inner * len(value) if origin is not tuple else inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        )
        if len(items) != len(value):
            return _WRONG
        found = [_fit(one, item) for one, item in zip(items, value, strict=True)]
        return _WRONG if any(item is _WRONG for item in found) else tuple(found) if origin is tuple else found
    if origin is dict:
        return dict(value) if isinstance(value, Mapping) else _WRONG
    if hint is NoneType:
        return None if value is None else _WRONG
    if hint is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            return _WRONG
    exact = hint in (int, bool, str) and type(value) is hint
    return value if exact or (hint not in _WORDS and isinstance(value, hint)) else _WRONG


def type_told(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin in (Union, UnionType):
        return " or ".join("null" if one is NoneType else type_told(one) for one in inner)
    if origin is Literal:
        return " or ".join(told(one) for one in inner)
    if origin is tuple:
        return f"list of {type_told(inner[0])}" + ("" if inner[-1] is Ellipsis else f", {len(inner)} of them")
    if origin in (list, Sequence):
        return f"list of {type_told(inner[0])}"
    if origin is dict:
        return "mapping"
    return "section" if is_dataclass(hint) else "anything"


@dataclass(frozen=True)
class Key:
    """A setting: its dotted name, its type in words, its value as given to `keys`, its bounds in words, its meaning."""

    key: str
    type: str
    value: Any
    bounds: str
    meaning: str


def keys(schema: type, settings: Any, prefix: str = "") -> Iterator[Key]:
    """Every setting of a recipe, in the order of its declaration. A section that is off is listed by its defaults."""
    hints = _hints(schema)
    for one in fields(schema):
        hint, key = hints[one.name], prefix + one.name
        value = None if settings is None else getattr(settings, one.name)
        section = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        bounds: Bounds | None = one.metadata.get(_BOUNDS)
        if section is None or value is None:
            shown = value if settings is not None else _default(one)
            yield Key(key, type_told(hint), shown, "" if bounds is None else str(bounds), meaning(schema, one))
        if isinstance(section, type):
            yield from keys(section, value, f"{key}.")


def _default(one: Field[Any]) -> Any:
    if one.default is not MISSING:
        return one.default
    made = one.default_factory() if one.default_factory is not MISSING else None
    return None if is_dataclass(made) else made


def _hints(schema: type) -> dict[str, Any]:
    return get_type_hints(schema)


def meaning(schema: type, one: Field[Any]) -> str:
    """What a setting is for: what was declared with it, the comment `#:` above it, or what the class says of it."""
    if declared := one.metadata.get(_MEANING):
        return str(declared)
    for owner in schema.__mro__:
        if is_dataclass(owner) and one.name in vars(owner).get("__annotations__", {}):
            if comment := _comments(owner).get(one.name):
                return comment
            text = " ".join((inspect.getdoc(owner) or "").split())
            sentences = re.split(r"(?<=[.:])\s+", text)
            named = [s for s in sentences if f"`{one.name}`" in s]
            return " ".join(named) if named else sentences[0]
    return ""


@cache
def _comments(schema: type) -> dict[str, str]:
    """The comments `#:` above a class's fields, by field."""
    try:
        lines = textwrap.dedent(inspect.getsource(schema)).splitlines()
    except OSError:  # a class without a file: from a prompt, or a frozen program
        return {}
    (tree,) = ast.parse("\n".join(lines)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above, words = node.lineno - 2, list[str]()
            while lines[above].strip().startswith("#:"):
                words.insert(0, lines[above].strip().removeprefix("#:").strip())
                above -= 1
            found[node.target.id] = " ".join(words)
    return {name: text for name, text in found.items() if text}

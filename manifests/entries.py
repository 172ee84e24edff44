"""Entry points: what is named as `module:attribute` and imported at need, so that tables can name what stands higher."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def named(entry: str) -> Any:
    """What `module:attribute` names. Raises ImportError or AttributeError where there is no such thing."""
    module, _, attribute = entry.partition(":")
    return getattr(importlib.import_module(module), attribute)


def lazily(package: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` that imports a public name where it is first used: name → `module:attribute`."""

    def find(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return named(names[name])

    return find

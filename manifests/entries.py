"""Entry points: what is named as `module:attribute` and imported at need, so that tables can name what stands higher."""

from __future__ import annotations

import importlib
from typing import Any


def named(entry: str) -> Any:
    """What `module:attribute` names. Raises ImportError or AttributeError where there is no such thing."""
    module, _, attribute = entry.partition(":")
    return getattr(importlib.import_module(module), attribute)

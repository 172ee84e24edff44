"""Importing this makes `javisc` what is installed, or else the checkout's own floors, as far as what they import is there."""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def bare(name: str) -> None:
    """Make a package of a folder of the checkout without running its `__init__`, and so without what that imports."""
    package = types.ModuleType(name)
    package.__path__ = [str(ROOT.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = package


if "javisc" not in sys.modules and importlib.util.find_spec("javisc") is None:
    bare("javisc")

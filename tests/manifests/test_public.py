"""The public names of the packages: there, and what they say they are, without anything heavy being imported for the others."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PACKAGES = ("javisc.manifests", "javisc.compiler", "javisc.trainer.data")


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there(package: str) -> None:
    module = importlib.import_module(package)
    assert dir(module) == sorted(module._NAMES)
    for name, entry in module._NAMES.items():
        home, _, attribute = entry.partition(":")
        assert getattr(module, name) is getattr(importlib.import_module(home), attribute)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_a_package_alone_is_light() -> None:
    code = "import sys, javisc.compiler, javisc.manifests; print([m for m in ('polars', 'av', 'torch') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.strip() == "[]"

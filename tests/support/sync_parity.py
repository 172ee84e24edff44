"""Reading the parity sets of both sync families: fixtures by the set's own manifest, weights by its recipe. Any set of the layout will do."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from support.shared import PARITY


def _sets(family: str) -> list[Path]:
    if not PARITY.exists():
        return []
    return sorted(folder for folder in PARITY.glob(f"{family}*") if (folder / "manifest.json").exists())


SETS = _sets("sparsesync")
SYNCHFORMER = _sets("synchformer")


def fixtures(*kinds: str, sets: list[Path] = SETS) -> list[Any]:
    """A pytest parameter (folder, name) for every fixture of the kinds, or one that skips and says what is missing."""
    found = []
    for folder in sets:
        for name, entry in json.loads((folder / "manifest.json").read_text()).items():
            if entry["kind"] in kinds:
                slow = [pytest.mark.slow] if entry.get("cpu_seconds", 0) > 5 or _pixels(entry) > 1e7 else []
                found.append(pytest.param(folder, name, id=f"{folder.name}-{name}", marks=slow))
    missing = pytest.mark.skip(reason=f"no fixtures of kind {kinds} under {PARITY} (set JAVISC_PARITY)")
    return found or [pytest.param(PARITY, "", marks=missing)]


def _pixels(entry: dict[str, Any]) -> float:
    return float(torch.tensor(entry.get("input_shapes", {}).get("vis", [0])).prod())


@functools.cache
def recipe(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipe_{folder.name}", folder / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Fixture:
    """One fixture: `meta`, stored `tensors`, the `state` dict, and its `inputs`, stored or made by the recipe."""

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / f"{name}.safetensors"
        with safe_open(path, "pt") as file:
            self.meta: dict[str, Any] = json.loads(file.metadata()["meta"])
        self.tensors: dict[str, Tensor] = load_file(path)
        make = recipe(folder)
        if self.meta["weights"] == "stored":
            self.state: dict[str, Tensor] = load_file(folder / f"{name}.weights.safetensors")
        elif self.meta["weights"] == "recipe":
            scales = {"scales": self.meta["weight_scales"]} if "weight_scales" in self.meta else {}
            self.state = make.make_state_dict(
                self.meta["weight_shapes"], self.meta["seed"], self.meta["key_prefix"], **scales
            )
        else:
            self.state = {}
        for key, want in self.meta.get("weight_fingerprint", {}).items():
            got = make.fingerprint(self.state[key])
            assert all(abs(a - b) <= 1e-5 * abs(b) + 1e-6 for a, b in zip(got, want, strict=True)), key
        self.inputs: dict[str, Tensor] = self.named("in/")
        for key in self.meta.get("input_shapes", {}):
            if key not in self.inputs:
                shape, scale = self.meta["input_shapes"][key], self.meta.get("input_scale", 1.0)
                self.inputs[key] = make.make_input(shape, self.meta["seed"], self.meta["input_names"][key], scale)

    def named(self, prefix: str) -> dict[str, Tensor]:
        """The stored tensors under `prefix`, which is cut off."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def rel(got: Tensor, want: Tensor) -> float:
    """Largest absolute difference over the largest absolute value; shapes must agree."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, wanted {tuple(want.shape)}"
    return float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-12))

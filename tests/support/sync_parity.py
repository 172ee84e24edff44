"""Reading the parity sets of both sync families: by their own manifests, weights by their recipes. Any such set will do."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from javisc.trainer.transforms.sync_window import ClassGrid, CropRule, Lengths, Window
from support.shared import PARITY


def _sets(family: str) -> list[Path]:
    if not PARITY.exists():
        return []
    return sorted(folder for folder in PARITY.glob(f"{family}*") if (folder / "manifest.json").exists())


SETS = _sets("sparsesync")
SYNCHFORMER = _sets("synchformer")


def with_tables(sets: list[Path]) -> list[Path]:
    """The sets that hold tables of transforms; none makes the tests over them skip."""
    return [folder for folder in sets if (folder / "transforms.json").exists()]


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


class RecordedDraws:
    """Gives out the reference's draws in its order and checks that the same ranges were asked for."""

    def __init__(self, draws: list[list[Any]]) -> None:
        self.left: Iterator[list[Any]] = iter(draws)

    def choice(self, name: str, values: Sequence[float]) -> float:
        kind, value = next(self.left)
        # Some records hold the value after it was rounded to two decimals.
        assert kind == "choice" and min(abs(value - other) for other in values) < 1e-6, name
        return value

    def uniform(self, name: str, low: float, high: float) -> float:
        kind, *limits, value = next(self.left)
        assert kind in ("uniform", "random"), name
        want_low, want_high = limits or (0.0, 1.0)
        assert (low, high) == pytest.approx((want_low, want_high), abs=1e-12), name
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        kind, want_low, want_high, value = next(self.left)
        assert kind == "randint" and (low, high) == (want_low, want_high), name
        return value

    def order(self, name: str, length: int) -> list[int]:
        raise AssertionError(f"{name}: nothing here draws an order")

    def normal(self, name: str, shape: Sequence[int]) -> Tensor:
        raise AssertionError(f"{name}: nothing here draws noise")

    def used_up(self) -> bool:
        return next(self.left, None) is None


def check_window(got: Window, want: dict[str, Any]) -> None:
    for ours, theirs in (("v_first", "v_first"), ("v_len", "v_len"), ("a_first", "a_first"), ("a_len", "a_len")):
        assert getattr(got, ours) == want[theirs], ours
    for ours, theirs in (
        ("offset_sec",) * 2,
        ("v_start_sec", "v_start_i_sec"),
        ("offset_label",) * 2,
        ("offset_target",) * 2,
    ):
        assert getattr(got, ours) == want.get(theirs), ours


def rule_of(case: dict[str, Any]) -> tuple[CropRule, Lengths]:
    grid = ClassGrid(case.get("max_off_sec", 2), case.get("grid_size", 21))
    clip = Lengths(case["v_frames"], case["a_frames"], case.get("v_fps", 25.0), case.get("a_fps", 16000))
    return CropRule(grid, case.get("crop_len_sec", 5), case.get("max_wiggle_sec") or 0.0), clip

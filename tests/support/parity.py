"""Reading parity fixtures and comparing with them, as the README of the sets says."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from support.shared import PARITY

JAVISDIT = PARITY / "javisdit"


@dataclass
class Case:
    """One call of a fixture: its scalars, inputs and outputs."""

    name: str
    scalars: dict[str, Any]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Fixture:
    """One file of a set: what to build, its weights under official names, and the calls."""

    path: Path
    kind: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    cases: dict[str, Case]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The weights under `prefix`, without it."""
        return {name.removeprefix(prefix): value for name, value in self.weights.items() if name.startswith(prefix)}


def load(path: Path) -> Fixture:
    """Read a .safetensors fixture."""
    with safe_open(path, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
        fixture = Fixture(
            path, meta["kind"], meta["config"], {}, {name: Case(name, value) for name, value in meta["cases"].items()}
        )
        for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
            tensor = file.get_tensor(key)
            if key.startswith("w/"):
                fixture.weights[key[2:]] = tensor
            else:
                case, side, name = key.split("/", 2)
                getattr(fixture.cases[case], {"in": "inputs", "out": "outputs"}[side])[name] = tensor
    return fixture


def files(*kinds: str, folder: Path = JAVISDIT) -> list[Any]:
    """The set's files of these kinds as pytest parameters; one skipped parameter if the set is not here."""
    manifest = folder / "MANIFEST.json"
    if not manifest.exists():
        return [pytest.param(manifest, marks=pytest.mark.skip(reason=f"{manifest} is not here (set JAVISC_PARITY)"))]
    rows = json.loads(manifest.read_text())
    return [pytest.param(folder / name, id=name.split(".")[0]) for name, row in rows.items() if row["kind"] in kinds]


def table(name: str) -> Any:
    """A .json fixture of the JavisDiT set, or skip."""
    path = JAVISDIT / name
    if not path.exists():
        pytest.skip(f"{path} is not here (set JAVISC_PARITY)")
    return json.loads(path.read_text())


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """max|a - b| / max|b|, with shapes compared and everything finite; integers and booleans must be equal."""
    assert ours.shape == theirs.shape, f"shape {tuple(ours.shape)}, the fixture has {tuple(theirs.shape)}"
    if not theirs.is_floating_point():
        return 0.0 if torch.equal(ours.to(theirs.dtype), theirs) else float("inf")
    assert torch.isfinite(ours).all()
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp_min(1e-30))


def check(ours: Tensor, theirs: Tensor, name: str, limit: float = 1e-4) -> None:
    """Fail unless `ours` agrees with the fixture's tensor; the message names it and says by how much."""
    error = relative_error(ours.detach(), theirs)
    assert error <= limit, f"{name}: relative error {error:.2e}, allowed {limit:.0e}"

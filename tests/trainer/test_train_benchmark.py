"""What training is measured beside computes the same: the reference's arithmetic and plain torch against javisc's models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = str(Path(__file__).parents[2] / "benchmarks")
SMALL = argparse.Namespace(tiny=True, rows=2, seconds=1.0, depth=1, given=False, recompute=False)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[ModuleType, ModuleType]]:
    monkeypatch.syspath_prepend(FOLDER)
    import train_dit
    import train_sync

    yield train_dit, train_sync
    for name in ("train_dit", "train_sync", "measure", "plain_dit", "plain_sync"):
        sys.modules.pop(name, None)


def test_the_references_arithmetic_is_the_joint_dits(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    assert benchmarks[0].agreement(SMALL, torch.device("cpu")) < 1e-4


def test_plain_torch_is_the_sync_model(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    assert benchmarks[1].agreement(SMALL) < 5e-4


def test_a_difference_stops_the_measurement(
    benchmarks: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prior keys of the own row instead of all rows: another function."""
    dit = benchmarks[0]
    build = dit.build

    def other(*arguments: object) -> torch.nn.Module:
        model = build(*arguments)
        for block in (*model.video_st_prior_blocks, *model.audio_st_prior_blocks):
            block.scope = "sample"
        return model

    monkeypatch.setattr(dit, "build", other)
    with pytest.raises(SystemExit, match="nothing is timed"):
        dit.agreement(SMALL, torch.device("cpu"))


def test_exponents(benchmarks: tuple[ModuleType, ModuleType]) -> None:
    import measure  # type: ignore[import-not-found]

    assert measure.exponent([(x, 3 * x**1.5) for x in (1.0, 2.0, 5.0)]) == pytest.approx(1.5)

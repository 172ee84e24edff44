"""Deterministic mode: no filled memory, and what has no fixed order is warned of or refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.engine.determinism import deterministic
from support.toy_training import ToyTask, losses, run

QUICK = ["run.steps=2", "run.checkpoint_every=0"]


def fills() -> int:
    """Kernels that fill memory, in a step of a small network."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        model(torch.ones(4, 8)).sum().backward()
    return sum(event.count for event in profile.key_averages() if event.key == "aten::fill_")


def test_new_memory_is_not_filled() -> None:
    plain = fills()
    with deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert fills() == plain
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        assert fills() > plain  # the count sees them
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory is True  # type: ignore[attr-defined]


def test_an_operation_without_a_fixed_order_is_warned_of_or_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = ToyTask.loss

    def put(self: ToyTask, *arguments: Any) -> Tensor | dict[str, Tensor]:
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
        return compute(self, *arguments)

    monkeypatch.setattr(ToyTask, "loss", put)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(tmp_path / "warn", QUICK)
    assert any("put_" in str(warning.message) for warning in caught)
    with pytest.raises(UserError, match=r"run\.nondeterministic=raise: put_ has no form with a fixed order"):
        run(tmp_path / "raise", [*QUICK, "run.nondeterministic=raise"])
    run(tmp_path / "off", [*QUICK, "run.nondeterministic=raise", "run.deterministic=false"])


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="boom"), deterministic(True, strict=True):
        raise RuntimeError("boom")


#: What sync's picture trunk and alignment compute whose backward pass has no fixed order of sums on CUDA: docs/train.md says so.
WITHOUT_ORDER: dict[str, Callable[[Tensor], Tensor]] = {
    "max_pool3d_with_indices_backward_cuda": lambda x: nn.MaxPool3d((1, 3, 3), (1, 2, 2))(x),
    "upsample_linear1d_backward_out_cuda": lambda x: nn.functional.interpolate(x[0, :, :, 0], size=7, mode="linear"),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("name", WITHOUT_ORDER)
def test_on_a_gpu_what_has_no_fixed_order_is_warned_of_or_ends_the_run(name: str) -> None:
    with warnings.catch_warnings(record=True) as caught, deterministic(True):
        warnings.simplefilter("always")
        WITHOUT_ORDER[name](torch.ones(1, 2, 5, 9, 9, device="cuda", requires_grad=True)).sum().backward()
    assert any(name in str(warning.message) for warning in caught), [str(warning.message) for warning in caught]
    with (
        pytest.raises(UserError, match=rf"run\.nondeterministic=raise: {name} has no form with a fixed order"),
        deterministic(True, strict=True),
    ):
        WITHOUT_ORDER[name](torch.ones(1, 2, 5, 9, 9, device="cuda", requires_grad=True)).sum().backward()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_on_a_gpu_a_run_is_bit_for_bit_the_same_twice_and_resumed(tmp_path: Path) -> None:
    """With `raise`, so that no operation without a fixed order was taken: the trunk that has one rests."""
    common = [
        "frozen_trunks=true",
        "run.nondeterministic=raise",
        "run.log_every=1",
        "run.steps=6",
        "run.checkpoint_every=2",
    ]
    for name in ("one", "two"):
        run(tmp_path / name, common)
    run(tmp_path / "cut", common, die=3)
    run(tmp_path / "cut", common, resume=True)
    first = (tmp_path / "one" / "result-0").read_text()
    assert {(tmp_path / name / "result-0").read_text() for name in ("two", "cut")} == {first}
    assert losses(tmp_path / "one") == losses(tmp_path / "two") == losses(tmp_path / "cut")

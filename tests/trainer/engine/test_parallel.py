"""However a model is spread, it learns the same: DDP, FSDP2 and hybrid sharding against one process, on the tiny joint DiT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.checkpoint import FROZEN
from javisc.trainer.engine.distributed import ParallelConfig, World, sharing, world
from javisc.trainer.engine.meter import Meter
from javisc.trainer.engine.weights import read_weights
from support.dit_training import ROWS
from support.toy_training import Ranks, losses, saved

HYBRID = ("parallel.strategy=hybrid", "parallel.shard_group=2")
SPREADS = {"ddp": (2, ()), "fsdp2": (2, ("parallel.strategy=fsdp2",)), "hybrid": (4, HYBRID)}
LAST = 2


def dit(folder: Path, *overrides: str, world: int = 1, resume: bool = False) -> Path:
    """A run of the tiny DiT with ROWS samples a step, whatever the number of processes."""
    given = [f"batch_size={ROWS // world}", *overrides]
    ranks = Ranks(folder, given, world=world, program="support.dit_training:run", resume=resume)
    assert ranks.wait() == [0] * world, ranks.told()
    return folder


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Parameters, average and moments agree as far as sums in another order allow."""
    assert set(got) == set(expected)
    for name, value in expected.items():
        size = float(value.double().norm())
        assert float((got[name].double() - value.double()).norm()) <= 2e-5 * size + 1e-12, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dit(tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dit(tmp_path_factory.mktemp("hybrid"), *HYBRID, world=4)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("strategy", SPREADS)
def test_steps_are_those_of_one_process(
    strategy: str, alone: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """After one step and after two: weights, average, and Adam's moments, which show the gradients as they are."""
    size, overrides = SPREADS[strategy]
    folder: Path = request.getfixturevalue("hybrid") if strategy == "hybrid" else dit(tmp_path, *overrides, world=size)
    for step in (1, LAST):
        same(saved(folder, step), saved(alone, step))
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-6)


@pytest.mark.dist
@pytest.mark.slow
def test_everything_trained_is_no_other_case(tmp_path: Path) -> None:
    """Without the average, which costs the checkpoint a tensor for each parameter."""
    overrides = ["frozen=false", "run.steps=1", "ema.decay=0"]
    alone = dit(tmp_path / "alone", *overrides)
    folder = dit(tmp_path / "hybrid", *overrides, *HYBRID, world=4)
    same(saved(folder, 1), saved(alone, 1))
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-6)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize(("world", "overrides"), [(1, ()), (2, ("parallel.strategy=fsdp2",))], ids=["alone", "fsdp2"])
def test_a_hybrid_checkpoint_goes_on_elsewhere(
    world: int, overrides: tuple[str, ...], alone: Path, hybrid: Path, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.symlink_to(hybrid / "checkpoints" / "step-00000001")
    folder = dit(tmp_path / "run", *overrides, world=world, resume=True)
    assert sorted(losses(folder)) == [LAST]
    same(saved(folder, LAST), saved(alone, LAST))


def held(folder: Path, world: int, *overrides: str) -> list[dict[str, Any]]:
    ranks = Ranks(folder, overrides, world=world, program="support.dit_training:held")
    assert ranks.wait() == [0] * world, ranks.told()
    return [json.loads((folder / f"held-{rank}").read_text()) for rank in range(world)]


@pytest.mark.dist
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_parts_are_whole_everywhere_and_cost_no_optimizer_state(precision: str, tmp_path: Path) -> None:
    (alone,) = held(tmp_path / "alone", 1)
    width = {"fp32": 4, "bf16": 2}[precision]
    spread = held(tmp_path / "spread", 2, "parallel.strategy=fsdp2", f"parallel.precision={precision}")
    for told in spread:
        frozen = 0
        for name, p in told["params"].items():
            assert p["sharded"] == p["trained"] == alone["params"][name]["trained"], name
            if not p["trained"]:
                assert p["bytes"] == alone["params"][name]["bytes"] * width // 4, name
                frozen += 1
        assert frozen > len(told["params"]) / 2
        owners = {name.removeprefix("state.").rsplit(".", 1)[0] for name in told["states"]}
        assert owners == {name for name, p in told["params"].items() if p["trained"]}
        share = sum(p["bytes"] for p in told["params"].values() if p["trained"])
        steps = 4 * len(owners)
        assert (told["grads"], told["average"], told["optimizer"] - steps) == (share, share, 2 * share)
    shares, whole = (
        sum(p["bytes"] for told in some for p in told["params"].values() if p["trained"]) for some in (spread, [alone])
    )
    assert shares == whole


def test_groups_must_divide_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"parallel\.shard_group=3: 8 processes do not divide"):
        sharing(ParallelConfig(strategy="hybrid", shard_group=3), 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert sharing(ParallelConfig(strategy="hybrid"), 8) == 4
    assert sharing(ParallelConfig(strategy="fsdp2"), 8) == 8
    assert sharing(ParallelConfig(), 8) == 1


def test_imbalance_is_the_work_beyond_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    with world() as here:
        other, meter = [3.0, 2.0], Meter(here, None)
        gather = World.gather
        monkeypatch.setattr(
            World,
            "gather",
            lambda self, flops, waited, *work: torch.cat(
                (gather(self, flops, waited, *work), torch.tensor([flops, waited, *other[: len(work)]])[:, None]), 1
            ),
        )
        for work in (1.0, 2.0):
            meter.start()
            meter.got_data(work)
            meter.took(4, 6.0)
        assert meter.read()["imbalance"] == pytest.approx(0.25)  # 3 + 2 against 2 + 2
        assert meter.read()["imbalance"] == 0


def test_lower_precision_with_frozen_parts_follows_full_precision(alone: Path, tmp_path: Path) -> None:
    """What is frozen is held in bf16, and meets there what FSDP2 gathers in bf16."""
    folder = dit(tmp_path, "parallel.strategy=fsdp2", "parallel.precision=bf16")
    assert losses(folder) == pytest.approx(losses(alone), rel=0.02) and losses(folder) != losses(alone)
    weights = {name: value.dtype for name, value in saved(folder, LAST).items() if name.startswith("model.")}
    assert weights["model.va_cross_blocks.0.gamma_m1"] == torch.float32
    assert "model.spatial_blocks.0.mlp.fc1.weight" not in weights, "what rests is in no checkpoint"
    resting, built = read_weights(folder / FROZEN), read_weights(alone / FROZEN)
    assert set(resting) == set(built) and not set(resting) & {name.removeprefix("model.") for name in weights}
    assert all(torch.equal(value, built[name]) and value.dtype == torch.float32 for name, value in resting.items())

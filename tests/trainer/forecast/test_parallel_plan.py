"""The plan against numbers worked out by hand, and against what processes really hold and send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.distributed import ParallelConfig
from javisc.trainer.forecast.parallel_plan import Links, Plan, plan
from javisc.trainer.forecast.parallel_table import BEGIN, END, write
from javisc.trainer.models.dit import PRESETS, VASTDiT3
from javisc.trainer.models.dit.stages import freeze
from support.dit_training import DitRecipe, DitTask
from support.toy_training import Ranks


class Three(nn.Module):
    """Two blocks of 8 x 8 that learn, one that does not, and a row of 8 in no block that does."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(3))
        self.blocks[2].requires_grad_(False)
        self.row = nn.Parameter(torch.zeros(1, 8))


def planned(processes: int, accumulate: int = 1, **parallel: Any) -> Plan:
    recipe = Recipe(task="x", parallel=ParallelConfig(**parallel))
    recipe.ema.decay, recipe.run.accumulate = 0.9, accumulate
    with torch.device("meta"):
        model = Three()
    return plan(model, [*model.blocks], recipe, processes)


def test_one_gpu_and_ddp_by_hand() -> None:
    trained, frozen = 4 * (64 + 64 + 8), 4 * 64
    memory = {
        "weights": trained, "frozen": frozen, "gradients": trained, "optimizer": 2 * trained + 3 * 4, "average": trained,
        "gathered": 0, "unreduced": 0,
    }  # fmt: skip
    assert planned(1).memory == planned(8).memory == memory
    assert planned(1).sent.bytes == 0
    assert planned(8).sent.bytes == 2 * trained * 7 // 8
    assert planned(8).checkpoint["whole"] == 4 * trained + 12  # what rests is written once, beside them
    # Two times seven turns over the node's links, each with an eighth of the bytes.
    assert planned(8).sent.seconds == pytest.approx(14 * (trained / 8 / 450e9 + 1e-6))


def test_fsdp2_by_hand() -> None:
    got = planned(4, strategy="fsdp2", precision="bf16")
    share = 16 + 16 + 8  # the single row lies on the first process, and takes its place on the others
    assert got.memory == {
        "weights": 4 * share, "frozen": 2 * 64, "gradients": 4 * share, "optimizer": 8 * share + 12, "average": 4 * share,
        "gathered": 2 * (8 + 64 + 64), "unreduced": (2 + 4) * 64,
    }  # fmt: skip
    # Three of four shares are sent: of each block twice in bf16, of the row, gathered until the backward ends, once.
    assert got.traffic["all-gather"].bytes == 2 * 3 * (16 + 16) * 2 + 3 * 8 * 2
    assert got.traffic["all-gather"].collectives == 5
    assert got.traffic["reduce-scatter"].bytes == 4 * 3 * share
    assert got.traffic["all-reduce"].bytes == 0
    twice = planned(4, 2, strategy="fsdp2", precision="bf16")
    assert twice.traffic["all-gather"].bytes == 2 * got.traffic["all-gather"].bytes
    assert twice.traffic["reduce-scatter"] == got.traffic["reduce-scatter"]
    assert twice.memory["unreduced"] - got.memory["unreduced"] == 4 * (64 + 64 + 8)


def test_hybrid_by_hand() -> None:
    got, inside = planned(32, strategy="hybrid", shard_group=4), planned(4, strategy="fsdp2")
    assert got.memory == inside.memory
    assert {name: got.traffic[name] for name in ("all-gather", "reduce-scatter")} == {
        name: inside.traffic[name] for name in ("all-gather", "reduce-scatter")
    }
    assert got.traffic["all-reduce"].bytes == sum(2 * 4 * share * 7 // 8 for share in (16, 16, 8))


def test_a_ring_leaves_a_node_through_all_its_adapters() -> None:
    links = Links()
    assert links.ring(8) == (450e9, 1e-6)
    assert links.ring(16) == (8 * 50e9, 5e-6)
    assert links.ring(4, stride=8) == (50e9, 5e-6)  # one GPU of every node
    assert links.ring(2, stride=4) == (450e9, 1e-6)
    assert links.ring(4, stride=4) == (2 * 50e9, 5e-6)


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "hybrid"])
def test_processes_hold_and_send_what_was_planned(strategy: str, tmp_path: Path) -> None:
    world, parallel = (2, ParallelConfig("fsdp2")) if strategy == "fsdp2" else (4, ParallelConfig("hybrid", 2))
    overrides = [f"parallel.strategy={strategy}", f"parallel.shard_group={parallel.shard_group}", "batch_size=1"]
    ranks = Ranks(tmp_path, overrides, world=world, program="support.dit_training:held")
    assert ranks.wait() == [0] * world, ranks.told()
    told = json.loads((tmp_path / "held-0").read_text())
    recipe = DitRecipe(task="dit", parallel=parallel)
    recipe.ema.decay, recipe.optimizer.name = 0.9, "adamw"
    task = DitTask(recipe)
    model = task.build()
    want = plan(model, task.blocks(model), recipe, world)
    assert want.memory["weights"] == sum(p["bytes"] for p in told["params"].values() if p["trained"])
    assert want.memory["frozen"] == told["buffers"] + sum(
        p["bytes"] for p in told["params"].values() if not p["trained"]
    )
    assert (want.memory["gradients"], want.memory["optimizer"], want.memory["average"]) == (
        told["grads"], told["optimizer"], told["average"]
    )  # fmt: skip
    names = {
        "all_gather_into_tensor": "all-gather",
        "reduce_scatter_tensor": "reduce-scatter",
        "all_reduce": "all-reduce",
    }
    got = {names[name]: tuple(entry) for name, entry in told["sent"].items()}
    assert got == {name: (sent.collectives, sent.bytes) for name, sent in want.traffic.items() if sent.bytes}


def test_the_largest_models_on_many_gpus() -> None:
    """XL/2's third stage: 1.3 of 3.7 billion parameters learn. Shards do not shrink below a row, so that 512 of them pad."""
    with torch.device("meta"):
        model = VASTDiT3(PRESETS["VASTDiT3-XL/2"])
    freeze(model)
    blocks = [modules[index] for modules, index in model.blocks()]
    recipe = Recipe(task="jav", parallel=ParallelConfig("fsdp2", precision="bf16"))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 1_315_605_888
    for processes in (8, 64, 512):
        got = plan(model, blocks, recipe, processes)
        assert (
            4 * trained / processes <= got.memory["weights"] <= 1.05 * 4 * trained / processes + 4 * 28 * 5 * 20 * 1152
        )
        recipe.parallel.strategy = "hybrid"
        recipe.parallel.shard_group = 8
        assert plan(model, blocks, recipe, processes).memory == plan(model, blocks, recipe, 8).memory
        recipe.parallel.strategy = "fsdp2"


def test_the_written_tables_are_those_of_today(tmp_path: Path) -> None:
    written = Path(__file__).parents[3] / "docs" / "parallel.md"
    again = tmp_path / "parallel.md"
    before, begin, _ = written.read_text(encoding="utf-8").partition(BEGIN)
    again.write_text(f"{before}{begin}old\n{END}", encoding="utf-8")
    write(again)
    command = "python -m javisc.trainer.forecast.parallel_table docs/parallel.md"
    assert again.read_text(encoding="utf-8") == written.read_text(encoding="utf-8"), f"run {command}"
    again.write_text("no marks", encoding="utf-8")
    with pytest.raises(UserError, match="has no <!-- plans -->"):
        write(again)

"""How weights come to every process, and what of them is written: shares from the first process, what rests once, draws where
there are draws."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.engine import loop
from javisc.trainer.engine.checkpoint import MARKER, STATE, complete
from javisc.trainer.engine.distributed import ParallelConfig, looks_for_unused, spread, world
from javisc.trainer.engine.frozen import digest, frozen_of
from javisc.trainer.engine.weights import read_weights
from support.toy_training import Ranks, ToyTask, losses, run, saved

COMMON = ["frozen_trunks=true", "run.log_every=1", "run.checkpoint_every=3"]


@pytest.mark.dist
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "hybrid"])
def test_each_process_gets_its_share_of_what_the_first_made(strategy: str, tmp_path: Path) -> None:
    """Bit for bit, buffers that no state names and frozen weights among them; only the first makes a model."""
    size = 3 if strategy != "hybrid" else 4
    overrides = [f"parallel.strategy={strategy}", "parallel.shard_group=2", "frozen_trunks=true"]
    ranks = Ranks(tmp_path, overrides, program="support.operated:started", world=size)
    assert ranks.wait() == [0] * size, ranks.told()
    told = [json.loads((tmp_path / f"started-{rank}").read_text()) for rank in range(size)]
    assert [one["made"] for one in told] == [1, *[0] * (size - 1)]
    assert all(one["whole"] == told[0]["built"] for one in told)
    held, whole = [one["held"] for one in told], told[0]["bytes"]
    assert held == [whole] * size if strategy == "ddp" else max(held) < whole


@pytest.mark.dist
def test_what_the_first_process_cannot_make_is_told_by_all(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, program="support.operated:refused", world=2)
    assert ranks.wait() == [0, 0], ranks.told()
    assert [(tmp_path / f"refused-{rank}").read_text() for rank in (0, 1)] == ["no weights there"] * 2


def steps(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*"))


def held(folder: Path, step: int) -> set[str]:
    return {name.removeprefix("model.") for name in saved(folder, step) if name.startswith("model.")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed; read, never changed."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder, COMMON)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed behind its checkpoint of step 6; copied by who goes on with it."""
    folder = tmp_path_factory.mktemp("stopped")
    run(folder, COMMON, die=6)
    return folder


def test_what_rests_is_written_once(whole: Path, tmp_path: Path) -> None:
    rests = read_weights(whole / "frozen")
    assert rests and not held(whole, 12) & set(rests)
    last = read_weights(whole / "last")
    assert all(torch.equal(last[name], value) for name, value in rests.items())
    assert held(whole, 12) | set(rests) == set(last)
    states = [json.loads((path / STATE).read_text())["frozen"] for path in steps(whole)]
    assert set(states) == {digest(rests)}
    run(tmp_path / "all", ["run.steps=1", "resting_pictures=false"])
    assert not (tmp_path / "all" / "frozen").exists()


@pytest.fixture
def other_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frozen weights that a run starts from are other ones from now on."""
    build = ToyTask.build

    def perturbed(self: ToyTask) -> nn.Module:
        model = build(self)
        for value in frozen_of(model).values():
            value.add_(1.0)
        return model

    monkeypatch.setattr(ToyTask, "build", perturbed)


def test_a_resumed_run_takes_the_weights_that_it_began_with(
    whole: Path, stopped: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cut = Path(shutil.copytree(stopped, tmp_path / "cut"))
    request.getfixturevalue("other_start")
    run(cut, COMMON, resume=True)
    assert losses(cut) == losses(whole) and (cut / "result-0").read_text() == (whole / "result-0").read_text()
    fork = tmp_path / "fork"
    run(fork, COMMON, begin=str(steps(whole)[-2]))
    assert losses(fork) == {step: loss for step, loss in losses(whole).items() if step > 9}
    assert read_weights(fork / "frozen").keys() == read_weights(whole / "frozen").keys()


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_frozen_weights_that_are_not_there_are_told(
    damage: str, stopped: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cut = Path(shutil.copytree(stopped, tmp_path / "cut"))
    path = cut / "frozen" / "model.safetensors"
    if damage == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    request.getfixturevalue("other_start")
    with pytest.raises(UserError, match=r"start\.\* gives other frozen weights than the checkpoint's, and .*frozen"):
        run(cut, COMMON, resume=True)


def test_a_checkpoint_of_old_brings_its_frozen_weights(
    whole: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Checkpoints used to hold everything, and no digest."""
    old = tmp_path / "old"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "frozen_of", lambda model: {})
        run(old, COMMON, die=8)
    for path in complete(old / "checkpoints"):
        state = json.loads((path / STATE).read_text())
        del state["frozen"]
        (path / STATE).write_text(json.dumps(state))
        sizes = {file.name: file.stat().st_size for file in path.iterdir() if file.name != MARKER}
        (path / MARKER).write_text(json.dumps({"world": 1, "files": sizes}))
    for path in (old / "frozen").iterdir():
        path.unlink()
    request.getfixturevalue("other_start")
    run(old, COMMON, resume=True)
    assert losses(old) == losses(whole) and (old / "result-0").read_text() == (whole / "result-0").read_text()
    assert not held(old, 12) & set(read_weights(old / "frozen"))


class Draws(nn.Module):
    """Draws in forward, without a word of it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * torch.rand(3)


@pytest.mark.parametrize(("block", "stashed"), [(nn.Linear(3, 3), 0), (nn.Sequential(nn.Dropout(0.5)), 1)])
def test_generators_are_kept_for_blocks_that_draw(
    block: nn.Module, stashed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forks: list[Any] = []
    fork = torch.random.fork_rng
    monkeypatch.setattr(torch.random, "fork_rng", lambda *a, **k: forks.extend([a] * k["enabled"]) or fork(*a, **k))
    with world() as here:
        model = nn.Sequential(block)
        spread(model, [block], ParallelConfig(checkpoint_blocks=True), here)
        model(torch.ones(2, 3, requires_grad=True)).sum().backward()
    assert len(forks) == stashed


def test_a_block_that_draws_in_secret_is_told() -> None:
    with world() as here:
        model = nn.Sequential(Draws())
        spread(model, [model[0]], ParallelConfig(checkpoint_blocks=True), here)
        with pytest.raises(RuntimeError, match="Draws draws random numbers, which parallel.checkpoint_blocks"):
            model(torch.ones(2, 3, requires_grad=True))


@pytest.mark.parametrize(
    ("how", "processes", "deterministic", "looks"),
    [("auto", 2, True, False), ("auto", 3, True, True), ("auto", 64, False, False), ("always", 2, False, True),
     ("never", 8, True, False)],
)  # fmt: skip
def test_unused_parameters_are_looked_for_where_a_resume_needs_it(
    how: str, processes: int, deterministic: bool, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: deterministic)
    assert looks_for_unused(ParallelConfig(find_unused=how), processes) is looks


def test_held_out_batches_are_opened_once(tmp_path: Path) -> None:
    """However often they are measured, with the same batches every time; closed with the run."""
    from javisc.trainer.data.sources.held_out import HeldOut
    from javisc.trainer.data.sources.numbered import NumberedSource

    closed: list[int] = []

    class Source(NumberedSource[int]):
        def close(self) -> None:
            closed.append(1)

    made: list[int] = []

    def make(split: str) -> Source:
        made.append(1)
        return Source(7, lambda number, seed: number, 2, seed=1)

    sources = HeldOut(make)
    first = [batch.keys for batch in sources("val")]
    next(iter(sources("val")))  # a validation that looks at one batch
    assert [batch.keys for batch in sources("val")] == first and len(first) == 3 and len(made) == 1
    sources.close()
    assert closed == [1] and [batch.keys for batch in sources("val")] == first and len(made) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_checkpoint_of_a_gpu_is_what_the_step_left(tmp_path: Path) -> None:
    """Copied into pinned memory before the next step writes; a second save takes the same memory."""
    from javisc.trainer.engine.checkpoint import Checkpoints

    with world() as here:
        checkpoints, value = Checkpoints(tmp_path, here), torch.zeros(1 << 22, device=here.device)
        for step in (1, 2):
            value.fill_(step)
            checkpoints.save(step, {"w": value}, {"step": step})
            value.fill_(-1)
        checkpoints.finish()
        for step in (1, 2):
            got = {"w": torch.zeros_like(value)}
            checkpoints.load(checkpoints.path(step), got)
            assert bool((got["w"] == step).all())

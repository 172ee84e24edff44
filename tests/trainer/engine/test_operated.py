"""What fails a user in a long run without a word: statistics, hangs, logs, weights that are two steps' at once."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from javisc.manifests.errors import UserError
from javisc.manifests.files import kept_folder
from javisc.trainer.data.sources.numbered import NumberedSource
from javisc.trainer.engine import loop, meter
from javisc.trainer.engine.checkpoint import CHECKPOINTS, FROZEN, STATE, Checkpoints, complaint, complete, read_tensors
from javisc.trainer.engine.config import load_recipe
from javisc.trainer.engine.distributed import World, bare, spread, world
from javisc.trainer.engine.frozen import read_frozen
from javisc.trainer.engine.meter import Meter
from javisc.trainer.engine.weights import read_weights
from javisc.trainer.task import key_random
from support import operated
from support.toy_training import RECIPE, Ranks, ToyRecipe, ToyTask, losses, run

QUICK = ["dropout=0", "run.checkpoint_every=0", "run.log_every=1"]


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def recipe(tmp_path: Path, *overrides: str) -> ToyRecipe:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return load_recipe(str(path), ToyRecipe, overrides)


@pytest.mark.parametrize("trained", [True, False])
def test_checkpointed_blocks_count_a_batch_once(trained: bool, tmp_path: Path) -> None:
    """Every tensor of the state, norm statistics included, is bit for bit what it is without checkpointing."""
    states = []
    for checkpointing in (False, True):
        settings = recipe(tmp_path, "all_blocks=true", f"parallel.checkpoint_blocks={str(checkpointing).lower()}")
        settings.frozen_trunks, settings.resting_pictures = not trained, False
        task = ToyTask(settings)
        with world() as here:
            key_random(1)
            built = task.build()
            model = spread(built, task.blocks(built), settings.parallel, here).train()
            for number, batch in enumerate(task.source(0, 1)):
                key_random(2, number)
                loss = task.loss(model, batch, here.device)
                assert isinstance(loss, torch.Tensor)
                loss.backward()  # type: ignore[no-untyped-call]
            states.append(
                {n.replace("_checkpoint_wrapped_module.", ""): v for n, v in bare(model).state_dict().items()}
            )
            assert any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in built.modules())
            assert all(m.momentum == 0.1 for m in built.modules() if hasattr(m, "track_running_stats"))
    plain, checkpointed = states
    different = [name for name, value in plain.items() if not torch.equal(value, checkpointed[name])]
    assert not different and len(plain) > 100
    counts = [int(value) for name, value in plain.items() if name.endswith("num_batches_tracked")]
    assert counts and set(counts) == {5 if trained else 0}


@pytest.mark.dist
def test_norms_over_all_processes_count_once_too(tmp_path: Path) -> None:
    common = ["all_blocks=true", "resting_pictures=false", "run.steps=3", *QUICK]
    plain = Ranks(tmp_path / "plain", common, world=2).digests()
    assert Ranks(tmp_path / "saved", [*common, "parallel.checkpoint_blocks=true"], world=2).digests() == plain


@pytest.mark.dist
@pytest.mark.parametrize("size", [2, 3])
def test_however_batches_lie_sharded_processes_take_equally_many_passes(size: int, tmp_path: Path) -> None:
    ranks = Ranks(tmp_path, program="support.operated:split", world=size)
    assert ranks.wait(120) == [0] * size, ranks.told()
    every = [json.loads((tmp_path / f"counted-{rank}").read_text()) for rank in range(size)]
    for case in zip(*every, strict=True):
        for rank, (shares, passes, seen) in enumerate(case):
            assert passes == max(min(share, 3) for share in shares)
            assert seen == list(range(min(shares[rank], 3)))


@pytest.mark.dist
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_only_the_first_process_holds_the_whole_model_when_it_is_saved(strategy: str, tmp_path: Path) -> None:
    overrides = [f"parallel.strategy={strategy}", "parallel.checkpoint_blocks=true", "all_blocks=true"]
    ranks = Ranks(tmp_path, overrides, program="support.operated:gathered", world=2)
    assert ranks.wait() == [0, 0], ranks.told()
    first, second = (json.loads((tmp_path / f"gathered-{rank}").read_text()) for rank in (0, 1))
    assert first[0] == first[1] and first[2] and second[0] == 0
    before, left = torch.load(tmp_path / "before.pt", weights_only=True), read_weights(tmp_path / "best")
    assert left.keys() == before.keys() and all(torch.equal(left[name], before[name]) for name in left)
    assert json.loads((tmp_path / "best" / "origin.json").read_text()) == {"step": 3}


def one_generation(tensors: dict[str, torch.Tensor], rests: int = 2) -> int:
    """What every value of a folder's tensors is, but for those that rest; fails if they are of several generations."""
    every = [value.flatten().unique().tolist() for value in tensors.values()]
    learnt = {value for values in every for value in values} - {operated.RESTING}
    assert len(learnt) == 1 and sorted(map(len, every)) == [1] * (6 + rests), f"a mixed folder: {every}"
    assert sum(values == [operated.RESTING] for values in every) == rests
    return int(learnt.pop())


@pytest.mark.dist
@pytest.mark.timeout(3600)  # for JAVISC_TEST_KILLS=100
def test_killed_anywhere_two_processes_leave_whole_folders(tmp_path: Path) -> None:
    """Both are killed at once at random moments of saving `best/`, `frozen/`, a checkpoint and an export (JAVISC_TEST_KILLS
    times), and start again from what they left: never a mixed or an unreadable folder, and they never go back."""
    draws, last = random.Random(os.environ.get("JAVISC_TEST_SEED")), 0
    there = {"best"}  # it is written before the first checkpoint
    for _ in range(int(os.environ.get("JAVISC_TEST_KILLS", "5"))):
        ranks = Ranks(tmp_path, program="support.operated:saving", world=2)
        seen = last
        while seen <= last and all(process.is_alive() for process in ranks.processes):
            time.sleep(0.002)
            seen = max([last, *(int(path.name.removeprefix("step-")) for path in complete(tmp_path / CHECKPOINTS))])
        time.sleep(draws.uniform(0, 0.3))
        for process in ranks.processes:
            process.kill()
        assert set(ranks.wait()) == {-signal.SIGKILL}, ranks.told()
        for path in complete(tmp_path / CHECKPOINTS):
            assert complaint(path) == ""
            generation = one_generation(read_tensors(path, lambda name: name.startswith("model.")), rests=0)
            state = json.loads((path / STATE).read_text())
            resting = read_frozen(tmp_path, state[FROZEN])
            assert len(resting) == 2 and all((value == operated.RESTING).all() for value in resting.values())
            assert generation == int(path.name.removeprefix("step-"))
            last = max(last, generation)
        for name in ("best", "exported"):
            places = [p for p in (tmp_path / name, kept_folder(tmp_path / name)) if p.is_dir()]
            if not places and name not in there:  # killed before the first one was whole
                continue
            place = places[0]
            there.add(name)
            generation = one_generation(read_weights(place))
            origin = json.loads((place / "origin.json").read_text())
            assert name == "exported" or (origin["step"] == generation and generation >= last)


def test_the_best_weights_are_there_before_a_state_claims_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Checkpoints, step: int, *_: Any, **__: Any) -> None:
        raise RuntimeError(f"killed at {step}")

    monkeypatch.setattr(Checkpoints, "save", die)
    with pytest.raises(RuntimeError, match="killed at 1"):
        run(tmp_path, ["run.validate_every=1", "run.checkpoint_every=1"])
    (measured,) = rows(tmp_path, "validate")
    origin = json.loads((tmp_path / "best" / "origin.json").read_text())
    assert origin == {"step": 1, "accuracy_1": measured["accuracy_1"]}


@pytest.mark.dist
def test_a_skipped_step_names_the_samples_of_all_processes(tmp_path: Path) -> None:
    common = ["poison_from=12", "run.max_skipped=99", "run.steps=4", "run.accumulate=2", "batch_size=2", *QUICK]
    assert Ranks(tmp_path, common, world=2).wait() == [0, 0]
    skipped = [row for row in rows(tmp_path, "event") if "keys" in row]
    assert skipped
    for row in skipped:
        assert len(row["keys"]) == 8 and any(int(key) >= 12 for key in row["keys"])
        assert {key for key in row["keys"] if int(key) >= 12} <= set(row["suspects"]) <= set(row["keys"])
    trained = {row["step"]: row for row in rows(tmp_path, "train")}
    assert {row["step"] for row in skipped} == {step for step, row in trained.items() if row["skipped"]}
    # What is not a number is null: every line is JSON for everybody.
    assert all(trained[row["step"]]["loss"] is None for row in skipped)


def test_a_logged_loss_is_the_mean_of_its_window(tmp_path: Path) -> None:
    run(tmp_path / "each", ["run.steps=7", "terms=true", *QUICK])
    run(tmp_path / "some", ["run.steps=7", "terms=true", *QUICK, "run.log_every=3"])
    each = {row["step"]: row for row in rows(tmp_path / "each", "train")}
    some = {row["step"]: row for row in rows(tmp_path / "some", "train")}
    assert list(some) == [3, 6, 7]
    for step, window in ((3, (1, 2, 3)), (6, (4, 5, 6)), (7, (7,))):
        for name in ("loss", "entropy", "grad_norm"):
            assert some[step][name] == pytest.approx(sum(each[s][name] for s in window) / len(window), rel=1e-12)


def test_rates_are_those_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    with world() as here:
        made = Meter(here, None)
        for _ in range(4):
            made.start()
            now[0] += 0.5  # waits for data
            made.got_data(1.0)
            now[0] += 1.5
            made.took(8, 0)
            with made.paused():
                now[0] += 1000.0  # validates, saves
        told = made.read()
    assert told["samples_per_sec"] == 4 and told["step_sec"] == 2 and told["data_wait"] == 0.25


@pytest.mark.parametrize("sizes", [[4], [3, 4]])
def test_processes_are_asked_at_the_log_alone(
    sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan says how many samples the others have; a source whose plan is another than its batches is told of."""
    asked: list[int] = []
    gather = World.gather
    monkeypatch.setattr(World, "gather", lambda self, *numbers: asked.append(len(numbers)) or gather(self, *numbers))
    monkeypatch.setattr(NumberedSource, "rows", property(lambda self: sizes))
    if sizes != [4]:
        with pytest.raises(RuntimeError, match=r"process 0 has 4 samples, the plan of its step says \[3, 4\]"):
            run(tmp_path, ["run.steps=6", "run.log_every=3"])
        return
    run(tmp_path, ["run.steps=6", "run.log_every=3", "run.checkpoint_every=0"])
    assert asked == [2 + 3, 2 + 3]


def test_a_run_pauses_its_meter_while_it_validates_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by an hour in every validation and every save, and by a second at any other look at it."""
    now = [0.0]

    def later(original: Any) -> Any:
        def slow(*arguments: Any, **options: Any) -> Any:
            now[0] += 3600
            return original(*arguments, **options)

        return slow

    def look() -> float:
        now[0] += 1
        return now[0]

    monkeypatch.setattr(meter.time, "monotonic", look)
    monkeypatch.setattr(ToyTask, "validate", later(ToyTask.validate))
    monkeypatch.setattr(loop, "save_weights", later(loop.save_weights))
    monkeypatch.setattr(Checkpoints, "save", later(Checkpoints.save))
    run(tmp_path, ["run.steps=4", "run.validate_every=1", "run.checkpoint_every=1", "run.log_every=2"])
    assert now[0] > 4 * 3600 and all(row["step_sec"] < 60 for row in rows(tmp_path, "train"))


def test_time_left_knows_epochs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, ["run.epochs=2", "run.steps=999", *QUICK])
    told = capfd.readouterr().err
    assert "step 1/10 " in told and "step 10/10 " in told and "/999" not in told
    run(tmp_path / "b", ["run.epochs=2", "run.steps=999", "run.accumulate=2", *QUICK])
    assert "step 1/5 " in capfd.readouterr().err


def test_a_resumed_run_tells_what_was_changed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, ["run.steps=3"])
    capfd.readouterr()
    run(tmp_path, ["run.steps=4", "optimizer.lr=0.5"], resume=True)
    told = capfd.readouterr().err
    assert "resumed at step 3" in told and "changed since: optimizer.lr: 0.001 → 0.5" in told


def test_from_goes_back_in_a_run_and_forks_another(tmp_path: Path) -> None:
    whole, fork = tmp_path / "whole", tmp_path / "fork"
    run(whole, ["run.log_every=1"])
    first = losses(whole)
    assert run(whole, ["run.log_every=1"], begin="6").step == 12
    assert losses(whole) == first
    assert sorted(path.name for path in (whole / "checkpoints" / "aside").iterdir()) == [
        "step-00000009",
        "step-00000012",
    ]
    assert run(fork, ["run.log_every=1"], begin=str(whole / "checkpoints" / "step-00000006")).step == 12
    assert losses(fork) == {step: loss for step, loss in first.items() if step > 6}
    with pytest.raises(UserError, match="holds a run already"):
        run(fork, begin=str(whole))
    with pytest.raises(UserError, match="--from 5: no complete checkpoint is there"):
        run(whole, begin="5")

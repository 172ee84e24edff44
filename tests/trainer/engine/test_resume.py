"""Killed and resumed is bitwise the run that was not; and the number of processes does not change what is learnt."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import load_recipe
from javisc.trainer.engine.loop import train
from javisc.trainer.engine.weights import read_weights
from javisc.trainer.engine.writing import alone
from support.operated import sign
from support.toy_training import RECIPE, Ranks, ToyRecipe, ToyTask, losses, run, saved

KILLS = random.Random(os.environ.get("JAVISC_TEST_SEED"))  # other places in every run of the suite; pytest shows them


#: A checkpoint of the toy costs more than all of its steps: who looks at none writes none.
NO_CHECKPOINTS = ["run.checkpoint_every=0"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a run of one process that nobody disturbed, and that wrote nothing on its way."""
    return next(iter(Ranks(tmp_path_factory.mktemp("whole"), NO_CHECKPOINTS).digests()))


def checkpoints(folder: Path) -> list[int]:
    return sorted(
        int(path.parent.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*/complete.json")
    )


@pytest.mark.dist
def test_one_process_killed_twice(tmp_path: Path, whole: str) -> None:
    first, second = KILLS.randint(2, 11), KILLS.randint(2, 8)
    assert Ranks(tmp_path, die_at=first).wait() == [-signal.SIGKILL]
    assert Ranks(tmp_path, resume=True, die_at=second).wait() in ([-signal.SIGKILL], [0]), (first, second)
    assert Ranks(tmp_path, resume=True).digests() == {whole}, (first, second)
    assert checkpoints(tmp_path) == [6, 9, 12]  # and no more than three are kept
    assert sorted(losses(tmp_path)) == [2, 4, 6, 8, 10, 12]  # every logged step once, though some were taken twice


@pytest.mark.dist
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_of_two_processes_killed(tmp_path: Path, strategy: str) -> None:
    overrides = [f"parallel.strategy={strategy}", "parallel.checkpoint_blocks=true", "run.accumulate=2", "batch_size=2"]
    # Norms over all processes are told apart under DDP; FSDP2's run is about sharded tensors alone.
    overrides += [f"frozen_trunks={str(strategy == 'fsdp2').lower()}", "run.steps=9"]
    whole = Ranks(tmp_path / "whole", [*overrides, *NO_CHECKPOINTS], world=2).digests()
    assert len(whole) == 1
    killed, victim, at = tmp_path / "killed", KILLS.randint(0, 1), KILLS.randint(9, 17)
    codes = Ranks(killed, overrides, world=2, victim=victim, die_at=at).wait()
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, None), (victim, at, codes)
    assert Ranks(killed, overrides, world=2, resume=True).digests() == whole, (victim, at)
    # The same checkpoints go on with another number of processes, even unsharded.
    for path in killed.glob("checkpoints/step-*/complete.json"):
        if path.parent.name == "step-00000009":
            path.unlink()
    alone = Ranks(killed, [*overrides, "batch_size=4", "parallel.strategy=ddp"], resume=True)
    assert alone.wait() == [0], alone.told()
    assert "parallel.strategy" in "".join(path.read_text() for path in killed.glob("changed-*")) or strategy == "ddp"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of a run of two processes that nobody disturbed."""
    (digest,) = Ranks(tmp_path_factory.mktemp("pair"), NO_CHECKPOINTS, world=2).digests()
    return digest


@pytest.mark.dist
def test_two_processes_killed_at_once(tmp_path: Path, pair: str) -> None:
    at = KILLS.randint(1, 9)
    killed = Ranks(tmp_path, ["run.log_every=1"], world=2, slow=0.1)
    assert killed.kill(tmp_path, at) == [-signal.SIGKILL] * 2, at
    assert Ranks(tmp_path, world=2, resume=True).digests() == {pair}, at


@pytest.mark.dist
@pytest.mark.parametrize("where", ["before", "after", "index"])
def test_killed_while_a_checkpoint_is_written(where: str, tmp_path: Path, whole: str) -> None:
    """Before its tensors are on disk, after them, or when only its marker is missing: the one before it is taken."""
    assert Ranks(tmp_path, die_saving=where).wait() == [-signal.SIGKILL]
    half = tmp_path / "checkpoints" / "step-00000006"
    assert checkpoints(tmp_path) == [3] and half.exists()
    assert any(half.glob("*.distcp")) == (where != "before") and (half / ".metadata").exists() == (where == "index")
    assert Ranks(tmp_path, resume=True).digests() == {whole}
    assert checkpoints(tmp_path) == [6, 9, 12]


@pytest.mark.dist
def test_one_of_two_killed_while_a_checkpoint_is_written(tmp_path: Path, pair: str) -> None:
    where, victim = KILLS.choice(["before", "after"]), KILLS.randint(0, 1)
    codes = Ranks(tmp_path, world=2, victim=victim, die_saving=where).wait()
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, None), (where, victim, codes)
    assert checkpoints(tmp_path) == [3], (where, victim)
    assert Ranks(tmp_path, world=2, resume=True).digests() == {pair}, (where, victim)


def of_twelve(world: int) -> list[str]:
    """A run whose steps are twelve samples, on however many processes."""
    fixed = ["samples=36", "dropout=0", "optimizer.scale_lr_by_world=false", "frozen_trunks=true", "run.log_every=1"]
    return [f"batch_size={12 // world}", "run.steps=6", "run.checkpoint_every=1", *fixed]


@pytest.fixture(scope="module")
def twelve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twelve")
    Ranks(folder, [*of_twelve(1), "run.checkpoint_every=6"]).digests()
    return folder


@pytest.mark.dist
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_another_number_of_processes_goes_on_with_the_same_curve(
    before: int, after: int, tmp_path: Path, twelve: Path
) -> None:
    at = KILLS.randint(4, 6)
    assert -signal.SIGKILL in Ranks(tmp_path, of_twelve(before), world=before, die_at=at).wait()
    assert checkpoints(tmp_path)[-1] in (at - 1, at - 2)  # a save publishes the one before it
    assert len(Ranks(tmp_path, of_twelve(after), world=after, resume=True).digests()) == 1
    assert losses(tmp_path) == pytest.approx(losses(twelve), rel=1e-5), at
    got, expected = saved(tmp_path, 6), saved(twelve, 6)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.dist
def test_sigterm_saves_and_the_run_goes_on(tmp_path: Path, whole: str) -> None:
    ranks = Ranks(tmp_path, ["run.checkpoint_every=0"], slow=0.3)
    log = tmp_path / "metrics.jsonl"
    while not (log.exists() and log.read_text()) and ranks.processes[0].is_alive():
        time.sleep(0.05)
    ranks.processes[0].terminate()
    assert ranks.wait() == [0], ranks.told()
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert events[-1]["event"] == "terminated" and checkpoints(tmp_path) == [events[-1]["step"]]
    assert events[-1]["step"] < 12
    assert Ranks(tmp_path, resume=True).digests() == {whole}


@pytest.mark.dist
def test_one_two_and_three_processes_learn_the_same(tmp_path: Path) -> None:
    """Norms over all processes, gradients over all samples: only the order of the sums differs."""
    curves = {}
    for world in (1, 2, 3):
        overrides = [
            f"batch_size={12 // world}",
            "samples=36",
            "dropout=0",
            "resting_pictures=false",
            "optimizer.scale_lr_by_world=false",
            "run.log_every=1",
            "run.steps=6",
            "run.checkpoint_every=0",
        ]
        assert len(Ranks(tmp_path / str(world), overrides, world=world).digests()) == 1
        curves[world] = losses(tmp_path / str(world))
    assert len(curves[1]) == 6
    for world in (2, 3):
        assert curves[world] == pytest.approx(curves[1], rel=2e-3), world
        first = [curves[world][step] for step in (1, 2, 3)]
        assert first == pytest.approx([curves[1][step] for step in (1, 2, 3)], rel=1e-5), world


def test_a_run_ends_after_its_epochs(tmp_path: Path) -> None:
    assert run(tmp_path, ["run.epochs=1", "run.checkpoint_every=3"]).step == 5
    assert checkpoints(tmp_path) == [3, 5]
    assert run(tmp_path, ["run.epochs=2"], resume=True).step == 10 and run(tmp_path, resume=True).step == 12


def test_micro_batches_add_up_to_the_batch(tmp_path: Path) -> None:
    common = ["dropout=0", "frozen_trunks=true", "run.steps=4", "run.log_every=1", "samples=16", *NO_CHECKPOINTS]
    run(tmp_path / "a", [*common, "batch_size=8"])
    run(tmp_path / "b", [*common, "batch_size=2", "run.accumulate=4"])
    assert losses(tmp_path / "b") == pytest.approx(losses(tmp_path / "a"), rel=1e-5)


def test_a_folder_that_cannot_be_written_is_told_and_gone_on_with(tmp_path: Path) -> None:
    """The system refuses files above 20 kB, as a quota does: too little for a checkpoint, enough for the log."""
    overrides = ["run.steps=4", "run.checkpoint_every=2", "ema.decay=0"]
    run(tmp_path / "a", [*overrides, "run.steps=2"])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        with pytest.raises(UserError, match=r"a cannot be written: File too large; .* go on with --resume") as caught:
            run(tmp_path / "a", overrides, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 1 and checkpoints(tmp_path / "a") == [2]
    assert run(tmp_path / "a", overrides, resume=True).step == 4 and checkpoints(tmp_path / "a") == [2, 4]
    (tmp_path / "file").write_text("")
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(str(path), ToyRecipe, overrides)
    with pytest.raises(UserError, match="file/b cannot be written: Not a directory"):
        train(recipe, ToyTask(recipe), tmp_path / "file" / "b")


HOSTILE: list[tuple[str, object, str]] = [
    ("source", None, "KeyError: 'source'"),
    ("source", {"epoch": 1}, "KeyError: 'length'"),
    ("step", "../../../evil", r"ValueError: invalid literal for int\(\)"),
    ("early_stop", [], "TypeError"),
    ("recipe", 7, "TypeError"),
    ("carried", {}, "KeyError"),
]


def test_a_hostile_state_is_told_and_writes_nothing(tmp_path: Path) -> None:
    run(tmp_path, ["run.steps=1", "run.checkpoint_every=1"])
    path = tmp_path / "checkpoints" / "step-00000001"
    whole = json.loads((path / "state.json").read_text())
    before = set(tmp_path.rglob("*"))
    for part, value, said in HOSTILE:
        state = {key: held for key, held in {**whole, part: value}.items() if held is not None or key != part}
        (path / "state.json").write_text(json.dumps(state))
        sign(path)
        with pytest.raises(UserError, match=rf"state\.json is no state of a run \({said}.*; give another with --from"):
            run(tmp_path, ["run.steps=2"], resume=True)
    assert set(tmp_path.rglob("*")) == before


def test_data_are_looked_at_before_a_model_is_made_and_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyTask, "build", lambda self: pytest.fail("a model was made"))
    with pytest.raises(UserError, match="3 samples do not fill one step of 4"):
        run(tmp_path / "run", ["samples=3"])
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["toy-0.yaml"]


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path) -> None:
    run(tmp_path, ["run.steps=3"])
    with pytest.raises(UserError, match="holds a run already: add --resume"):
        run(tmp_path, ["run.steps=3"])
    assert run(tmp_path, ["run.steps=4"], resume=True).step == 4


def test_one_process_at_a_time_writes_a_run(tmp_path: Path) -> None:
    """A job that is started again while the first still runs: each would have removed the checkpoint that the other writes."""
    run(tmp_path, ["run.steps=3"])
    with (
        alone(tmp_path, tmp_path / "heartbeats/lock"),
        pytest.raises(
            UserError, match=rf"is being trained in by process {os.getpid()} on .*: wait for it, stop it, or give"
        ),
    ):
        run(tmp_path, ["run.steps=4"], resume=True)
    assert sorted(losses(tmp_path))[-1] <= 3
    assert run(tmp_path, ["run.steps=4"], resume=True).step == 4


def test_what_torchrun_starts_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Started by hand, it must be told --resume, which is also right for the first start."""
    assert run(tmp_path, ["run.steps=3"], resume=True).step == 3
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    with pytest.raises(UserError, match="holds a run already"):
        run(tmp_path, ["run.steps=4"])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run(tmp_path, ["run.steps=4"]).step == 4
    assert sorted(losses(tmp_path)) == [2, 3, 4]


def test_a_diverged_run_gives_up_and_names_the_samples(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\d+ steps in a row .*run\.max_skipped=3"):
        run(tmp_path, ["poison_from=0", "run.max_skipped=3", "run.steps=40", *NO_CHECKPOINTS])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    skipped = [row for row in rows if row["kind"] == "event"]
    assert [row["step"] for row in skipped[:4]] == [1, 2, 3, 4]
    assert all(len(row["keys"]) == 4 for row in skipped)


def test_early_stopping_and_the_best_weights(tmp_path: Path) -> None:
    outcome = run(tmp_path, ["run.validate_every=1", "run.patience=2", "run.steps=60", *NO_CHECKPOINTS])
    assert outcome.why == "stopped early" and outcome.best is not None and outcome.step < 60
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = [row["accuracy_1"] for row in rows if row["kind"] == "validate"]
    assert max(scores) == outcome.best == scores[-3]
    assert (tmp_path / "best" / "model.safetensors").exists()


def test_a_run_leaves_its_last_weights(tmp_path: Path) -> None:
    """The average's, where there is one: a run without validation has no others to hand on."""
    final: dict[str, Tensor] = {}
    overrides = ["run.steps=3", "ema.decay=0"]
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(str(path), ToyRecipe, overrides)
    train(recipe, ToyTask(recipe), tmp_path / "run", last=lambda model: final.update(model.state_dict()))
    left = read_weights(tmp_path / "run" / "last")
    assert left.keys() == final.keys() and all(torch.equal(left[name], final[name]) for name in final)
    assert json.loads((tmp_path / "run" / "last" / "recipe.json").read_text())["run"]["steps"] == 3


@pytest.mark.parametrize(
    "overrides",
    [["parallel.precision=bf16"], ["parallel.precision=fp16"], ["parallel.precision=bf16", "parallel.strategy=fsdp2"]],
    ids=" ".join,
)
def test_lower_precisions_follow_full_precision(tmp_path: Path, overrides: list[str]) -> None:
    common = ["run.steps=3", "run.log_every=1", "dropout=0", "frozen_trunks=true", "run.checkpoint_every=0"]
    run(tmp_path / "full", common)
    run(tmp_path / "low", [*common, *overrides])
    full, low = losses(tmp_path / "full"), losses(tmp_path / "low")
    assert low == pytest.approx(full, rel=0.03) and low != full


def test_every_state_of_a_run_is_in_its_checkpoint(tmp_path: Path) -> None:
    """A run that was cut and resumed ends with the tensors, the state and the log of the one that was not, though its
    checkpoint lies between two rows of the log."""
    common = ["run.steps=6", "run.checkpoint_every=2", "run.validate_every=1", "run.log_every=3", "ema.warmup=true"]
    common += ["run.patience=20", "samples=12"]
    run(tmp_path / "whole", common)
    run(tmp_path / "cut", common, die=2)
    run(tmp_path / "cut", common, resume=True)
    whole, cut = saved(tmp_path / "whole", 6), saved(tmp_path / "cut", 6)
    assert whole.keys() == cut.keys() and all(torch.equal(value, cut[name]) for name, value in whole.items())
    names = [name.removeprefix("model.") for name in whole if name.startswith("model.") and f"ema.{name[6:]}" in whole]
    assert names and all(f"optimizer.state.{name}.exp_avg" in whole for name in names)
    assert any(not torch.equal(whole[f"model.{name}"], whole[f"ema.{name}"]) for name in names)
    states = [
        json.loads((tmp_path / name / "checkpoints/step-00000006/state.json").read_text()) for name in ("whole", "cut")
    ]
    assert states[0] == states[1] and states[0]["ema_updates"] == 6
    assert states[0]["early_stop"]["best"] is not None and states[0]["source"]["epoch"] == 2
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if row["kind"] == "train"]  # a warm-up of 4 steps from a hundredth
    assert rates == pytest.approx([0.001 * (0.01 + 0.99 * min(step / 4, 1)) for step in (2, 5)])
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") and sorted(losses(tmp_path / "cut")) == [3, 6]

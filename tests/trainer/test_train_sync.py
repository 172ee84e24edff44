"""`javisc train` on a compiled dataset: from the command line to checkpoints, resumed bitwise, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner

from javisc.cli import cli
from javisc.manifests.errors import UserError
from javisc.trainer.engine.config import load_recipe, recipe_names, task_of
from javisc.trainer.engine.weights import read_weights
from javisc.trainer.models.sync.model import AVSync
from javisc.trainer.tasks.registry import load
from javisc.trainer.tasks.selector import pooled_metrics, whole_model_state
from javisc.trainer.tasks.sync import SyncRecipe, SyncTask
from javisc.trainer.use.export_weights import export_weights
from javisc.trainer.use.selector import load_selector
from support import compiled, selector

#: A run of a few steps of SparseSync itself, which the demonstration's own head stands in for.
TINY = [
    *selector.TINY,
    "model.transformer.visual_selector.attn_pdrop=0",
    "model.transformer.audio_selector.attn_pdrop=0",
    "data.batch_size=2",
    "data.iter_times=1",
    "run.log_every=1",
    "run.validate_every=4",
    "run.checkpoint_every=2",
    "run.tensorboard=false",
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = compiled.write(tmp_path_factory.mktemp("train") / "ds", [40, 50, 36, 45, 60, 38, 40, 41], fps=25)
    path = folder / "manifest.parquet"
    rows = pl.read_parquet(path)
    rows.with_columns(split=pl.Series(["train", "val"] * 4)).write_parquet(path)
    return folder


def train(*arguments: object) -> object:
    result = CliRunner().invoke(cli, ["train", *map(str, arguments)], catch_exceptions=False, standalone_mode=False)
    return result.output


def weights(folder: Path, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The model's tensors in the checkpoint of step 4."""
    tensors = {f"model.{key}": torch.zeros_like(value) for key, value in model.state_dict().items()}
    dcp.load(tensors, checkpoint_id=folder / "checkpoints" / "step-00000004", no_dist=True)
    return tensors


def test_trains_validates_resumes_and_starts_others(dataset: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train("sync-demo", "--data", dataset, "--run", whole, *TINY, "run.steps=4", "run.checkpoint_every=4")
    train("sync-demo", "--data", dataset, "--run", cut, *TINY, "run.steps=2")
    train("sync-demo", "--data", dataset, "--run", cut, *TINY, "run.steps=4", "--resume")
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4]
    measured = next(row for row in rows if row["kind"] == "validate")
    assert measured["clips"] == 4 and {"accuracy_1", "accuracy_1_tol1", "mAP", "dprime", "loss"} <= set(measured)
    # What a run leaves is what another starts from.
    best = read_weights(whole / "best")
    recipe, task = load("sync-demo", [f"data.paths=[{dataset}]", *TINY, f"start.model={whole / 'best'}"])
    built = task.build()
    assert isinstance(recipe, SyncRecipe) and isinstance(built, AVSync)
    assert all(torch.equal(value, best[key]) for key, value in built.state_dict().items())
    assert whole_model_state(str(whole / "best")).keys() == best.keys()
    a, b = weights(whole, built), weights(cut, built)
    assert all(value.any() for key, value in a.items() if key.endswith("running_mean"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_weights_are_exported_from_a_checkpoint_without_the_run(dataset: Path, tmp_path: Path) -> None:
    """Of the last step they are what the run left; of another they are that step's."""
    folder = tmp_path / "run"
    train("sync-demo", "--data", dataset, "--run", folder, *TINY, "run.steps=4", "ema.decay=0.5")
    result = CliRunner().invoke(cli, ["export-weights", str(folder)], catch_exceptions=False, standalone_mode=False)
    assert result.output.strip() == str(folder / "step-4")
    last, exported = read_weights(folder / "last"), read_weights(folder / "step-4")
    assert last.keys() == exported.keys() and all(torch.equal(last[name], exported[name]) for name in last)
    kept, told = (json.loads((folder / name / "recipe.json").read_text()) for name in ("last", "step-4"))
    assert kept == told
    earlier = export_weights(folder, tmp_path / "two", begin="2", average=False)
    assert json.loads((earlier / "origin.json").read_text())["step"] == 2
    assert any(not torch.equal(last[name], value) for name, value in read_weights(earlier).items())
    assert load_selector(str(earlier))[1].classes == 5
    with pytest.raises(UserError, match=r"--from 3: no complete checkpoint is there; .* has the steps 2, 4"):
        export_weights(folder, begin="3")
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        export_weights(tmp_path)
    state = folder / "checkpoints" / "step-00000004" / "state.json"
    state.write_text(state.read_text()[:-20])
    assert export_weights(folder).name == "step-2"  # the newest that is whole
    with pytest.raises(UserError, match="step-00000004 is damaged"):
        export_weights(folder, begin="4")


def test_dry_run_tells_what_a_run_would_be(dataset: Path) -> None:
    wanted = ["sync-demo", "--data", dataset, "--dry-run", *TINY]
    told = json.loads(str(train(*wanted, "--json")))
    assert told["batches_per_epoch"] == 2 and told["samples_per_step"] == 4
    assert told["batch"]["vis"] == [2, 25, 3, 32, 32] and told["batch"]["target"] == [4]
    weights = 4 * told["parameters_trained"]
    state = {"weights": weights, "gathered": 0, "gradients": weights, "unreduced": 0, "average": 0}
    assert told["parameters_frozen"] == 0 and 0 < told["memory"]["frozen"] < 0.1 * weights  # buffers
    assert 2 * weights < told["memory"]["optimizer"] < 2.01 * weights  # and the step of every tensor
    assert {key: told["memory"][key] for key in state} == state
    assert {(call["op"], call["backend"]) for call in told["kernels"]} == {("selector_attention", "torch")}
    assert told["step_tflop"] > 0 and told["tokens_per_step"] > 0
    other = ["parallel.strategy=fsdp2", "parallel.checkpoint_blocks=true", "channels_last=false"]
    text = str(train(*wanted, *other))
    assert f"{told['parameters_trained']:,} trained, 0 frozen" in text and "selector_attention heads of 4" in text


def test_every_recipe_that_javisc_brings_is_valid() -> None:
    names = recipe_names()
    assert {"sync-demo", "sync-lrs3", "sync-vggsound-sparse"} <= set(names)
    for name in (name for name in names if task_of(name) == "sync"):
        recipe, task = load(name, ["data.paths=[somewhere]"])
        assert isinstance(recipe, SyncRecipe)
        with torch.device("meta"):
            model = AVSync(recipe.model)
        blocks = task.blocks(model)
        inside = {id(p) for block in blocks for p in block.parameters()}
        assert sum(p.numel() for p in model.parameters() if id(p) in inside) > 0.7 * sum(
            p.numel() for p in model.parameters()
        )


def test_the_published_recipes_say_what_was_published() -> None:
    recipe = load_recipe("sync-lrs3", SyncRecipe)
    assert (recipe.optimizer.lr, recipe.optimizer.eps, recipe.optimizer.clip_norm) == (5e-6, 1e-7, 1.0)
    assert (recipe.schedule.warmup_steps, recipe.schedule.start_factor) == (1000, 0.01)
    assert (recipe.data.batch_size, recipe.transforms.p_audio_aug, recipe.transforms.audio_jitter_sec) == (
        10,
        0.0,
        0.05,
    )
    assert recipe.model.transformer.classes == 21 and recipe.optimizer.scale_lr_by_world
    tuned = load_recipe("sync-vggsound-sparse", SyncRecipe)
    chances = [getattr(tuned.transforms, name) for name in ("p_color_jitter", "p_gray_scale", "p_audio_aug")]
    assert chances == [0.2, 0.2, 0.2] and tuned.transforms.sometimes_upscale_p == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["transforms.classes=7"], "transforms.classes=7"),
        (["data.iter_times=3", "data.fixed_offsets=true"], "iter_times > 1 needs data.fixed_offsets=false"),
        (["data.paths=[]"], "no dataset: add --data"),
        (["model.correlation.classes=5"], "give both the same"),
        (["parallel.strategy=fsdp2"], "set channels_last=false, or parallel.strategy=ddp"),
    ],
)
def test_mistakes_are_told_before_anything_runs(overrides: list[str], message: str) -> None:
    recipe = load_recipe("sync-demo", SyncRecipe, ["data.paths=[x]", *overrides])
    with pytest.raises(UserError, match=message):
        SyncTask(recipe)


def test_unknown_tasks_and_empty_splits(dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("task: fly\n")
    with pytest.raises(UserError, match="task 'fly' is not known: it may be sync"):
        load(str(path))
    with pytest.raises(UserError, match="no clip that fits"):
        pooled_metrics([], [], 1)


def test_eval_measures_what_training_measured(dataset: Path, tmp_path: Path) -> None:
    train("sync-demo", "--data", dataset, "--run", tmp_path, *TINY, "run.steps=1")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    measured = next(row for row in rows if row["kind"] == "validate")
    arguments = ["eval", "sync", str(tmp_path / "best"), "--data", str(dataset), "--split", "val", "--random-crops"]
    told = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    got = json.loads(told.stdout[told.stdout.index("{") :])
    assert got["clips"] == 4 and got.pop("audio_advance_sec") == 0.0
    assert got == pytest.approx({key: measured[key] for key in got}, rel=1e-4, abs=1e-6)
    with pytest.raises(UserError, match="--iter-times above 1 needs --random-crops"):
        CliRunner().invoke(cli, [*arguments[:-1], "--iter-times", "2"], catch_exceptions=False, standalone_mode=False)

"""Nothing in a training step reads the device: a ratchet. Every place that waits stands here, with its reason; a new one fails,
and so does an entry that no step needs any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from javisc.trainer.engine.config import task_of
from javisc.trainer.engine.hooks import Hook, Run
from javisc.trainer.engine.loop import train
from javisc.trainer.tasks.registry import TASKS, load
from support import compiled, selector
from support.reads import synchronizing, watched
from support.toy_training import ToyTask, run

#: What a step may do, and why it costs no wait for a device (or why it still does).
ALLOWED = {
    "trainer/engine/distributed.py answer item": "the flag of a gloo group, on the CPU",
    "trainer/engine/optim.py step to": "PyTorch's fused optimizer asks for tensors on the device that they are on",
    "kernels/attention/op.py _check_packed tolist": "bounds are checked where they lie on the CPU, never on a device",
    "trainer/objectives/flow.py shift_times item": "times are drawn on the CPU",
    "trainer/objectives/flow.py row as_tensor": "the same",
    "trainer/objectives/frame_masks.py draw_masks item": "masks are drawn on the CPU",
    "trainer/tasks/dit.py <dictcomp> item": "the same masks, before they are moved",
    "trainer/tasks/latents.py token_counts tolist": "the tokenizer's mask, on the CPU",
}
QUIET = [
    "run.steps=4",
    "run.log_every=1000",
    "run.validate_every=0",
    "run.checkpoint_every=0",
    "run.patience=0",
    "run.tensorboard=false",
]


class Watch(Hook):
    """Counts what waits in the second and third step, by the stand-in or by PyTorch's own word."""

    def __init__(self, how: Callable[[Counter[str]], AbstractContextManager[None]] = watched) -> None:
        self.found: Counter[str] = Counter()
        self.stack, self.how = ExitStack(), how

    def stepped(self, run: Run) -> None:
        if run.step == 1:
            self.stack.enter_context(self.how(self.found))
        if run.step == 3:
            self.stack.close()


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Tiny datasets, and what the tiny recipes need to train on them."""
    root = tmp_path_factory.mktemp("waiting")
    clips = compiled.write(root / "clips", [20, 25, 17, 22, 30, 18])
    path = clips / "manifest.parquet"
    pl.read_parquet(path).with_columns(split=pl.Series(["train"] * 6)).write_parquet(path)
    sync = compiled.write(root / "sync", [40, 50, 36, 45], fps=25)
    path = sync / "manifest.parquet"  # labels for the classifier of sounds
    pl.read_parquet(path).with_columns(label=pl.Series(["a", "b"] * 2)).write_parquet(path)
    # Five seconds for Synchformer's segments.
    segments = compiled.write(root / "segments", [125, 130, 125, 125], fps=25, size=(32, 40), hiss=True)
    clip = [f"data.paths=[{clips}]", "data.buckets.48x64.17=[1.0,2]"]
    small = ["data.batch_size=2", "data.train_split=null"]
    segment = [f"data.paths=[{segments}]", "data.batch_size=1", "data.train_split=null", "model.visual.depth=1"]
    return {
        "jav-tiny": [*clip, "mask_ratios={quarter_head: 1.0}"],
        "audio-tiny": clip,
        "prior-tiny": clip,
        "sync-demo": [f"data.paths=[{sync}]", *selector.TINY, *small],
        "sync-audio-tiny": [f"data.paths=[{sync}]", "model.classes=2", *small],
        "synchformer-avclip-tiny": segment,
        "synchformer-tiny": [*segment, "start.extractors=RUNS/synchformer-avclip-tiny/last"],
    }


def waits(recipes: dict[str, list[str]], runs: Path, **how: Any) -> dict[str, Counter[str]]:
    """What waits in two steps of every recipe."""
    found = {}
    for name, overrides in recipes.items():
        recipe, task = load(name, [*(word.replace("RUNS", str(runs)) for word in overrides), *QUIET])
        watch = Watch(**how)
        train(recipe, task, runs / name, hooks=[watch])
        found[name] = watch.found
    return found


@pytest.fixture(scope="module")
def seen(recipes: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    return waits(recipes, tmp_path_factory.mktemp("runs"))


def test_a_step_waits_nowhere_but_where_it_is_known(seen: dict[str, Counter[str]]) -> None:
    new = {(name, place): n for name, found in seen.items() for place, n in found.items() if place not in ALLOWED}
    assert not new, f"new places that wait for a device: take them out, or say in ALLOWED why they do not: {new}"


def test_every_task_has_its_recipe_here(recipes: dict[str, list[str]]) -> None:
    assert sorted(map(task_of, recipes)) == sorted(TASKS)


def test_no_entry_is_dead(seen: dict[str, Counter[str]]) -> None:
    dead = ALLOWED.keys() - {place for found in seen.values() for place in found}
    assert not dead, f"no step needs these any more: {sorted(dead)}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_a_gpu_waits_nowhere_but_where_it_is_known(recipes: dict[str, list[str]], tmp_path: Path) -> None:
    """The stand-in's list holds for PyTorch's own debug mode, too."""
    places = {place.rsplit(" ", 1)[0] for place in ALLOWED}
    found = waits(recipes, tmp_path, how=synchronizing)
    new = {(name, place): n for name, some in found.items() for place, n in some.items() if place not in places}
    assert not new, f"these wait for the GPU: {new}"


def test_the_watch_sees_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loss(self: ToyTask, model: nn.Module, batch: Any, device: Any) -> Tensor:
        made = compute(self, model, batch, device)
        assert isinstance(made, Tensor)
        _look(made)
        return made

    compute = ToyTask.loss
    monkeypatch.setattr(ToyTask, "loss", loss)
    monkeypatch.setattr("support.reads._ROOT", Path(__file__).parents[2])
    monkeypatch.setattr("support.reads._PACKAGES", ("tests",))
    watch = Watch()
    run(tmp_path, QUIET, hooks=[watch])
    kinds = {place.split()[-1] for place in watch.found if "_look" in place}
    assert kinds == {"item", "tolist", "nonzero", "mask", "cpu", "numpy", "unique", "to", "tensor"}


def _look(x: Tensor) -> None:
    """Everything that waits, once."""
    x = x.detach().expand(3).clone()
    if bool(x[0] > 0):
        (
            x.tolist(),
            x.nonzero(),
            x[x > 0],
            x.cpu(),
            x.numpy(),
            x.unique(),
            x.to("cpu"),
            x.to(x.device, non_blocking=True),
            torch.tensor(1.0, device=x.device),
        )

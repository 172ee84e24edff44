"""Nothing in a training step reads the device: a ratchet. Every place that waits stands here, with its reason; a new one fails,
and so does an entry that no step needs any more."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from torch import Tensor, nn

from javisc.trainer.engine.hooks import Hook, Run
from javisc.trainer.engine.loop import train
from javisc.trainer.tasks.registry import load
from support import compiled, selector
from support.reads import watched
from support.toy_training import ToyTask, run

#: What a step may do, and why it costs no wait for a device (or why it still does).
ALLOWED = {
    "trainer/engine/distributed.py answer item": "the flag of a gloo group, on the CPU",
    "trainer/engine/loop.py train item": "the step's sizes, gathered by gloo on the CPU",
    "trainer/engine/meter.py got_data item": "the same",
    "trainer/engine/optim.py step to": "PyTorch's fused optimizer asks for tensors on the device that they are on",
    "kernels/attention/op.py _check_packed tolist": "bounds are checked where they lie on the CPU, never on a device",
    "trainer/objectives/flow.py shift_times item": "times are drawn on the CPU",
    "trainer/objectives/frame_masks.py draw_masks item": "masks are drawn on the CPU",
    "trainer/tasks/dit.py <dictcomp> item": "the same masks, before they are moved",
    "trainer/tasks/latents.py token_counts tolist": "the tokenizer's mask, on the CPU",
    "trainer/models/text/t5.py encode to": "transformers casts on the device",
    "trainer/models/text/tokens.py encode to": "token numbers of captions: a kilobyte",
    "trainer/models/vae/audio.py encode to": "diffusers casts on the device; log-mels are small",
    "trainer/models/vae/opensora.py encode to": "diffusers casts on the device",
    # Known, with frozen networks in the step alone (`javisc encode` takes them out of it):
    "trainer/models/text/t5.py encode item": "transformers looks once a batch whether a mask is full",
    "trainer/data/prior.py negatives_of to": "sounds and pictures of the pools, as they are read",
    "trainer/transforms/javisdit_audio_negatives.py loud_spans tolist": "loud parts of negatives, once a sound",
}
QUIET = ["run.steps=4", "run.log_every=1000", "run.validate_every=0", "run.checkpoint_every=0", "run.tensorboard=false"]


class Watch(Hook):
    """Counts what waits in the second and third step."""

    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.stack = ExitStack()

    def stepped(self, run: Run) -> None:
        if run.step == 1:
            self.stack.enter_context(watched(self.found))
        if run.step == 3:
            self.stack.close()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counter[str]]:
    """What waits in the steps of the tiny recipes."""
    root = tmp_path_factory.mktemp("waiting")
    clips = compiled.write(root / "clips", [20, 25, 17, 22, 30, 18])
    path = clips / "manifest.parquet"
    pl.read_parquet(path).with_columns(split=pl.Series(["train"] * 6)).write_parquet(path)
    sync = compiled.write(root / "sync", [40, 50, 36, 45], fps=25)
    bucket = "data.buckets.48x64.17=[1.0,2]"
    small = [*selector.TINY, "data.batch_size=2", "data.train_split=null"]
    found = {}
    for name, overrides in (
        ("jav-tiny", [f"data.paths=[{clips}]", bucket, "mask_ratios={quarter_head: 1.0}"]),
        ("prior-tiny", [f"data.paths=[{clips}]", bucket]),
        ("sync-demo", [f"data.paths=[{sync}]", *small]),
    ):
        recipe, task = load(name, [*overrides, *QUIET])
        watch = Watch()
        train(recipe, task, root / name, hooks=[watch])
        found[name] = watch.found
    return found


@pytest.mark.parametrize("name", ["jav-tiny", "prior-tiny", "sync-demo"])
def test_a_step_waits_nowhere_but_where_it_is_known(name: str, seen: dict[str, Counter[str]]) -> None:
    new = {place: count for place, count in seen[name].items() if place not in ALLOWED}
    assert not new, f"new places that wait for a device: take them out, or say in ALLOWED why they do not: {new}"


def test_no_entry_is_dead(seen: dict[str, Counter[str]]) -> None:
    dead = ALLOWED.keys() - {place for found in seen.values() for place in found}
    assert not dead, f"no step needs these any more: {sorted(dead)}"


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
    assert kinds == {"item", "tolist", "nonzero", "mask", "cpu", "numpy", "unique", "to"}


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
        )

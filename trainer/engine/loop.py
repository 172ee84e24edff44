"""The training loop, for every model: reads from top to bottom.

A step is a function of (recipe, checkpoint, step number, number of processes): noise and dropout are keyed by them, data by the
source's position. So a run that was killed and resumed is, bit for bit, the run that was not.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.manifests.files import published
from javisc.trainer.engine.checkpoint import Checkpoints
from javisc.trainer.engine.config import Recipe, as_dict, as_yaml, differences
from javisc.trainer.engine.distributed import (
    Raised,
    World,
    accumulating,
    autocast,
    bare,
    clean,
    restarted,
    spread,
    world,
)
from javisc.trainer.engine.logs import Logs
from javisc.trainer.engine.meter import Meter
from javisc.trainer.engine.optim import EMA, Stepper
from javisc.trainer.engine.peaks import peak_flops
from javisc.trainer.engine.schedule import EarlyStop, rate_factor
from javisc.trainer.task import Source, Task, endless, key_random


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `why` is done, terminated or stopped early."""

    step: int
    why: str
    best: float | None


def train(
    recipe: Recipe,
    task: Task[Any],
    folder: Path,
    *,
    resume: bool = False,
    last: Callable[[nn.Module], object] | None = None,
    name: str = "",
    changes: Sequence[str] = (),
) -> Outcome:
    """Train until the recipe's last step, a SIGTERM, or early stopping. Every process calls this.

    `name` is the recipe's and `changes` what differs from it: both are printed and kept in the run's recipe.yaml.
    `last` is called with the model while the processes are still joined. With `resume`, and in processes that torchrun started
    again, a run that `folder` holds goes on. Raises UserError if it holds one otherwise, or if the gradients stay not finite.
    """
    with (
        world() as here,
        _deterministic(recipe.run.deterministic),
        _terminations() as terminated,
        ExitStack() as cleanup,
    ):
        key_random(recipe.seed, "init")
        built = task.build()
        model = spread(built, task.blocks(built), recipe.parallel, here)
        inner = bare(model)
        stepper = Stepper(
            inner, recipe.optimizer, here.device, recipe.loss_scale if recipe.parallel.precision == "fp16" else None
        )
        stepper.prepare()
        ema = EMA(inner, recipe.ema) if recipe.ema.decay > 0 else None
        source = task.source(here.rank, here.size)
        cleanup.callback(source.close)
        early = EarlyStop(recipe.run.patience or 1 << 62, recipe.run.metric_to_max)
        checkpoints = Checkpoints(folder / "checkpoints", here, recipe.run.keep_checkpoints)
        tensors = _tensors(inner, stepper, ema)
        settings = as_dict(recipe)

        step, again = 0, restarted(here)
        brought: list[float] | None = None
        if (newest := checkpoints.newest()) is not None:
            if not (resume or again):
                raise UserError(f"{folder} holds a run already: add --resume to continue it, or give another --run")
            state = checkpoints.load(newest, tensors)
            step = _restore(state, source, early, ema, settings, folder, first=here.first)
            brought = state["carried"]
        elif (carried := task.carry_over(built)) is not None:
            stepper.adopt(carried)
            brought = [carried.lr, carried.steps]
        checkpoints.discard_incomplete()

        if here.first:
            _told(folder, recipe, name, changes)
        own_rate = recipe.optimizer.lr * (here.size if recipe.optimizer.scale_lr_by_world else 1)
        base, offset = (own_rate, 0) if brought is None else (brought[0], int(brought[1]))

        logs = Logs(folder, recipe.run, step, first=here.first)
        cleanup.callback(logs.close)
        guard = _Guard(recipe.run.max_skipped)
        meter = Meter(here, peak_flops(here.device, recipe.parallel.precision))
        batches = endless(source)
        cleanup.callback(batches.close)
        raised = Raised(here)
        why = "done"
        model.train()

        while not _ended(recipe, step, source):
            meter.start()
            micro = [next(batches) for _ in range(recipe.run.accumulate)]
            flops = sum(task.flops(batch) for batch in micro)
            sizes, work = here.gather(
                sum(task.size(batch) for batch in micro), flops or sum(task.tokens(batch) for batch in micro)
            )
            meter.got_data(work)

            # The mean over all samples of the step, wherever they lie: each process's share is averaged over processes later.
            share = here.size / float(sizes.sum())
            loss = torch.zeros((), device=here.device)
            for number, batch in enumerate(micro):
                key_random(recipe.seed, "step", step, number, here.rank)
                with accumulating(model, last=number == len(micro) - 1):
                    with autocast(inner, recipe.parallel, here.device):
                        part = task.loss(model, batch, here.device) * share
                    (part * stepper.scale).backward()  # type: ignore[no-untyped-call]
                loss += part.detach()
            lr = base * rate_factor(recipe.schedule, step + offset, recipe.run.steps + offset)
            norm, bad = stepper.step(lr)
            if ema is not None:
                ema.update()
            step += 1
            end = _ended(recipe, step, source)
            guard.saw(step, bad, [key for batch in micro for key in task.keys(batch)])
            meter.took(float(sizes.sum()), flops)

            if _due(step, max(recipe.run.log_every, 1), end):
                dist.all_reduce(loss)
                guard.check(stepper, logs)
                told = {"loss": loss.item() / here.size, "lr": lr, "grad_norm": norm.item()}
                measured = meter.read()
                logs.row(step, "train", {**told, **measured, "epoch": source.state_dict().get("epoch", 0)})
                shown = {"samples/s": measured["samples_per_sec"]}
                if "mfu" in measured:
                    shown["MFU"] = measured["mfu"]
                logs.progress(step, {**told, **shown})
            better = False
            if _due(step, recipe.run.validate_every, end):
                better = _validate(task, model, ema, early, recipe, step, here, logs)

            checkpoints.poll()
            stop = raised.answer()
            raised.ask(terminated())
            if stop or early.triggered or _due(step, recipe.run.checkpoint_every, end):
                checkpoints.save(step, tensors, {**_state(step, source, early, ema, settings), "carried": brought})
            if better:
                save_weights(folder / "best", model, ema, settings, here)
            if stop or early.triggered:
                why = "terminated" if stop else "stopped early"
                break

        raised.answer()
        checkpoints.finish()
        save_weights(folder / "last", model, ema, settings, here)
        logs.row(step, "event", {"event": why})
        if last is not None:
            last(inner)
        return Outcome(step, why, early.best)


def _told(folder: Path, recipe: Recipe, name: str, changes: Sequence[str]) -> None:
    """Print what a run's recipe changes in the preset, and keep the effective recipe: a file that can be trained after."""
    title = [
        f"{name or recipe.task}, changed in {len(changes)} settings" if changes else f"{name or recipe.task}, unchanged"
    ]
    print("\n  ".join([*title, *changes]), file=sys.stderr, flush=True)
    with published(folder / "recipe.yaml") as temporary:
        comments = "".join(f"# {line}\n" for line in (*title, *changes))
        temporary.write_text(comments + as_yaml(recipe), encoding="utf-8")


def _ended(recipe: Recipe, step: int, source: Source[Any]) -> bool:
    run = recipe.run
    return step >= run.steps or (run.epochs > 0 and int(source.state_dict().get("epoch", 0)) >= run.epochs)


def _due(step: int, every: int, end: bool) -> bool:
    return bool(every) and (end or step % every == 0)


def _tensors(model: nn.Module, stepper: Stepper, ema: EMA | None) -> dict[str, Tensor]:
    """Everything of a run that is a tensor, by name; the same objects for its whole life."""
    parts = {
        "model": {clean(key): value for key, value in model.state_dict().items()},
        "optimizer": stepper.state_dict(),
    }
    if ema is not None:
        parts["ema"] = ema.state_dict()
    return {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}


def _state(
    step: int, source: Source[Any], early: EarlyStop, ema: EMA | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything else: counters, the source's position, the recipe."""
    return {
        "step": step,
        "source": source.state_dict(),
        "early_stop": early.state_dict(),
        "ema_updates": 0 if ema is None else ema.updates,
        "recipe": settings,
        "torch": torch.__version__,
    }


def _restore(
    state: dict[str, Any],
    source: Source[Any],
    early: EarlyStop,
    ema: EMA | None,
    settings: dict[str, Any],
    folder: Path,
    *,
    first: bool,
) -> int:
    source.load_state_dict(state["source"])
    early.load_state_dict(state["early_stop"])
    if ema is not None:
        ema.updates = int(state["ema_updates"])
    changed = differences(state["recipe"], settings)
    if changed and first:
        (folder / f"changed-at-step-{state['step']}.txt").write_text("\n".join(changed) + "\n", encoding="utf-8")
    return int(state["step"])


@torch.no_grad()
def _validate(
    task: Task[Any],
    model: nn.Module,
    ema: EMA | None,
    early: EarlyStop,
    recipe: Recipe,
    step: int,
    here: World,
    logs: Logs,
) -> bool:
    """Metrics on held-out data, of the average where there is one. True if they are the best so far."""
    if ema is not None:
        ema.swap()
    model.eval()
    key_random(recipe.seed, "validate", step)
    metrics = task.validate(bare(model), here.rank, here.size, here.device)
    model.train()
    if ema is not None:
        ema.swap()
    if not metrics:
        return False
    if recipe.run.metric not in metrics:
        raise UserError(f"run.metric={recipe.run.metric!r} is not measured: it may be {', '.join(metrics)}")
    logs.row(step, "validate", dict(metrics))
    logs.progress(step, metrics)
    return early.update(metrics[recipe.run.metric])


@torch.no_grad()
def save_weights(folder: Path, model: nn.Module, ema: EMA | None, settings: dict[str, Any], here: World) -> None:
    """Write the weights (of the average, where there is one) as safetensors, whole, under their own names; the recipe; and
    config.json, if the model's configuration writes one, so that the folder is what others load."""
    from torch.distributed.tensor import DTensor

    from javisc.trainer.engine.weights import write_weights

    if ema is not None:
        ema.swap()
    whole = {
        clean(key): value.full_tensor() if isinstance(value, DTensor) else value.clone()
        for key, value in bare(model).state_dict().items()
    }
    if ema is not None:
        ema.swap()
    if here.first:
        write_weights(folder, whole)
        with published(folder / "recipe.json") as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        if save := getattr(getattr(bare(model), "config", None), "save", None):
            save(folder / "config.json")


class _Guard:
    """Remembers, on the device, which of the last steps were skipped, and whose samples they were."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.steps: list[tuple[int, Tensor, list[str]]] = []

    def saw(self, step: int, bad: Tensor, keys: list[str]) -> None:
        self.steps.append((step, bad, keys))

    def check(self, stepper: Stepper, logs: Logs) -> None:
        """Write down the samples of skipped steps; give up after too many in a row. The only place that reads the device."""
        for (step, _, keys), bad in zip(
            self.steps, torch.stack([bad for _, bad, _ in self.steps]).tolist(), strict=True
        ):
            if bad:
                logs.row(step, "event", {"event": "the gradient was not finite: step skipped", "keys": keys})
        self.steps = []
        in_a_row = int(stepper.skipped.item())
        if in_a_row > self.limit:
            raise UserError(
                f"{in_a_row} steps in a row had gradients that are not finite (run.max_skipped={self.limit}): the samples are in "
                "metrics.jsonl; lower optimizer.lr, or use parallel.precision=bf16"
            )


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Only operations whose sums run in a fixed order."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextmanager
def _terminations() -> Iterator[Any]:
    """While open, SIGTERM is remembered instead of obeyed; yields a function that tells whether it came."""
    came = False

    def remember(_: int, __: FrameType | None) -> None:
        nonlocal came
        came = True

    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield lambda: came
    finally:
        signal.signal(signal.SIGTERM, before)

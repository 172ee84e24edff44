"""The training loop, for every model: reads from top to bottom.

A step is a function of (recipe, checkpoint, step number, number of processes): noise and dropout are keyed by them, data by the
source's position. So a run that was killed and resumed is, bit for bit, the run that was not.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.manifests.files import published, recover_folder
from javisc.trainer.engine.checkpoint import CHECKPOINTS, FROZEN, STATE, Checkpoints, Damaged, find
from javisc.trainer.engine.config import Recipe, as_dict, as_yaml, check_together, differences
from javisc.trainer.engine.determinism import deterministic
from javisc.trainer.engine.distributed import (
    Raised,
    World,
    accumulating,
    autocast,
    bare,
    clean,
    restarted,
    world,
)
from javisc.trainer.engine.ends import Epochs, due, ended, terminations
from javisc.trainer.engine.export import save_weights
from javisc.trainer.engine.frozen import Frozen, frozen_of
from javisc.trainer.engine.hooks import Hook, Run
from javisc.trainer.engine.logs import Logs, check_loggers
from javisc.trainer.engine.meter import Meter
from javisc.trainer.engine.optim import EMA, Stepper
from javisc.trainer.engine.peaks import peak_flops
from javisc.trainer.engine.schedule import EarlyStop, rate_factor
from javisc.trainer.engine.start import built_and_spread
from javisc.trainer.engine.tuning import Collect, grow_segments, surroundings, tuned
from javisc.trainer.engine.watch import FOLDER as HEARTBEATS
from javisc.trainer.engine.watch import Profile, Watchdog, record_flights
from javisc.trainer.engine.window import Taken, Window
from javisc.trainer.engine.writing import alone, writing
from javisc.trainer.task import Closes, Source, Task, endless, key_random


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
    begin: str = "",
    last: Callable[[nn.Module], object] | None = None,
    name: str = "",
    changes: Sequence[str] = (),
    hooks: Sequence[Hook] = (),
) -> Outcome:
    """Train until the recipe's last step, a SIGTERM, or early stopping. Every process calls this.

    With `resume`, and in processes that torchrun started again, a run that `folder` holds goes on; `begin` names the checkpoint
    to go on from (`checkpoint.find`). `name` is the recipe's and `changes` what differs from it: both are printed and kept in the
    run's recipe.yaml. `last` is called with the model while the processes are still joined.
    Raises UserError if the folder holds a run otherwise or cannot be written, if no checkpoint fits, or if the gradients stay not
    finite.
    """
    limits = recipe.parallel
    check_together(recipe, int(os.environ.get("WORLD_SIZE", 1)))
    check_loggers(recipe)
    record_flights(folder)
    grow_segments()
    with (
        writing(folder),
        world(limits.timeout_sec, limits.saving_timeout_sec) as here,
        deterministic(recipe.run.deterministic, strict=recipe.run.nondeterministic == "raise"),
        tuned(recipe),
        terminations() as terminated,
        ExitStack() as cleanup,
    ):
        again = restarted(here)
        checkpoints = Checkpoints(folder / CHECKPOINTS, here, recipe.run.keep_checkpoints)
        chosen, named = _chosen(checkpoints, folder, begin, resume=resume, again=again)
        # First of all: what is wrong with the data is told before a model is made.
        source = task.source(here.rank, here.size)
        cleanup.callback(source.close)
        if isinstance(task, Closes):
            cleanup.callback(task.close)
        key_random(recipe.seed, "init")
        built, model, whole = built_and_spread(task, recipe, here)
        inner = bare(model)
        (folder / HEARTBEATS).mkdir(parents=True, exist_ok=True)  # nothing is written before this
        if here.first:
            cleanup.enter_context(alone(folder, folder / HEARTBEATS / "lock"))
        frozen = Frozen(folder, here, inner, whole)
        del whole
        stepper = Stepper(
            inner, recipe.optimizer, here.device, recipe.loss_scale if recipe.parallel.precision == "fp16" else None
        )
        stepper.prepare()
        ema = EMA(inner, recipe.ema) if recipe.ema.decay > 0 else None
        early = EarlyStop(recipe.run.patience or 1 << 62, recipe.run.metric_to_max)
        window = Window(here, recipe.run.max_skipped)
        tensors = _tensors(inner, stepper, ema)
        settings = as_dict(recipe)

        step = 0
        brought: list[float] | None = None
        notes: list[str] = []
        if chosen is not None:
            state, path = _loaded(checkpoints, chosen, named, tensors, frozen)
            frozen.settle(state, path)
            step, brought = _restore(path, state, source, early, ema, window)
            notes = [f"resumed at step {step}, from {path}", *_changed(step, state, settings, folder, first=here.first)]
        else:
            frozen.settle()
            if (carried := task.carry_over(built)) is not None:
                stepper.adopt(carried)
                brought = [carried.lr, carried.steps]
        del built
        checkpoints.discard_incomplete()

        if here.first:
            for name_of in ("best", "last"):
                recover_folder(folder / name_of)
            _told(folder, recipe, name, changes, notes)
        own_rate = recipe.optimizer.lr * (here.size if recipe.optimizer.scale_lr_by_world else 1)
        base, offset = (own_rate, 0) if brought is None else (brought[0], int(brought[1]))

        logs = Logs(folder, recipe, step, first=here.first)
        cleanup.callback(logs.close)
        logs.row(step, "start", surroundings(here, recipe))
        meter = Meter(here, peak_flops(here.device, recipe.parallel.precision))
        batches = endless(source)
        cleanup.callback(batches.close)
        raised = Raised(here)
        run = Run(recipe, task, inner, ema, folder, here, logs, meter, step)
        epochs = Epochs(recipe, source)
        why = "done"
        model.train()
        hooks = [*_watching(recipe, cleanup), *hooks]
        for hook in hooks:
            hook.started(run)

        while not ended(recipe, step, source):
            meter.start()
            micro, samples = [], 0
            for _ in range(recipe.run.accumulate):
                micro.append(next(batches))
                samples += _planned(source, here, task.size(micro[-1]))
            keys = [task.keys(batch) for batch in micro]
            run.keys = [key for names in keys for key in names]
            there = time.monotonic()  # what follows takes a second for the first batch of a shape
            flops = sum(task.flops(batch) for batch in micro)
            meter.got_data(flops or sum(task.tokens(batch) for batch in micro), there)

            # The mean over all samples of the step, wherever they lie: each process's share is averaged over processes later.
            share = here.size / samples
            terms: dict[str, Tensor] = {}
            finite = []
            for number, batch in enumerate(micro):
                key_random(recipe.seed, "step", step, number, here.rank)
                with accumulating(model, last=number == len(micro) - 1):
                    with autocast(inner, recipe.parallel, here.device):
                        parts = {
                            key: part * share for key, part in _terms(task.loss(model, batch, here.device)).items()
                        }
                    (parts["loss"] * stepper.scale).backward()  # type: ignore[no-untyped-call]
                for key, part in parts.items():
                    terms[key] = terms.get(key, torch.zeros((), device=here.device)) + part.detach()
                finite.append(parts["loss"].detach().isfinite())
            lr = base * rate_factor(recipe.schedule, step + offset, recipe.run.steps + offset)
            norm, bad = stepper.step(lr)
            if ema is not None:
                ema.update()
            step += 1
            run.step = step
            end = ended(recipe, step, source)
            window.saw(Taken(step, terms, norm, bad, keys, finite))
            meter.took(samples, flops)

            if due(step, recipe.run.log_every, end):
                window.settle(stepper, logs)
                told = {**window.means(), "lr": lr}
                measured = meter.read()
                logs.row(step, "train", {**told, **measured, "epoch": source.state_dict().get("epoch", 0)})
                shown = {key: told[key] for key in ("loss", "lr", "grad_norm")}
                logs.progress(step, {**shown, **measured}, epochs.last_step(step))
            for hook in hooks:
                hook.stepped(run)
            better = False
            if due(step, recipe.run.validate_every, end):
                with meter.paused():
                    metrics = _validate(run)
                    better = bool(metrics) and early.update(metrics[recipe.run.metric])
                    for hook in hooks:
                        hook.validated(run, metrics)

            checkpoints.poll()
            stop = raised.answer()
            raised.ask(terminated())
            if better:  # before the state that claims it
                with meter.paused():
                    _save(run, "best", model, settings, hooks, {recipe.run.metric: early.best})
            if stop or early.triggered or due(step, recipe.run.checkpoint_every, end):
                with meter.paused():
                    window.settle(stepper, logs)
                    rest = {"carried": brought, FROZEN: frozen.digest}
                    state = {**_state(step, source, early, ema, window, settings), **rest}
                    checkpoints.save(step, tensors, state)
            if stop or early.triggered:
                why = "terminated" if stop else "stopped early"
                break

        raised.answer()
        checkpoints.finish()
        with meter.paused():
            _save(run, "last", model, settings, hooks, {})
        logs.row(step, "event", {"event": why})
        for hook in hooks:
            hook.ended(run, why)
        if last is not None:
            last(inner)
        return Outcome(step, why, early.best)


def _watching(recipe: Recipe, cleanup: ExitStack) -> list[Hook]:
    """The hooks that the recipe asks for by itself."""
    found: list[Hook] = []
    if recipe.run.watchdog_sec:
        watchdog = Watchdog(recipe.run.watchdog_sec, recipe.parallel.saving_timeout_sec / 2)
        cleanup.callback(watchdog.close)
        found.append(watchdog)
    if recipe.run.gc_every:
        found.append(Collect(recipe.run.gc_every))
    if recipe.run.profile:
        found.append(Profile(recipe.run.profile))
    return found


def _chosen(
    checkpoints: Checkpoints, folder: Path, begin: str, *, resume: bool, again: bool
) -> tuple[Path | None, bool]:
    """The checkpoint to go on from, None for a new run, and whether it was named. Raises UserError if the folder holds a run that
    was not asked for."""
    newest = checkpoints.newest()
    if newest is not None and (again or (resume and not begin.isdecimal())):
        return newest, False
    path = find(folder, begin) if begin else None
    if newest is not None and (path is None or path.parent.resolve() != checkpoints.folder.resolve()):
        raise UserError(f"{folder} holds a run already: add --resume to continue it, or give another --run")
    return path, path is not None


def _loaded(
    checkpoints: Checkpoints, chosen: Path, named: bool, tensors: dict[str, Tensor], frozen: Frozen
) -> tuple[dict[str, Any], Path]:
    """The checkpoint's state, its tensors loaded: the one that was named, or the newest that can be read."""
    if not named:
        return checkpoints.resume(tensors, frozen.tensors)
    try:
        state = checkpoints.load(chosen, tensors, frozen.tensors)
    except Damaged as error:
        raise UserError(f"{error}; give another with --from") from error
    if chosen.parent.resolve() == checkpoints.folder.resolve():
        checkpoints.set_aside(chosen)
    return state, chosen


def _planned(source: Source[Any], here: World, mine: int) -> int:
    """The samples of all processes in the batches given last, by the plan that they share."""
    rows = source.rows
    if len(rows) != here.size or rows[here.rank] != mine:
        raise RuntimeError(f"process {here.rank} has {mine} samples, the plan of its step says {list(rows)}")
    return sum(rows)


def _terms(loss: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a task's loss gave, by name; "loss" is what is trained on."""
    return dict(loss) if isinstance(loss, Mapping) else {"loss": loss}


def _save(
    run: Run,
    name: str,
    model: nn.Module,
    settings: Mapping[str, Any],
    hooks: Sequence[Hook],
    origin: Mapping[str, float | None],
) -> None:
    save_weights(run.folder / name, model, run.ema, settings, run.world, {"step": run.step, **origin})
    for hook in hooks:
        hook.saved(run, run.folder / name)


def _told(folder: Path, recipe: Recipe, name: str, changes: Sequence[str], notes: Sequence[str]) -> None:
    """Print what a run's recipe changes in the preset, and what a resumed run changes in itself; keep the effective recipe: a
    file that can be trained after."""
    title = [
        f"{name or recipe.task}, changed in {len(changes)} settings" if changes else f"{name or recipe.task}, unchanged"
    ]
    for first, *rest in filter(None, ([*title, *changes], notes)):
        print("\n  ".join([first, *rest]), file=sys.stderr, flush=True)
    with published(folder / "recipe.yaml") as temporary:
        comments = "".join(f"# {line}\n" for line in (*title, *changes))
        temporary.write_text(comments + as_yaml(recipe), encoding="utf-8")


def _tensors(model: nn.Module, stepper: Stepper, ema: EMA | None) -> dict[str, Tensor]:
    """Everything of a run that changes and is a tensor, by name; the same objects for its whole life."""
    rests = frozen_of(model)
    parts = {
        "model": {clean(key): value for key, value in model.state_dict().items() if clean(key) not in rests},
        "optimizer": stepper.state_dict(),
    }
    if ema is not None:
        parts["ema"] = ema.state_dict()
    return {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}


def _state(
    step: int, source: Source[Any], early: EarlyStop, ema: EMA | None, window: Window, settings: dict[str, Any]
) -> dict[str, Any]:
    """Everything else: counters, the source's position, the recipe."""
    return {
        "step": step,
        "source": source.state_dict(),
        "early_stop": early.state_dict(),
        "ema_updates": 0 if ema is None else ema.updates,
        "window": window.state_dict(),
        "recipe": settings,
        "torch": torch.__version__,
    }


def _restore(
    path: Path, state: dict[str, Any], source: Source[Any], early: EarlyStop, ema: EMA | None, window: Window
) -> tuple[int, list[float] | None]:
    """Take over a checkpoint's state: its step, and rate and steps that an optimizer brought along. Raises UserError."""
    try:
        source.load_state_dict(state["source"])
        len(source)  # plans the epoch: whether it has the steps that the state tells of
        early.load_state_dict(state["early_stop"])
        window.load_state_dict(state.get("window", {}))
        if ema is not None:
            ema.updates = int(state["ema_updates"])
        dict(state["recipe"])
        brought = state["carried"]
        return int(state["step"]), None if brought is None else [float(brought[0]), int(brought[1])]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{path / STATE} is no state of a run ({type(error).__name__}: {error}); give another with --from"
        ) from error


def _changed(step: int, state: dict[str, Any], settings: dict[str, Any], folder: Path, *, first: bool) -> list[str]:
    """What a resumed run changes in its settings; kept in its folder, too."""
    changed = differences(state["recipe"], settings)
    if changed and first:
        (folder / f"changed-at-step-{step}.txt").write_text("\n".join(changed) + "\n", encoding="utf-8")
    return [f"changed since: {line}" for line in changed]


@torch.no_grad()
def _validate(run: Run) -> dict[str, float]:
    """Metrics on held-out data, of the average where there is one."""
    recipe = run.recipe
    with run.evaluating() as model:
        key_random(recipe.seed, "validate", run.step)
        metrics = run.task.validate(model, run.world.rank, run.world.size, run.world.device)
    if not metrics:
        return {}
    if recipe.run.metric not in metrics:
        raise UserError(f"run.metric={recipe.run.metric!r} is not measured: it may be {', '.join(metrics)}")
    run.logs.row(run.step, "validate", dict(metrics))
    run.logs.progress(run.step, metrics)
    return metrics

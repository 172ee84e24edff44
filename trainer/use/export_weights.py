"""A checkpoint's weights for others to load, without a run: what `best` and `last` hold, of any step that was kept."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from javisc.manifests.errors import UserError
from javisc.trainer.engine.checkpoint import CHECKPOINTS, FROZEN, STATE, complaint, complete, find, read_tensors
from javisc.trainer.engine.export import write_folder
from javisc.trainer.engine.frozen import read_frozen
from javisc.trainer.tasks.registry import stored


def export_weights(run: Path, out: Path | None = None, *, begin: str = "", average: bool = True) -> Path:
    """Write the weights of a checkpoint of `run` as safetensors, with its recipe and config.json, to `out` (RUN/step-N).

    `begin`: a step or a checkpoint's folder; else the newest that is not damaged. `average`: the moving average's weights where
    the checkpoint has one. Returns where they lie. Raises UserError: no such checkpoint, a damaged one, or one whose recipe is of
    another model.
    """
    path = find(run, begin) if begin else _newest(run)
    if wrong := complaint(path):
        raise UserError(f"{path} is damaged ({wrong}): give another with --from")
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    try:
        step, settings = int(state["step"]), state["recipe"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / STATE} names no step and recipe: it is no checkpoint of a run") from error
    _, task = stored(settings, str(path / STATE))
    with torch.device("meta"):
        model = task.model()
    tensors = read_tensors(path, lambda name: name.startswith(("model.", "ema.") if average else "model."))
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    averages = {name.removeprefix("ema."): value for name, value in tensors.items() if name.startswith("ema.")}
    if rests := state.get(FROZEN):
        weights |= read_frozen(path.parent.parent, rests)
    weights |= averages
    wanted = model.state_dict()
    if other := sorted(
        name
        for name in {*wanted, *weights}
        if getattr(wanted.get(name), "shape", 0) != getattr(weights.get(name), "shape", 1)
    ):
        raise UserError(f"{path}: {len(other)} tensors are not those of its recipe's model, the first is {other[0]}")
    out = out or run / f"step-{step}"
    origin = {"step": step, "checkpoint": str(path), "average": bool(averages)}
    write_folder(out, {name: weights[name] for name in wanted}, settings, origin, getattr(model, "config", None))
    return out


def _newest(run: Path) -> Path:
    paths = complete(run / CHECKPOINTS)[::-1]
    if not paths:
        raise UserError(f"{run} holds no complete checkpoint: give the folder of a run of `javisc train`")
    return next((path for path in paths if not complaint(path)), paths[0])

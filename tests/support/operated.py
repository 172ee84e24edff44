"""Programs for `toy_training.Ranks`: what the engine's parts do in several processes, written down for a test to read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from javisc.manifests.errors import UserError
from javisc.manifests.files import recover_folder
from javisc.trainer.engine.checkpoint import CHECKPOINTS, FROZEN, MARKER, Checkpoints, read_tensors
from javisc.trainer.engine.config import load_recipe
from javisc.trainer.engine.distributed import bare, spread, tensors_of, world
from javisc.trainer.engine.export import save_weights, whole_state, write_folder
from javisc.trainer.engine.frozen import ORIGIN, Frozen, digest, frozen_of, read_frozen
from javisc.trainer.engine.lockstep import in_step
from javisc.trainer.engine.optim import EMA
from javisc.trainer.engine.start import built_and_spread
from javisc.trainer.task import key_random
from support.toy_training import RECIPE, ToyRecipe, ToyTask

#: What every value of a frozen tensor is in `saving`.
RESTING = -1.0


def split(folder: Path, overrides: Sequence[str] = ()) -> None:
    """Every way in which up to five batches may lie on the processes, measured on a sharded model: what each process counted."""
    with world() as here:
        model = nn.Linear(2, 2)
        fully_shard(model, mesh=init_device_mesh("cpu", (here.size,)))
        counted = []
        for total in range(6):
            for first in range(total + 1):
                shares = [first, *(len(range(rank, total - first, here.size - 1)) for rank in range(here.size - 1))]
                mine = [(here.rank, number) for number in range(shares[here.rank])]
                passes, seen = 0, []
                for batch, counts in in_step(model, mine, at_most=3):
                    model(torch.ones(1, 2))
                    passes += 1
                    seen += [batch[1]] if counts else []
                counted.append([shares, passes, seen])
        (folder / f"counted-{here.rank}").write_text(json.dumps(counted))


def saving(folder: Path, overrides: Sequence[str] = ()) -> None:
    """Save weights, what rests and checkpoints of a sharded model, and export one, for ever: of generation n every tensor that
    learns holds n, and what rests holds `RESTING`."""
    torch.manual_seed(0)
    with world() as here:
        model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(4)))
        for p in model[3].parameters():
            nn.init.constant_(p, RESTING)
            p.requires_grad_(False)
        whole = {name: value.clone() for name, value in frozen_of(model).items()}
        mesh = init_device_mesh("cpu", (here.size,))
        fully_shard(model, mesh=mesh, ignored_params={p for p in model.parameters() if not p.requires_grad})
        frozen = Frozen(folder, here, model, whole)
        checkpoints = Checkpoints(folder / CHECKPOINTS, here, keep=2)
        checkpoints.discard_incomplete()
        tensors = {f"model.{name}": value for name, value in model.state_dict().items() if name not in whole}
        begin, newest = 0, checkpoints.newest()
        if newest is None:
            frozen.settle()
        else:
            state = checkpoints.load(newest, tensors)
            begin = state["step"]
            frozen.settle(state, newest)
        if here.first:
            for name in ("best", "exported"):
                recover_folder(folder / name)
        for generation in range(begin + 1, 10**6):
            with torch.no_grad():
                for p in model.parameters():
                    if p.requires_grad:
                        p.fill_(generation)
            if here.first:  # as a run does that finds it to be another's
                (folder / FROZEN / ORIGIN).unlink()
            frozen.whole = whole
            frozen.settle()
            save_weights(folder / "best", model, None, {}, here, {"step": generation})
            state = {"step": generation, "recipe": {}, FROZEN: frozen.digest}
            checkpoints.save(generation, tensors, state, wait=generation % 2 == 0)
            if here.first and (paths := checkpoints.complete()):
                found = read_tensors(paths[-1], lambda name: name.startswith("model."))
                write_folder(folder / "exported", found | read_frozen(folder, frozen.digest), {}, {"step": 0}, None)


def gathered(folder: Path, overrides: Sequence[str] = ()) -> None:
    """Weights of a spread model, saved: how many tensors this process got, and the model's own after that."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe, task = _toy(folder, overrides)
    with world() as here:
        key_random(recipe.seed, "init")
        built = task.build()
        before = {name: value.detach().clone() for name, value in built.state_dict().items()}
        model = spread(built, task.blocks(built), recipe.parallel, here)
        ema = EMA(bare(model), recipe.ema)
        whole = whole_state(model)
        fits = all(torch.equal(whole[name], value) for name, value in before.items()) if whole else True
        save_weights(folder / "best", model, ema, {"a": 1}, here, {"step": 3})
        if here.first:
            torch.save(before, folder / "before.pt")
        dist.barrier()
        (folder / f"gathered-{here.rank}").write_text(json.dumps([len(whole), len(before), fits]))


def started(folder: Path, overrides: Sequence[str] = ()) -> None:
    """A model as a run spreads it over the processes: who made one, digests of what was made and of what came, and bytes held."""
    recipe, task = _toy(folder, overrides)
    plain, made = task.model, list[nn.Module]()

    def shape() -> nn.Module:
        model = plain()
        model.register_buffer("loose", torch.rand(5), persistent=False)
        return model

    def build() -> nn.Module:
        made.append(shape())
        return made[0]

    task.model, task.build = shape, build  # type: ignore[method-assign]
    with world() as here:
        key_random(recipe.seed, "init")
        _, model, _ = built_and_spread(task, recipe, here)
        tensors = tensors_of(bare(model))
        whole = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in tensors.items()}
        locals_ = [t.to_local() if isinstance(t, DTensor) else t for t in tensors.values()]
        told = {
            "made": len(made),
            "built": digest(tensors_of(made[0])) if made else "",
            "whole": digest(whole),
            "held": sum(t.numel() * t.element_size() for t in locals_),
            "bytes": sum(t.numel() * t.element_size() for t in whole.values()),
        }
        (folder / f"started-{here.rank}").write_text(json.dumps(told))


def refused(folder: Path, overrides: Sequence[str] = ()) -> None:
    """A model that the first process cannot make: what every process says."""
    recipe, task = _toy(folder, overrides)

    def build() -> nn.Module:
        raise UserError("no weights there")

    task.build = build  # type: ignore[method-assign]
    with world() as here:
        try:
            built_and_spread(task, recipe, here)
        except UserError as error:
            (folder / f"refused-{here.rank}").write_text(str(error))


def sign(path: Path) -> None:
    """Write a checkpoint's marker anew, for the files as they are."""
    sizes = {file.name: file.stat().st_size for file in path.iterdir() if file.name != MARKER}
    (path / MARKER).write_text(json.dumps({"world": 1, "files": sizes}))


def _toy(folder: Path, overrides: Sequence[str]) -> tuple[ToyRecipe, ToyTask]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"toy-{os.environ['RANK']}.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(str(path), ToyRecipe, overrides)
    return recipe, ToyTask(recipe)

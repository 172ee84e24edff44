"""What a run does not train: written once, into the run's folder, instead of into every checkpoint, which tells its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.manifests.files import published_folder, recover_folder
from javisc.trainer.engine.checkpoint import FROZEN, Damaged, read_tensors
from javisc.trainer.engine.distributed import World, clean
from javisc.trainer.engine.weights import read_weights, write_weights

#: What says which weights a run's folder `frozen` holds.
ORIGIN = "origin.json"


def frozen_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters of a model that do not learn, by name."""
    return {clean(name): p.detach() for name, p in model.named_parameters() if not p.requires_grad}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A digest of tensors on the CPU: names, types, shapes and bytes; "" of none."""
    if not tensors:
        return ""
    state = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        state.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        state.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def read_frozen(run: Path, wanted: str) -> dict[str, Tensor]:
    """A run's frozen weights. Raises Damaged unless they have this digest."""
    try:
        tensors = read_weights(run / FROZEN)
    except UserError as error:
        raise Damaged(f"{run / FROZEN}, the weights that rest, cannot be read: {error}") from error
    if digest(tensors) != wanted:
        raise Damaged(
            f"{run / FROZEN} holds other weights than the checkpoint's run began with: get it back, or begin anew"
        )
    return tensors


class Frozen:
    """The frozen weights of a spread `model`, which every process has whole. `whole`: the same as they were built, on the CPU of
    the first process."""

    def __init__(self, folder: Path, here: World, model: nn.Module, whole: Mapping[str, Tensor]) -> None:
        self.folder, self.here, self.whole = folder, here, dict(whole)
        #: By the names of a checkpoint.
        self.tensors = {f"model.{name}": value for name, value in frozen_of(model).items()}
        self.digest = self._told(digest(self.whole) if here.first else "")

    def _told(self, mine: str) -> str:
        told = [mine]
        dist.broadcast_object_list(told, 0, group=self.here.control)
        return told[0]

    def settle(self, state: Mapping[str, Any] | None = None, path: Path | None = None) -> None:
        """Take those that the checkpoint at `path`, of this state, was made with, and see to it that the run's folder holds them.

        Raises Damaged if they are others than those that were built, and not beside the checkpoint either.
        """
        if not self.tensors:
            return
        wanted = self.digest if state is None else state.get(FROZEN)
        if wanted is None:  # a checkpoint of old holds them itself, and they have been loaded with it
            assert path is not None
            if self.here.first:
                held = read_tensors(path, self.tensors.__contains__)
                self.whole = {name.removeprefix("model."): value for name, value in held.items()}
            self.digest = self._told(digest(self.whole) if self.here.first else "")
        elif wanted != self.digest:
            assert path is not None
            self._exchange(path.parent.parent, wanted)
        if self.here.first:
            self._keep()
        self.whole = {}

    @torch.no_grad()
    def _exchange(self, run: Path, wanted: str) -> None:
        """Take another run's, or this one's as they were."""
        wrong = ""
        if self.here.first:
            try:
                self.whole = read_frozen(run, wanted)
            except Damaged as error:
                wrong = str(error)
        if wrong := self._told(wrong):
            raise Damaged(f"start.* gives other frozen weights than the checkpoint's, and {wrong}")
        for name, value in self.tensors.items():
            whole = self.whole[name.removeprefix("model.")].to(value) if self.here.first else torch.empty_like(value)
            dist.broadcast(whole, 0)
            value.copy_(whole)
        self.digest = wanted

    def _keep(self) -> None:
        recover_folder(self.folder / FROZEN)
        origin = self.folder / FROZEN / ORIGIN
        try:
            if json.loads(origin.read_text(encoding="utf-8")).get("digest") == self.digest:
                return
        except (OSError, ValueError, AttributeError):  # not there yet, or nothing that can be read: written anew
            pass
        with published_folder(self.folder / FROZEN) as new:
            write_weights(new, self.whole)
            (new / ORIGIN).write_text(json.dumps({"digest": self.digest}) + "\n", encoding="utf-8")

"""The families of sync models, a row each: how a file of one is told, and where its parts are. A model is imported when used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.models.sync.checkpoint import SyncCheckpoint
from javisc.trainer.transforms.sync_chain import SyncTransforms


@dataclass(frozen=True)
class Family:
    """`mark`: the start of names that only state dicts of this family have. `task`: of the recipes that train it.

    `folder`: of the model, whose `official.published(checkpoint)` gives it with its weights and transforms. `rater`: the module
    whose Rater says what `javisc score` asks.
    """

    title: str
    mark: str
    task: str
    folder: str
    rater: str

    def published(self, checkpoint: SyncCheckpoint) -> tuple[nn.Module, SyncTransforms]:
        """The published model of a checkpoint, with its weights, and its transforms. Raises UserError."""
        official = importlib.import_module(f"{self.folder}.official")
        made: tuple[nn.Module, SyncTransforms] = official.published(checkpoint)
        return made

    def rates(self) -> Any:
        """The family's Rater class."""
        return importlib.import_module(self.rater).Rater


FAMILIES = (
    Family(
        "SparseSync",
        "vfeat_extractor.base.",
        "sync",
        "javisc.trainer.models.sync",
        "javisc.trainer.use.rate_crops",
    ),
    Family(
        "Synchformer",
        "vfeat_extractor.patch_embed_3d.",
        "synchformer",
        "javisc.trainer.models.synchformer",
        "javisc.trainer.use.rate_segments",
    ),
)
#: The extractors of Synchformer's first stage, which tell nothing by themselves.
_FIRST_STAGE = "v_encoder.patch_embed_3d."


def family_of(state: Mapping[str, Tensor], source: str) -> Family:
    """The family whose state dict this is. Raises UserError if it is none's."""
    for family in FAMILIES:
        if any(name.startswith(family.mark) for name in state):
            return family
    if any(name.startswith(_FIRST_STAGE) for name in state):
        raise UserError(
            f"{source} is of Synchformer's first stage, which tells no offsets: train on it with "
            "`javisc train synchformer start.extractors=FILE`"
        )
    titles = " nor ".join(family.title for family in FAMILIES)
    raise UserError(f"{source} is of no sync model that is known, neither {titles}: check which file it is")


def family_of_task(task: str) -> Family | None:
    """The family that a recipe's task trains a selector of, or None."""
    return next((family for family in FAMILIES if family.task == task), None)


def published_model(checkpoint: SyncCheckpoint) -> tuple[nn.Module, SyncTransforms]:
    """The model of a published checkpoint of any family, with its weights, and the transforms it wants. Raises UserError."""
    return family_of(checkpoint.model, checkpoint.source).published(checkpoint)

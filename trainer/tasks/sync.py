"""Training the sync selector: SparseSync from compiled shards."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.data.sources.sync import SyncBatch
from javisc.trainer.engine.moving import to_device
from javisc.trainer.engine.settings import setting
from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.forecast.flops import META, StepFlops, on_meta
from javisc.trainer.models.sync.alignment import PARTS
from javisc.trainer.models.sync.config import AVSyncConfig
from javisc.trainer.models.sync.model import AVSync, to_channels_last
from javisc.trainer.models.sync.official import audio_trunk_state, visual_trunk_state
from javisc.trainer.task import CarryOver
from javisc.trainer.tasks.selector import (
    SelectorRecipe,
    SelectorTask,
    contents,
    whole_model_state,
)


@dataclass
class SyncStart:
    """What the weights start from: a whole model, or the two trunks. Files are .pt of the reference or safetensors."""

    model: str | None = None
    visual_trunk: str | None = None
    audio_trunk: str | None = None
    #: Continue with the checkpoint's optimizer too, as the reference's fine-tuning does: its moments, its learning rate (this
    #: recipe's then has no effect) and its finished warm-up. False starts the optimizer fresh.
    carry_over: bool = False


@dataclass
class SyncRecipe(SelectorRecipe):
    """A recipe of task `sync`."""

    model: AVSyncConfig = field(default_factory=AVSyncConfig)
    start: SyncStart = field(default_factory=SyncStart)
    channels_last: bool = setting(True, "Keep pictures with their channels last in memory.")
    alignment_weight: float = setting(
        0.0,
        "Weight of a second loss, for new trunks: which moment of the sound belongs to each of the picture.",
        least=0,
    )
    offset_weight: float = setting(1.0, "Weight of the offset's cross entropy; 0 teaches the trunks alone.", least=0)


class SyncTask(SelectorTask):
    """SparseSync over shards: `loss` is the cross entropy of the offset's class."""

    def __init__(self, recipe: SyncRecipe) -> None:
        self.check_fit(recipe)
        transformer = recipe.model.head
        parts = recipe.model.correlation.n_head if recipe.model.correlation else PARTS
        if recipe.alignment_weight and transformer.width % parts:
            raise UserError(f"alignment_weight above 0 needs a width that {parts} divides, it is {transformer.width}")
        trained = recipe.model.visual_trunk.trained or recipe.model.audio_trunk.trained
        if recipe.channels_last and trained and recipe.parallel.strategy != "ddp":
            raise UserError(
                f"parallel.strategy={recipe.parallel.strategy} shards no weights whose channels are last in memory: set "
                "channels_last=false, or parallel.strategy=ddp"
            )
        begin = recipe.start
        if begin.model and (begin.visual_trunk or begin.audio_trunk):
            trunk = "visual_trunk" if begin.visual_trunk else "audio_trunk"
            raise UserError(
                f"start.model={begin.model} is a whole model, nothing of start.{trunk} would stay: give one of them"
            )
        super().__init__(recipe, transformer.classes)
        self._work = StepFlops(self.model, lambda model, batch: self.loss(model, batch, META))

    @staticmethod
    def check_fit(recipe: SyncRecipe) -> None:
        """Raise UserError unless the model tells what the transforms ask."""
        if recipe.model.head.classes != recipe.transforms.classes:
            raise UserError(
                f"the model has {recipe.model.head.classes} classes, transforms.classes={recipe.transforms.classes}: "
                "give both the same"
            )

    @staticmethod
    def selector(recipe: SyncRecipe) -> AVSync:
        """The model that a recipe describes, before anything is loaded into it."""
        return AVSync(recipe.model)

    def model(self) -> AVSync:
        """The model with fresh weights."""
        model = self.selector(self.recipe)
        return to_channels_last(model) if self.recipe.channels_last else model

    def build(self) -> AVSync:
        """The model with its starting weights."""
        model = self.model()
        start, wanted = self.recipe.start, self.recipe.model
        for name, trunk, own in (
            ("visual_trunk", wanted.visual_trunk, start.visual_trunk),
            ("audio_trunk", wanted.audio_trunk, start.audio_trunk),
        ):
            if not trunk.trained and not own and not start.model:
                raise UserError(
                    f"model.{name}.trained=false would keep random weights: give start.model or start.{name}, or train it"
                )
        if start.visual_trunk:
            load_strictly(model.vfeat_extractor, visual_trunk_state(contents(start.visual_trunk)), start.visual_trunk)
        if start.audio_trunk:
            load_strictly(model.afeat_extractor, audio_trunk_state(contents(start.audio_trunk)), start.audio_trunk)
        if start.model:
            load_strictly(model, whole_model_state(start.model), start.model)
        return model

    def carry_over(self, model: nn.Module) -> CarryOver | None:
        """The reference checkpoint's optimizer, where the recipe asks for it."""
        return self.carried(model)

    def tokens(self, batch: SyncBatch) -> int:
        """Context tokens of both streams."""
        with META, torch.no_grad():
            model = AVSync(self.recipe.model)
            seen, heard = model.vfeat_extractor(batch.pictures(META)), model.afeat_extractor(*on_meta(batch.aud))
        return seen.numel() // seen.shape[2] + heard.numel() // heard.shape[1]

    def flops(self, batch: SyncBatch) -> float:
        return self._work(batch)

    def loss(self, model: nn.Module, batch: SyncBatch, device: torch.device) -> dict[str, Tensor]:
        """The offset's cross entropy and, where it weighs anything, the alignment's loss, both without their weights."""
        vis, aud = batch.pictures(device), to_device(batch.aud, device)
        target, weight = to_device(batch.target, device), self.recipe.alignment_weight
        shift = to_device(batch.shift, device) / self.recipe.transforms.crop_len_sec if weight else None
        aligned, logits = model(vis, aud, shift=shift)
        # Weighed with 0, not left out: every parameter needs a gradient where processes join theirs.
        offset = F.cross_entropy(logits.float(), target, reduction="sum")
        loss = self.recipe.offset_weight * offset
        if aligned is None:
            return {"loss": loss, "offset_loss": offset}
        return {
            "loss": loss + weight * len(target) * aligned,
            "offset_loss": offset,
            "alignment_loss": len(target) * aligned,
        }

"""Training Synchformer's second and third stage: what is above extractors that rest, on offsets or on synchronizability."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.data.sources.sync import SyncBatch
from javisc.trainer.engine.distributed import bare
from javisc.trainer.engine.moving import to_device
from javisc.trainer.engine.settings import setting
from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.forecast.flops import META, StepFlops, on_meta
from javisc.trainer.models.synchformer.cache import SegmentCache
from javisc.trainer.models.synchformer.config import SynchformerConfig
from javisc.trainer.models.synchformer.model import Synchformer
from javisc.trainer.models.synchformer.official import TABLES, extractor_states, fitted, own_names
from javisc.trainer.task import CarryOver
from javisc.trainer.tasks.selector import (
    SelectorRecipe,
    SelectorTask,
    SyncData,
    whole_model_state,
)
from javisc.trainer.transforms.segment_chain import SegmentTransforms


@dataclass
class SynchformerData(SyncData):
    """The batches; see `SyncData`."""

    feature_cache_mb: int = setting(
        0,
        "Megabytes of the resting visual extractor's features that each process keeps, by segment; 0 keeps none.",
        least=0,
    )


@dataclass
class SynchformerStart:
    """What the weights start from: a whole model of either stage, or the first stage's extractors; .pt or a run's folder."""

    model: str | None = None
    extractors: str | None = None
    table: str = setting("official", "Which rows of a longer position table are kept.", choices=TABLES)
    carry_over: bool = setting(False, "Go on with the optimizer of start.model, its rate and its warm-up.")


@dataclass
class SynchformerRecipe(SelectorRecipe):
    """A recipe of task `synchformer`."""

    data: SynchformerData = field(default_factory=SynchformerData)
    transforms: SegmentTransforms = field(default_factory=SegmentTransforms)
    model: SynchformerConfig = field(default_factory=SynchformerConfig)
    start: SynchformerStart = field(default_factory=SynchformerStart)


class SynchformerTask(SelectorTask):
    """Offsets or synchronizability from segments: `loss` is the cross entropy of the class."""

    def __init__(self, recipe: SynchformerRecipe) -> None:
        self.check_fit(recipe)
        transforms, data = recipe.transforms, recipe.data
        if data.feature_cache_mb and (
            not transforms.grid_starts or augments(transforms) or recipe.model.train_extractors
        ):
            raise UserError(
                "data.feature_cache_mb keeps what segments look like: it needs transforms.grid_starts=true, "
                "model.train_extractors=false, and pictures as they are: p_horizontal_flip, p_color_jitter, p_gray_scale and "
                "sometimes_upscale_p 0"
            )
        super().__init__(recipe, transforms.classes if transforms.target == "offset" else 2)
        self._work = StepFlops(self.model, lambda model, batch: model(batch.pictures(META), *on_meta(batch.aud))[1])
        self.cache = SegmentCache(data.feature_cache_mb * 1_000_000)

    @staticmethod
    def check_fit(recipe: SynchformerRecipe) -> None:
        """Raise UserError unless the model takes what the transforms give and tells what they ask."""
        check_fit(recipe.model, recipe.transforms)
        join, transforms = recipe.model.transformer, recipe.transforms
        wanted = "offset" if transforms.target == "offset" else "sync"
        if join.head != wanted:
            raise UserError(
                f"model.transformer.head={join.head} tells no {transforms.target}: set it to {wanted}, or transforms.target"
            )
        if wanted == "offset" and join.classes != transforms.classes:
            raise UserError(
                f"the model has {join.classes} classes, transforms.classes={transforms.classes}: give both the same"
            )

    @staticmethod
    def selector(recipe: SynchformerRecipe) -> Synchformer:
        """The model that a recipe describes, before anything is loaded into it."""
        return Synchformer(recipe.model)

    def model(self) -> Synchformer:
        """The model with fresh weights."""
        return self.selector(self.recipe)

    def build(self) -> Synchformer:
        """The model with its starting weights."""
        start: SynchformerStart = self.recipe.start
        if not (start.model or start.extractors or self.recipe.model.train_extractors):
            raise UserError(
                "model.train_extractors=false would keep random extractors: give start.extractors=FILE (of the first stage) or "
                "start.model=FILE, or train them"
            )
        model = self.model()
        if start.model:
            state = fitted(own_names(whole_model_state(start.model)), model, start.table, start.model)
            load_strictly(model, state, start.model)
        if start.extractors:
            states = extractor_states(whole_model_state(start.extractors), start.extractors)
            for extractor, state in zip((model.vfeat_extractor, model.afeat_extractor), states, strict=True):
                load_strictly(extractor, state, start.extractors)
        return model

    def carry_over(self, model: nn.Module) -> CarryOver | None:
        """The reference checkpoint's optimizer, where the recipe asks for it."""
        # All of a published state dict are parameters, in the order in which its optimizer numbers them.
        return self.carried(model, lambda checkpoint: list(own_names(checkpoint.model)))

    def tokens(self, batch: SyncBatch) -> int:
        """Tokens of the transformer that joins."""
        return len(batch.target) * int(self.recipe.model.transformer.rows)

    def flops(self, batch: SyncBatch) -> float:
        """Whatever the cache of features saves."""
        return self._work(batch)

    def loss(self, model: nn.Module, batch: SyncBatch, device: torch.device) -> Tensor:
        vis, aud = batch.pictures(device), to_device(batch.aud, device)
        seen = None
        if self.cache.limit:
            whole = bare(model)
            assert isinstance(whole, Synchformer)
            transforms = self.recipe.transforms
            step = int(transforms.step * transforms.segment_frames)
            seen = self.cache.features(whole.vfeat_extractor, vis, batch.keys, batch.starts, step)
        _, logits = model(vis, aud, seen=seen)
        return F.cross_entropy(logits.float(), to_device(batch.target, device), reduction="sum")


def check_fit(model: Any, transforms: SegmentTransforms) -> None:
    """Raise UserError unless the chain gives what the model's extractors and its position table take."""
    visual, audio = model.visual, model.audio
    for option, wanted, value in (
        ("transforms.input_size", visual.image, transforms.input_size),
        ("transforms.segment_frames", visual.frames, transforms.segment_frames),
        ("transforms.mels", audio.mels, transforms.mels),
        ("transforms.columns", audio.columns, transforms.columns),
    ):
        if wanted != value:
            raise UserError(f"{option}={value}, the model's extractors take {wanted}: give both the same")
    if isinstance(model, SynchformerConfig):
        rows = 2 + transforms.segments * model.tokens
        if model.transformer.rows != rows:
            raise UserError(
                f"model.transformer.rows={model.transformer.rows}: {transforms.segments} segments of {model.tokens} tokens need "
                f"{rows}; change it or transforms.segments"
            )


def augments(transforms: SegmentTransforms) -> bool:
    """True if training pictures are changed at random."""
    chances = (
        transforms.p_horizontal_flip,
        transforms.p_color_jitter,
        transforms.p_gray_scale,
        transforms.sometimes_upscale_p,
    )
    return any(chances)

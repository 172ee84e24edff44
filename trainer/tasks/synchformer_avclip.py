"""Training Synchformer's first stage: both extractors learn which sound segment belongs to which picture segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.data.sources.sync import SyncBatch
from javisc.trainer.engine.moving import to_device
from javisc.trainer.engine.settings import setting
from javisc.trainer.engine.weights import load_strictly
from javisc.trainer.forecast.flops import META, StepFlops
from javisc.trainer.models.synchformer.config import SegmentContrastConfig
from javisc.trainer.models.synchformer.model import SegmentContrast
from javisc.trainer.models.synchformer.official import (
    AST_POSITIONS,
    extractor_states,
    pretrained_audio,
    pretrained_visual,
)
from javisc.trainer.objectives.segment_contrast import segment_contrast, shifted_windows
from javisc.trainer.task import CarryOver
from javisc.trainer.tasks.selector import SelectorRecipe, SelectorTask, contents, held_out, pooled
from javisc.trainer.tasks.synchformer import check_fit
from javisc.trainer.transforms.segment_chain import SegmentTransforms

CANDIDATES = ("batch", "clip")


@dataclass
class SegmentContrastStart:
    """What the extractors start from: a file of this stage, or networks trained on something else."""

    extractors: str | None = None
    visual: str | None = setting(None, "Motionformer's own .pyth (its licence is non-commercial, CC BY-NC 4.0).")
    audio: str | None = setting(None, "The folder of an AST of transformers (MIT/ast-finetuned-audioset-10-10-0.4593).")
    ast_positions: str = setting("official", "Which of a longer AST's positions are taken.", choices=AST_POSITIONS)


@dataclass
class SegmentContrastRecipe(SelectorRecipe):
    """A recipe of task `synchformer-avclip`."""

    transforms: SegmentTransforms = field(
        default_factory=lambda: SegmentTransforms(do_offset=False, step=1.0, target="offset")
    )
    model: SegmentContrastConfig = field(default_factory=SegmentContrastConfig)
    start: SegmentContrastStart = field(default_factory=SegmentContrastStart)
    candidates: str = setting("batch", "Among whose segments the own one is found.", choices=CANDIDATES)
    window: int = setting(8, "Segments of the windows that are looked for in validation.", least=1)


class SegmentContrastTask(SelectorTask):
    """Contrast among all segments of a process's batch; validation finds windows of segments in the other stream."""

    def __init__(self, recipe: SegmentContrastRecipe) -> None:
        self.check_fit(recipe)
        super().__init__(recipe, recipe.transforms.classes)
        self._work = StepFlops(self.model, lambda model, batch: self.loss(model, batch, META))

    def metrics(self) -> tuple[str, ...]:
        held = self.recipe.data.valid_split is not None
        return ("precision", "precision_a", "precision_v", "loss", "chance", "clips") if held else ()

    @staticmethod
    def check_fit(recipe: SegmentContrastRecipe) -> None:
        """Raise UserError unless the extractors take what the transforms give, without offsets."""
        transforms = recipe.transforms
        check_fit(recipe.model, transforms)
        if transforms.do_offset or recipe.data.offsets_per_clip != 1:
            raise UserError(
                "the first stage knows no offsets: set transforms.do_offset=false and data.offsets_per_clip=1"
            )
        if recipe.window >= transforms.segments:
            raise UserError(
                f"window={recipe.window}: of {transforms.segments} segments it must leave some out; make it smaller"
            )

    @staticmethod
    def selector(recipe: SegmentContrastRecipe) -> SegmentContrast:
        """The extractors that a recipe describes, before anything is loaded into them."""
        return SegmentContrast(recipe.model)

    def model(self) -> SegmentContrast:
        """The extractors with fresh weights."""
        return self.selector(self.recipe)

    def build(self) -> SegmentContrast:
        """The extractors with their starting weights."""
        model, start = self.model(), self.recipe.start
        if start.visual:
            state = pretrained_visual(_named(start.visual), model.v_encoder, start.visual)
            load_strictly(model.v_encoder, state, start.visual)
        if start.audio:
            state = pretrained_audio(_named(start.audio), model.a_encoder, start.ast_positions, start.audio)
            load_strictly(model.a_encoder, state, start.audio)
        if start.extractors:
            states = extractor_states(_named(start.extractors), start.extractors)
            for extractor, state in zip((model.v_encoder, model.a_encoder), states, strict=True):
                load_strictly(extractor, state, start.extractors)
        return model

    def carry_over(self, model: nn.Module) -> CarryOver | None:
        """Nothing: this stage always starts its optimizer afresh."""
        return None

    def size(self, batch: SyncBatch) -> int:
        return len(batch.vis)

    def tokens(self, batch: SyncBatch) -> int:
        """Tokens that both extractors read."""
        model = self.recipe.model
        seen = 1 + model.visual.steps * (model.visual.image // model.visual.patch) ** 2
        bands, steps = model.audio.grid
        return int(batch.vis.shape[0] * batch.vis.shape[1] * (seen + 2 + bands * steps))

    def flops(self, batch: SyncBatch) -> float:
        return self._work(batch)

    def loss(self, model: nn.Module, batch: SyncBatch, device: torch.device) -> Tensor:
        seen, heard, temperature = model(batch.pictures(device), to_device(batch.aud, device))
        return self._contrast(seen.float(), heard.float(), temperature, len(batch.vis)).sum()

    def _contrast(self, seen: Tensor, heard: Tensor, temperature: Tensor, clips: int) -> Tensor:
        """Every clip's loss (B,). Candidates of other processes are not gathered, as in the reference."""
        if self.recipe.candidates == "batch":
            return segment_contrast(seen, heard, temperature).expand(clips)
        pairs = zip(seen.chunk(clips), heard.chunk(clips), strict=True)
        return torch.stack([segment_contrast(v, a, temperature) for v, a in pairs])

    @torch.no_grad()
    def evaluate(
        self, model: nn.Module, split: str | None, rank: int, world: int, device: torch.device
    ) -> dict[str, float]:
        """How often windows of segments find their own in the other stream, over a split; and the contrast's loss."""
        recipe = self.recipe
        found: list[Tensor] = []
        batches = held_out(model, recipe.data, self.held_out, split, rank, world)
        for _, batch, counts in batches:
            seen, heard, temperature = model(batch.pictures(device), batch.aud.to(device))
            if not counts:
                continue
            seen, heard = seen.float(), heard.float()
            loss = self._contrast(seen, heard, temperature, len(batch.vis))
            clips = (len(batch.vis), -1, seen.shape[-1])
            told = shifted_windows(heard.view(clips), seen.view(clips), recipe.window)
            found.append(torch.stack((told["precision_a"], told["precision_v"], loss), 1).double().cpu())
        (every,) = pooled((torch.cat(found),) if found else None, world)
        a, v, loss = every.mean(0).tolist()
        chance = 1 / (recipe.transforms.segments - recipe.window + 1)
        measured: Mapping[str, float] = {"precision": (a + v) / 2, "precision_a": a, "precision_v": v, "loss": loss}
        return {**measured, "chance": chance, "clips": float(len(every))}


def _named(path: str) -> dict[str, Tensor]:
    """A file's tensors by name: of a training container, of Motionformer's (`model_state`), or by themselves."""
    loaded = contents(path)
    for key in ("model_state", "state_dict", "model"):
        inner = loaded.get(key)
        if isinstance(inner, Mapping):
            loaded = dict(inner)
            break
    return {name.removeprefix("module."): value for name, value in loaded.items() if isinstance(value, Tensor)}

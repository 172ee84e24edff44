"""The recipe of stages 1 and 3: every setting of the tasks `audio` and `jav` beside those that all recipes have."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from javisc.manifests.errors import UserError
from javisc.trainer.data.sources.clips import ClipData
from javisc.trainer.engine.config import Recipe
from javisc.trainer.engine.settings import setting
from javisc.trainer.models.dit import PRESETS, VASTDiT3Config
from javisc.trainer.models.encoders import EncodersConfig
from javisc.trainer.objectives.flow import FlowConfig


@dataclass
class ModelChoice:
    """A named size and stage (`models.dit.PRESETS`), and options of `VASTDiT3Config` that replace its own."""

    preset: str = setting(MISSING, "A named size and stage.")
    options: dict[str, Any] = setting({}, "Options of the model's config.json that replace the preset's.")

    def config(self) -> VASTDiT3Config:
        """The model's config. Raises UserError for an unknown preset or option."""
        if self.preset not in PRESETS:
            raise UserError(f"model.preset={self.preset!r}: it may be {', '.join(PRESETS)}")
        known = dataclasses.asdict(PRESETS[self.preset])
        return VASTDiT3Config.from_options(known | self.options, where="model.options")


@dataclass
class DiTStart:
    """What the weights start from: folders or files of weights, or folders of runs.

    `model`: a whole model of this stage, nothing else then. `audio`: stage 1's. `opensora`: OpenSora's STDiT-v3. With `fresh`
    whatever none of them holds is drawn anew, without it only what is new in the stage.
    """

    model: str = ""
    audio: str = ""
    opensora: str = ""
    fresh: bool = False


@dataclass
class PreviewConfig:
    """What `run.preview_every` makes: a clip for every prompt, of the first bucket, from the same noise each time."""

    prompts: list[str] = setting(
        ["a dog barks twice", "waves break on a beach", "a ball bounces on a wooden floor", "rain falls on a tin roof"],
        "Captions that become clips.",
    )
    steps: int = setting(30, "Sampling steps.", least=1, most=1000)
    cfg_scale: float = setting(7.0, "Guidance.", least=0)
    frames: int = setting(0, "At most so many frames; 0 takes those of the bucket.", least=0)
    seed: int = setting(42, "Of the noise.", least=0)


@dataclass
class DiTRecipe(Recipe):
    """A recipe of the tasks `audio` and `jav`.

    `mask_ratios`: the share of each kind of given frames (`objectives.frame_masks`), the rest being generated whole. Held-out
    clips are measured at `valid_times`, in at most `evaluate_at_most` batches of each process; 0 takes all.
    """

    data: ClipData = field(default_factory=ClipData)
    encoders: EncodersConfig = field(default_factory=EncodersConfig)
    model: ModelChoice = field(default_factory=ModelChoice)
    start: DiTStart = field(default_factory=DiTStart)
    flow: FlowConfig = field(default_factory=FlowConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    mask_ratios: dict[str, float] = setting({}, "Shares of the kinds of given frames; the rest is generated whole.")
    valid_times: list[float] = setting(
        [100.0, 300.0, 500.0, 700.0, 900.0],
        "Times of the noise that held-out clips are measured at.",
        least=0,
        most=1000,
    )
    evaluate_at_most: int = setting(0, "Batches of a validation, per process; 0 takes all.", least=0)

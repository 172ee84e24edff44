"""Previews of the joint DiT: fixed prompts become clips with the weights at hand."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from javisc.trainer.data.index.lengths import audio_lengths
from javisc.trainer.data.sources.encoded import stores_latents
from javisc.trainer.engine.hooks import Run
from javisc.trainer.models.dit import VASTDiT3
from javisc.trainer.models.encoders import Encoders
from javisc.trainer.models.frozen import PriorTextEncoder, TextEncoder
from javisc.trainer.objectives.sampling import SamplerConfig
from javisc.trainer.tasks.dit import DiTTask
from javisc.trainer.use.generate.output import write_clip
from javisc.trainer.use.generate.pipeline import SAMPLE_RATE, ClipSize, Models, SampleOptions, generate

#: Frames of a clip side by side in an image for the logs.
STRIP = 6


class Remembered:
    """A text encoder that is asked once for every prompt: where training needs none, it does not stay in memory for previews."""

    def __init__(self, load: Callable[[], TextEncoder | PriorTextEncoder]) -> None:
        self.load = load
        self.known: dict[str, Any] = {}

    def encode(self, captions: list[str]) -> Any:
        """What the encoder makes of one caption."""
        (caption,) = captions
        if caption not in self.known:
            self.known[caption] = self.load().encode(captions)
        return self.known[caption]


class Clips:
    """A clip for every prompt of the recipe's `preview`, in the first size of its buckets, always from the same noise."""

    alone = True

    def __init__(self, task: DiTTask) -> None:
        self.task, self.config = task, task.recipe.preview
        self._models: Models | None = None

    def make(self, run: Run, model: nn.Module, folder: Path) -> str:
        """Clips and their captions."""
        assert isinstance(model, VASTDiT3)
        options = self._options()
        bucket = self.task.recipe.data.table().buckets[0]
        frames = min(bucket.frames, self.config.frames or bucket.frames)
        patch = model.config.audio_patch_size[0]
        latent = max(audio_lengths(frames, options.fps).latent // patch, 1) * patch
        size = ClipSize(frames, bucket.height, bucket.width, latent)
        figures = []
        made = generate(self._around(run, model), self.config.prompts, options, size=size)
        for number, clip in enumerate(made):
            path = write_clip(clip, folder / f"{number:05d}.mp4")
            run.logs.clip(run.step, f"preview/{number}", path, strip(clip.frames), clip.wave, SAMPLE_RATE)
            tag = "audio" if clip.frames is None else "video"
            figures.append(
                f'<figure><{tag} controls preload="metadata" src="{{here}}/{path.name}"></{tag}>'
                f"<figcaption>{html.escape(clip.prompt).replace('{', '&#123;')}</figcaption></figure>"
            )
        return f'<div class="clips">{"".join(figures)}</div>'

    def _options(self) -> SampleOptions:
        steps = SamplerConfig(num_sampling_steps=self.config.steps, cfg_scale=self.config.cfg_scale)
        return SampleOptions(seed=self.config.seed, score=None, sampler=steps)

    def _around(self, run: Run, dit: VASTDiT3) -> Models:
        """The networks that generation needs, kept between previews: those of training, and the vocoder."""
        if self._models is not None:
            return replace(self._models, dit=dit)
        recipe, c = self.task.recipe, dit.config
        shared = self.task.encoders(run.world.device)

        def apart() -> Encoders:
            return Encoders(recipe.encoders, run.world.device, c.model_max_length, decode=True)

        # Training on stored latents keeps no text encoders.
        texts = apart if stores_latents(recipe.data) else lambda: shared
        self._models = Models(
            dit,
            Remembered(lambda: texts().text),
            apart().audio,
            shared.prior if c.has_prior else None,
            Remembered(lambda: texts().prior_text) if c.has_prior else None,
            None if c.audio_only else shared.video,
        )
        return self._models


def strip(frames: Tensor | None) -> NDArray[np.uint8] | None:
    """Some frames of [T, H, W, 3] beside each other, [H, W', 3]."""
    if frames is None:
        return None
    chosen = np.linspace(0, len(frames) - 1, min(STRIP, len(frames))).round().astype(int)
    return np.concatenate([frames[index].numpy() for index in chosen], axis=1)

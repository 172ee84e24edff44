"""Stage 1 of JavisDiT: the audio branch learns to denoise sound; it starts as a copy of OpenSora's video branch."""

from __future__ import annotations

from javisc.trainer.models.dit import VASTDiT3
from javisc.trainer.models.dit.stages import audio_from_video, start_from
from javisc.trainer.tasks.dit import DiTTask, source_weights
from javisc.trainer.tasks.dit_recipe import DiTRecipe, DiTStart

__all__ = ["AudioTask", "DiTRecipe"]


class AudioTask(DiTTask):
    """Sound alone: no video, no prior."""

    with_video = False

    def start(self, model: VASTDiT3, start: DiTStart) -> None:
        """From OpenSora's weights."""
        if start.opensora or not start.fresh:
            start_from(model, audio_from_video(source_weights(start.opensora, "opensora")), fresh=start.fresh)

"""Stage 3 of JavisDiT: what joins sound and picture learns; both branches are frozen, and so is the prior that tells them what
happens where and when."""

from __future__ import annotations

from javisc.trainer.models.dit import VASTDiT3
from javisc.trainer.models.dit.stages import start_from
from javisc.trainer.tasks.dit import DiTTask, source_weights
from javisc.trainer.tasks.dit_recipe import DiTRecipe, DiTStart

__all__ = ["DiTRecipe", "JavTask"]


class JavTask(DiTTask):
    """Sounding video; some frames may be given (`mask_ratios`)."""

    with_video = True

    def start(self, model: VASTDiT3, start: DiTStart) -> None:
        """From stage 1's weights, then OpenSora's, which override the names they share."""
        places = {"audio": start.audio, "opensora": start.opensora}
        given = [source_weights(path, what) for what, path in places.items() if path or not start.fresh]
        start_from(model, *given, fresh=start.fresh)

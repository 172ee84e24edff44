"""A run's weights as a published file: what `javisc export-checkpoint` does."""

from __future__ import annotations

from pathlib import Path

from javisc.manifests.errors import UserError
from javisc.trainer.models.synchformer.export import write_published
from javisc.trainer.models.synchformer.model import SegmentContrast, Synchformer
from javisc.trainer.transforms.segment_chain import SegmentTransforms
from javisc.trainer.use.selector import load_run


def export_published(run: str, out: Path, layout: str) -> None:
    """Write the weights of the run's folder `best` or `last` to `out`, see `write_published`. Raises UserError."""
    model, transforms = load_run(run)
    if not isinstance(model, Synchformer | SegmentContrast) or not isinstance(transforms, SegmentTransforms):
        raise UserError(f"{run} is no run of Synchformer: only its weights have a published layout here")
    write_published(model, transforms, out, layout)

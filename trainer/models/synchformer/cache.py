"""Features of picture segments that rest: computed once, kept while there is room."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from javisc.trainer.models.synchformer.visual import VisualExtractor


class SegmentCache:
    """Features by (clip, first frame), until `limit` bytes are full; what came first stays.

    Every segment is seen alone: the same bits come out whatever it shares a batch with, so that a resumed run is the run.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.kept: dict[tuple[str, int], Tensor] = {}

    @torch.no_grad()
    def features(
        self, extractor: VisualExtractor, vis: Tensor, keys: Sequence[str], starts: Sequence[int], step: int
    ) -> Tensor:
        """vis (B,S,…) of the clips `keys`, segments `step` frames apart from `starts` on → (B,S,T,C), on vis's device."""
        rows = []
        for clip, key, start in zip(vis, keys, starts, strict=True):
            for number, segment in enumerate(clip):
                place = (key, start + number * step)
                found = self.kept.get(place)
                if found is None:
                    found = extractor(segment[None, None])[0, 0]
                    size = found.numel() * found.element_size()
                    if self.bytes + size <= self.limit:
                        self.kept[place] = found
                        self.bytes += size
                rows.append(found)
        return torch.stack(rows).view(*vis.shape[:2], *extractor.shape)

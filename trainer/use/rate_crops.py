"""SparseSync in `javisc score`: evenly spaced crops, each seen and heard as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from javisc.manifests.errors import UserError
from javisc.trainer.data.bytes.reader import Reader
from javisc.trainer.forecast.flops import META, counted, hollow
from javisc.trainer.models.sync.model import AVSync, to_channels_last
from javisc.trainer.transforms.sync_chain import SyncTransforms
from javisc.trainer.transforms.sync_video import normalise
from javisc.trainer.use.rating import Cut, rating
from javisc.trainer.use.score_clip import RATE, CropOptions, crops_of, spaced


class Rater:
    """A piece is a crop. Pictures travel to the device as bytes."""

    def __init__(self, model: AVSync, transforms: SyncTransforms, options: CropOptions) -> None:
        if options.preset:
            raise UserError(
                f"--preset {options.preset} is of Synchformer's windows: give such a checkpoint, or leave it out"
            )
        self.model, self.transforms, self.options = model, transforms, options

    def to(self, device: torch.device) -> Rater:
        """Move the model."""
        self.model.to(device)
        if device.type == "cuda":
            to_channels_last(self.model)
        self.device = device
        return self

    def cut(self, row: Mapping[str, Any], reader: Reader) -> Cut:
        crops = crops_of(row, reader, self.transforms, self.options)
        return Cut(crops, [[number] for number in range(len(crops))])

    def see(self, pictures: Sequence[Tensor], sounds: Sequence[Tensor]) -> Iterable[Tensor]:
        vis = normalise(together(pictures, self.device))
        logits = self.model(vis, torch.stack(list(sounds)).to(self.device))[1]
        return logits.double().softmax(1).cpu()

    def conclude(self, said: Sequence[Tensor], windows: Sequence[Sequence[int]]) -> dict[str, Any]:
        return rating([said[number] for (number,) in windows], self.transforms) | {"crops": len(said)}

    def features(self) -> tuple[str, int]:
        return "", 0

    def cost(self, ticks: int, *, kept: CropOptions | None = None) -> tuple[int, int, float]:
        wanted = int(self.transforms.crop_len_sec * self.options.fps)
        crops = len(spaced(ticks, wanted, self.options.crops))
        return crops, crops, crops * self._each

    @cached_property
    def _each(self) -> float:
        side, frames = self.transforms.input_size, int(self.transforms.crop_len_sec * self.options.fps)
        columns = int(self.transforms.crop_len_sec * RATE) // 128 + 1
        vis, aud = (torch.empty(shape, device=META) for shape in ((1, frames, 3, side, side), (1, 1, 257, columns)))
        model = hollow(self.model)
        return counted(lambda: model(vis, aud)[1], backward=False).forward


def together(pictures: Sequence[Tensor], device: torch.device) -> Tensor:
    """A batch of uint8 pictures on the device, through pinned memory where that is another's."""
    batch = torch.empty((len(pictures), *pictures[0].shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
    torch.stack(list(pictures), out=batch)
    return batch.to(device, non_blocking=True)

"""What a loader gives: a batch as tensors, and the decisions behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from javisc.trainer.data.bytes.graph import Tensors
from javisc.trainer.data.index.sampler import Batch, Clip


@dataclass(frozen=True)
class Loaded:
    """A batch as tensors, and the decisions behind it.

    `batch.clips` are the clips that are really in it, after replacements; `labels` their keys and captions; `replaced` lists
    (row, message) of samples that could not be read. With a loader's `transform` there are `items` instead of tensors. `sounds`
    are the clips' whole sounds, (samples, channels) each, where `LoaderOptions.whole_sound` asks for them. `made` is what the
    loader's `finish` returned.
    """

    batch: Batch
    tensors: Tensors | None
    labels: list[dict[str, object]]
    replaced: tuple[tuple[int, str], ...] = ()
    items: tuple[Any, ...] = ()
    sounds: tuple[torch.Tensor, ...] = ()
    made: Any = None

    @property
    def video(self) -> torch.Tensor:
        """(B, 3, F, H, W), or (B, F, 3, H, W) with layout FCHW."""
        return self._tensors.video

    @property
    def audio(self) -> torch.Tensor | None:
        """(B, L, channels): exactly the samples of the frames' stretch of time."""
        return self._tensors.audio

    @property
    def spectrum(self) -> torch.Tensor | None:
        """What `GraphOptions.spectrum` asked for."""
        return self._tensors.spectrum

    @property
    def _tensors(self) -> Tensors:
        if self.tensors is None:
            raise ValueError("this loader has a transform: its batches have items, no tensors")
        return self.tensors


@dataclass(frozen=True)
class Decoded:
    """A clip of a batch, the one that was asked for or one that stands in for it."""

    clip: Clip
    made: Any
    problems: list[tuple[int, str]]
    sound: NDArray[np.float32] | None = None

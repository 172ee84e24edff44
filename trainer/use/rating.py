"""From what a sync model says of a clip's windows to the columns of the manifest, for every family."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from javisc.manifests.schema import SCORES_SCHEMA
from javisc.trainer.data.bytes.reader import Reader
from javisc.trainer.transforms.sync_chain import SyncTransforms
from javisc.trainer.use.kept_features import Segments
from javisc.trainer.use.score_clip import CropOptions

#: A piece of a clip that passes a network by itself: picture and sound.
Piece = tuple[Tensor, Tensor]
#: What is told of every clip, and by which head.
_OF_OFFSETS = ("sync_offset", "sync_confidence", "sync_margin", "desync")


@dataclass(frozen=True)
class Cut:
    """A clip's pieces, decoded, and the windows that are made of them: numbers of pieces.

    said: what the network said of each, where that was kept; there are no pieces then. segments: which they are, where they can
    be kept.
    """

    pieces: Sequence[Piece]
    windows: Sequence[Sequence[int]]
    said: Sequence[Any] = ()
    segments: Segments | None = None


class Rater(Protocol):
    """How a family's clips become scores: pieces, what the network says of each, and what follows for the clip."""

    model: torch.nn.Module
    transforms: SyncTransforms
    options: CropOptions

    def to(self, device: torch.device) -> Rater:
        """Move the model."""

    def cut(self, row: Mapping[str, Any], reader: Reader) -> Cut:
        """A clip's pieces. Raises NoScore."""

    def see(self, pictures: Sequence[Tensor], sounds: Sequence[Tensor]) -> Iterable[Any]:
        """What the network says of each piece of a batch."""

    def conclude(self, said: Sequence[Any], windows: Sequence[Sequence[int]]) -> dict[str, Any]:
        """The columns of a clip from what was said of its pieces, in their order, and from its windows."""

    def cost(self, ticks: int, *, kept: CropOptions | None = None) -> tuple[int, int, float]:
        """Pieces, windows and FLOP of a clip of so many ticks. Raises NoScore if it is too short.

        kept: what is said of these crops' pieces is there already; no piece is looked at where that is enough.
        """

    def features(self) -> tuple[str, int]:
        """A digest of what makes the features that are said of pieces, and bytes of a piece's; "" where they are no features."""


def gives(transforms: SyncTransforms) -> tuple[str, ...]:
    """The columns that a model with these transforms fills; the others stay as they are."""
    told = ("synchronizable",) if transforms.asks == "synchronizability" else _OF_OFFSETS
    return (*told, "audio_advance_sec")


def rating(windows: Sequence[Tensor], transforms: SyncTransforms, *, all_of_them: bool = False) -> dict[str, Any]:
    """A clip's scores from the probabilities (classes,) of each of its windows, in the order of time.

    sync_offset is the likeliest offset of the windows' mean (equal ones rank by class). desync is the size of a window's
    likeliest offset, the mean of the first and the last window (which may be one), or of `all_of_them`. A model of
    synchronizability gives the mean probability of yes.
    """
    mean = sum(windows[1:], windows[0]) / len(windows)
    if not mean.isfinite().all():
        return failure("not finite")
    made: dict[str, Any] = {**dict.fromkeys(SCORES_SCHEMA), "reason": None, "message": None}
    made["audio_advance_sec"] = round(transforms.audio_advance_sec, 6)
    if transforms.asks == "synchronizability":
        return made | {"synchronizable": float(mean[1])}
    # The grid is float32; its decimals are what was meant, so that `sync_offset <= 0.2` holds for 0.2.
    grid = [round(float(value), 4) + 0.0 for value in transforms.crop_rule(train=False).grid.values]
    ranked = mean.argsort(descending=True, stable=True)
    first, second = mean[ranked[:2]].tolist()
    judged = windows if all_of_them else (windows[0], windows[-1])
    apart = [abs(grid[int(one.argsort(descending=True, stable=True)[0])]) for one in judged]
    return made | {
        "sync_offset": grid[int(ranked[0])],
        "sync_confidence": first,
        "sync_margin": first - second,
        "desync": sum(apart) / len(apart),
    }


def failure(reason: str, message: str = "") -> dict[str, Any]:
    """What stands in the place of a score."""
    return {**dict.fromkeys(SCORES_SCHEMA), "crops": 0, "reason": reason, "message": message[:500]}

"""A second loss that teaches trunks from nothing: which moment of the sound belongs to each moment of the picture.

Shapes: B pairs, S moments, C width, P parts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Similarities lie in [-1, 1]; their softmax needs more room.
SHARPNESS = 10.0
#: Features are compared in so many parts of unit length, that none of them decides alone.
PARTS = 4


def similarities(vis: Tensor, aud: Tensor, moments: int, parts: int) -> Tensor:
    """(B,T,C), (B·K,T',C) → (B·K,P,S,S): how alike every moment of the picture and every moment of the sound are, in [-1, 1].

    Both are resampled in time to S moments. K sounds per picture, which lie together.
    """
    seen, heard = _units(vis, moments, parts), _units(aud, moments, parts)
    return seen.repeat_interleave(len(heard) // len(seen), 0) @ heard.transpose(2, 3)


def _units(x: Tensor, moments: int, parts: int) -> Tensor:
    """(B,T,C) → (B,P,S,C/P) of length 1, resampled in time."""
    even = F.interpolate(x.transpose(1, 2), size=moments, mode="linear")
    return F.normalize(even.view(len(x), parts, -1, moments), dim=2).transpose(2, 3)


def alignment_loss(alike: Tensor, shift: Tensor) -> Tensor:
    """How badly similarities (B,P,S,S) tell which moment of the sound belongs to one of the picture.

    It is the mean cross entropy over the moments of the picture that the sound holds. One label per pair tells trunks that
    start from nothing little; here every moment has its own. `shift` (B,): by how many crop lengths the sound was taken
    later. After contrastive predictive coding (van den Oord et al., 2018); Synchformer pre-trains its trunks so, on segments.
    """
    wanted = matching(shift, alike.shape[-1])
    scores = SHARPNESS * alike.float().mean(1).transpose(1, 2)
    told = F.cross_entropy(scores, wanted, ignore_index=-1, reduction="sum")
    return told / (wanted >= 0).sum().clamp(min=1)


def matching(shift: Tensor, moments: int) -> Tensor:
    """(B,) shifts in crop lengths → (B, moments): the moment of the sound that holds the middle of each moment of the picture.

    -1 where none does.
    """
    middles = (torch.arange(moments, device=shift.device) + 0.5) / moments
    found = ((middles - shift[:, None]) * moments).floor().long()
    return found.masked_fill((found < 0) | (found >= moments), -1)

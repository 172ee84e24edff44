"""Offsets by correlation: how alike pictures and sound are at every lag, and a second loss that teaches trunks from nothing.

Shapes: B pairs, S moments, C width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.trainer.models.sync.config import CorrelationConfig
from javisc.trainer.models.sync.transformer import channels_last

#: Similarities lie in [-1, 1]; their softmax needs more room.
SHARPNESS = 10.0


class Correlation(nn.Module):
    """vis (B,T,C,H,W), aud (B·K,C,F,T') → logits over offsets (B·K, classes); K sounds per picture, which lie together.

    A moment of the picture is its features' maxima over space, a moment of the sound their mean over frequency. Both streams
    become S moments of n_head unit vectors; the similarities of moment i of the picture and j of the sound are summed where
    j - i is the lag, over the root of how many there are, so that noise is as strong at every lag. A linear layer reads them.
    """

    def __init__(self, config: CorrelationConfig) -> None:
        super().__init__()
        width, self.moments, self.n_head = config.width, config.moments, config.n_head
        self.pre_lnorm_vis = nn.LayerNorm(width)
        self.pre_lnorm_aud = nn.LayerNorm(width)
        self.vis_proj = nn.Linear(width, width)
        self.aud_proj = nn.Linear(width, width)
        self.off_head = nn.Linear(config.n_head * (2 * config.moments - 1), config.classes)
        place = torch.arange(config.moments)
        lag = place[None] - place[:, None] + config.moments - 1
        at_lag = F.one_hot(lag.flatten(), 2 * config.moments - 1).float()
        self.lags: Tensor
        self.register_buffer("lags", at_lag / at_lag.sum(0).sqrt(), persistent=False)

    def forward(self, vis: Tensor, aud: Tensor) -> Tensor:
        return self.logits(self.alike(vis, aud))

    def alike(self, vis: Tensor, aud: Tensor) -> Tensor:
        """(B·K, H, S, S): the similarities, in [-1, 1], of every moment of the picture and every moment of the sound."""
        vis, aud = channels_last(vis, aud)
        seen = self._units(self.vis_proj(self.pre_lnorm_vis(vis).amax((2, 3))))
        heard = self._units(self.aud_proj(self.pre_lnorm_aud(aud).mean(1)))
        return seen.repeat_interleave(len(heard) // len(seen), 0) @ heard.transpose(2, 3)

    def _units(self, x: Tensor) -> Tensor:
        """(B,T,C) → (B,H,S,C/H) of length 1, resampled in time."""
        even = F.interpolate(x.transpose(1, 2), size=self.moments, mode="linear")
        return F.normalize(even.view(len(x), self.n_head, -1, self.moments), dim=2).transpose(2, 3)

    def logits(self, alike: Tensor) -> Tensor:
        """Similarities (B,H,S,S) → logits (B,classes)."""
        return self.off_head((alike.flatten(2) @ self.lags).flatten(1))

    def aligned(self, vis: Tensor, aud: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """(loss, logits), the loss being how badly similarities tell which moment of the sound belongs to one of the picture.

        It is the mean cross entropy over the moments of the picture that the sound holds. One label per pair tells trunks that
        start from nothing little; here every moment has its own. `shift` (B·K,): by how many crop lengths the sound was taken
        later. After contrastive predictive coding (van den Oord et al., 2018); Synchformer pre-trains its trunks so, on segments.
        """
        alike = self.alike(vis, aud)
        wanted = matching(shift, self.moments)
        scores = SHARPNESS * alike.float().mean(1).transpose(1, 2)
        told = F.cross_entropy(scores, wanted, ignore_index=-1, reduction="sum")
        return told / (wanted >= 0).sum().clamp(min=1), self.logits(alike)


def matching(shift: Tensor, moments: int) -> Tensor:
    """(B,) shifts in crop lengths → (B, moments): the moment of the sound that holds the middle of each moment of the picture.

    -1 where none does.
    """
    middles = (torch.arange(moments, device=shift.device) + 0.5) / moments
    found = ((middles - shift[:, None]) * moments).floor().long()
    return found.masked_fill((found < 0) | (found >= moments), -1)

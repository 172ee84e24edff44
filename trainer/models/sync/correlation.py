"""Offsets by correlation: how alike pictures and sound are at every lag.

Shapes: B pairs, S moments, C width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.trainer.models.sync.alignment import alignment_loss, similarities
from javisc.trainer.models.sync.config import CorrelationConfig
from javisc.trainer.models.sync.transformer import channels_last


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
        seen = self.vis_proj(self.pre_lnorm_vis(vis).amax((2, 3)))
        heard = self.aud_proj(self.pre_lnorm_aud(aud).mean(1))
        return similarities(seen, heard, self.moments, self.n_head)

    def logits(self, alike: Tensor) -> Tensor:
        """Similarities (B,H,S,S) → logits (B,classes)."""
        return self.off_head((alike.flatten(2) @ self.lags).flatten(1))

    def aligned(self, vis: Tensor, aud: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """(`alignment_loss`, logits). `shift` (B·K,): by how many crop lengths the sound was taken later."""
        alike = self.alike(vis, aud)
        return alignment_loss(alike, shift), self.logits(alike)

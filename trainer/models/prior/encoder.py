"""The training-only side of the prior: video and audio latents → embeddings the prior tokens are drawn to, and a judge
of pairs.

Letters: B rows, T/S video frames and patches per frame, R/M audio patches in time and frequency, n tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.trainer.models.dit.attention import BidirectionalAttention, SelfAttention
from javisc.trainer.models.dit.blocks import Mlp


def layer_norm(x: Tensor) -> Tensor:
    """LayerNorm without affine, eps 1e-6."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def resize_axis(x: Tensor, axis: int, size: int) -> Tensor:
    """Resize one axis of x [..., C] linearly (align_corners false)."""
    moved = x.movedim(axis, -1)
    flat = moved.reshape(1, -1, moved.shape[-1])
    return (
        F.interpolate(flat, size=size, mode="linear", align_corners=False)
        .reshape(*moved.shape[:-1], size)
        .movedim(-1, axis)
    )


@dataclass(frozen=True)
class Aligned:
    """Video and audio tokens with one axis resized to the prior's token counts.

    `video_spatial` [B, T, n, C], `audio_spatial` [B, R, n, C], `video_temporal` [B, n, S, C], `audio_temporal` [B, n, M, C].
    """

    video_spatial: Tensor
    audio_spatial: Tensor
    video_temporal: Tensor
    audio_temporal: Tensor


class MergingBlock(nn.Module):
    """Two token streams → one embedding each group: x1 [G, L1, C], x2 [G, L2, C] → [G, C]."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.cross_attn = BidirectionalAttention(width, width, width, heads)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        update1, update2 = self.cross_attn(layer_norm(x1), layer_norm(x2))
        merged = (x1 + update1).mean(1) + (x2 + update2).mean(1)
        return merged + self.mlp(layer_norm(merged))


class Discriminator(nn.Module):
    """Does this embedding belong to this prior? tokens [B, n, C] → logit [B], read off a learned token after one attention."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) / width**0.5)
        self.attn = SelfAttention(width, heads, qk_norm)
        self.classifier = nn.Linear(width, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        sequence = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        return self.classifier(self.attn(sequence[:, None])[:, 0, 0]).squeeze(-1)

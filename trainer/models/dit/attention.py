"""The attentions of the joint DiT as modules under their official key names.

Letters: B rows, T frames, S patches per frame, N = T*S, H heads, D head width, C width, L text tokens, P prior tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from javisc.trainer.models.dit import torch_ops as ops


class RMSNorm(nn.Module):
    """Holds a gain [D]; the norm itself runs inside the attention ops."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight)


class Rope(nn.Module):
    """The one table of rotary frequencies, a checkpoint tensor that no stage trains: 10000^(-2i/D) when fresh."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
        self.freqs = nn.Parameter(1.0 / (10000**exponents), requires_grad=False)


class SelfAttention(nn.Module):
    """Attention within every frame (`freqs` absent) or over the frames of every patch (`freqs` given), x [B, T, S,
    C]."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else None
        self.k_norm = RMSNorm(width // heads) if qk_norm else None
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, freqs: Tensor | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q_gain = None if self.q_norm is None else self.q_norm.weight
        k_gain = None if self.k_norm is None else self.k_norm.weight
        if freqs is None:
            out = ops.self_attention(qkv.flatten(0, 1), q_gain, k_gain).view(x.shape)
        else:
            out = ops.temporal_attention(qkv, freqs, q_gain, k_gain)
        return self.proj(out)


@dataclass(frozen=True)
class PackedText:
    """The real text tokens of all rows end to end: `tokens` [sum(lengths), C]."""

    tokens: Tensor
    lengths: list[int]


class CrossAttention(nn.Module):
    """Queries from x [B, N, C], keys and values from other tokens, under the official names."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def keys_values(self, context: Tensor) -> Tensor:
        """[..., L, C] → [..., L, 2, H, D]: depends on the context alone, so a sampler may keep it over its steps."""
        return self.kv_linear(context).unflatten(-1, (2, self.heads, -1))

    def _queries(self, x: Tensor) -> Tensor:
        return self.q_linear(x).unflatten(-1, (self.heads, -1))


class TextCrossAttention(CrossAttention):
    """Every row sees its own text tokens."""

    def forward(self, x: Tensor, text: PackedText, kv: Tensor | None = None) -> Tensor:
        kv = self.keys_values(text.tokens) if kv is None else kv
        return self.proj(ops.packed_cross_attention(self._queries(x), kv, text.lengths))


class PriorCrossAttention(CrossAttention):
    """Every token sees the prior tokens [B, P, C] of all rows (scope "batch") or of its own row ("sample")."""

    def forward(self, x: Tensor, prior: Tensor, scope: str, kv: Tensor | None = None) -> Tensor:
        kv = self.keys_values(prior) if kv is None else kv
        return self.proj(ops.prior_attention(self._queries(x), kv, scope))


class BidirectionalAttention(nn.Module):
    """Two streams read each other through one logits matrix: x1 [B, N1, C1], x2 [B, N2, C2] → the two updates."""

    def __init__(
        self, width1: int, width2: int, inner: int, heads: int, out1: int | None = None, out2: int | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.m1_proj = nn.Linear(width1, inner)
        self.m2_proj = nn.Linear(width2, inner)
        self.values_m1_proj = nn.Linear(width1, inner)
        self.values_m2_proj = nn.Linear(width2, inner)
        self.out_m1_proj = nn.Linear(inner, out1 or width1)
        self.out_m2_proj = nn.Linear(inner, out2 or width2)

    def forward(
        self, x1: Tensor, x2: Tensor, mask1: Tensor | None = None, mask2: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        q, k, v1, v2 = (
            proj(x).unflatten(-1, (self.heads, -1))
            for proj, x in (
                (self.m1_proj, x1),
                (self.m2_proj, x2),
                (self.values_m1_proj, x1),
                (self.values_m2_proj, x2),
            )
        )
        out1, out2 = ops.bidirectional_attention(q, k, v1, v2, mask1, mask2)
        return self.out_m1_proj(out1), self.out_m2_proj(out2)

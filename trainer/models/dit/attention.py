"""The attentions of the joint DiT as modules under their official key names.

Letters: B rows, T frames, S patches per frame, N = T*S, H heads, D head width, C width, L text tokens, P prior tokens.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from javisc.kernels.attention import attention
from javisc.kernels.attention.reference import rms_norm
from javisc.kernels.bidirectional_attention import bidirectional_attention
from javisc.kernels.prior_attention import prior_attention
from javisc.kernels.temporal_attention import rope_table, temporal_attention
from javisc.trainer.engine.moving import to_device

#: cos and sin [T, D/2] of the rotary angles
Turns = tuple[Tensor, Tensor]


class RMSNorm(nn.Module):
    """Holds a gain [D]; the norm itself runs inside the attention ops."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, 1e-6)


class Rope(nn.Module):
    """The one table of rotary frequencies, a checkpoint tensor that no stage trains: 10000^(-2i/D) when fresh."""

    def __init__(self, head_width: int) -> None:
        super().__init__()
        exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
        self.freqs = nn.Parameter(1.0 / (10000**exponents), requires_grad=False)

    def turns(self, length: int) -> Turns:
        """The angles of positions 0 … length − 1, in the stored table's own precision."""
        return rope_table(self.freqs.detach(), length)


class SelfAttention(nn.Module):
    """Attention within every frame (`turns` absent) or over the frames of every patch (`turns` given), x [B, T, S, C]."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else None
        self.k_norm = RMSNorm(width // heads) if qk_norm else None
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, turns: Turns | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q_gain, k_gain = (None if norm is None else norm.weight for norm in (self.q_norm, self.k_norm))
        if turns is None:
            q, k, v = qkv.flatten(0, 1).unbind(2)
            out = attention(q, k, v, q_weight=q_gain, k_weight=k_gain)
        else:
            out = temporal_attention(qkv, q_gain, k_gain, turns[0], turns[1])
        return self.proj(out.reshape(x.shape))


@dataclass(frozen=True)
class PackedText:
    """The real text tokens of all rows end to end: `tokens` [n, C]; row b has those from bounds[b] to bounds[b + 1] (int32), at
    most `longest`, which the host knows."""

    tokens: Tensor
    bounds: Tensor
    longest: int

    @classmethod
    def of(cls, tokens: Tensor, lengths: list[int]) -> PackedText:
        """Rows of these lengths."""
        bounds = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
        return cls(tokens, to_device(bounds, tokens.device), max(lengths))


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
        k, v = kv.unbind(-3)
        out = attention(self._queries(x), k, v, cu_seqlens_k=text.bounds, max_seqlen_k=text.longest)
        return self.proj(out.flatten(-2))


class PriorCrossAttention(CrossAttention):
    """Every token sees the prior tokens [B, P, C] of all rows (scope "batch") or of its own row ("sample")."""

    def forward(self, x: Tensor, prior: Tensor, scope: Literal["batch", "sample"], kv: Tensor | None = None) -> Tensor:
        kv = self.keys_values(prior) if kv is None else kv
        k, v = kv.unbind(-3)
        return self.proj(prior_attention(self._queries(x), k, v, scope=scope).flatten(-2))


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
        out1, out2 = bidirectional_attention(q, k, v2, v1, mask_row=mask1, mask_col=mask2, mask_mode="or")
        return self.out_m1_proj(out1.flatten(-2)), self.out_m2_proj(out2.flatten(-2))

"""The joint DiT's blocks.

Letters: B rows, T frames, S patches per frame, N = T*S, C width, P prior tokens per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.kernels.modulated_norm import gated_residual, gated_residual_layer_norm, modulated_layer_norm
from javisc.trainer.models.dit.attention import (
    BidirectionalAttention,
    PackedText,
    PriorCrossAttention,
    SelfAttention,
    TextCrossAttention,
    Turns,
)


@dataclass(frozen=True)
class Modulation:
    """What the timestep says to a block: t [B, kC]; for frames that are given (mask [B, T] false) t0, the same at time
    0."""

    t: Tensor
    t0: Tensor | None = None
    mask: Tensor | None = None

    def rows(self, table: Tensor) -> tuple[Tensor, Tensor | None]:
        """table [k, C] + t as [k, B, C], and the same with t0."""

        def add(t: Tensor) -> Tensor:
            return (table[None] + t.view(len(t), len(table), -1)).transpose(0, 1)

        return add(self.t), None if self.t0 is None or self.mask is None else add(self.t0)


def _by_frame(x: Tensor, frames: int) -> Tensor:
    """[B, N, C] → [B, T, S, C]."""
    return x.view(len(x), frames, -1, x.shape[-1])


class Mlp(nn.Module):
    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _Modulated(nn.Module):
    """A block whose parts are modulated and gated by rows of `scale_shift_table` plus the timestep."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(rows, width) / width**0.5)

    @staticmethod
    def norm(x: Tensor, rows: Tensor, rows0: Tensor | None, mask: Tensor | None, first: int) -> Tensor:
        """LN(x) modulated by rows `first` (shift) and `first + 1` (scale)."""
        if rows0 is None:
            return modulated_layer_norm(x, rows[first], rows[first + 1])
        return modulated_layer_norm(x, rows[first], rows[first + 1], mask, rows0[first], rows0[first + 1])

    @staticmethod
    def gate(x: Tensor, update: Tensor, rows: Tensor, rows0: Tensor | None, mask: Tensor | None, row: int) -> Tensor:
        """x + row `row` times the update."""
        if rows0 is None:
            return gated_residual(x, update, rows[row])
        return gated_residual(x, update, rows[row], mask, rows0[row])

    @staticmethod
    def gate_norm(
        x: Tensor, update: Tensor, rows: Tensor, rows0: Tensor | None, mask: Tensor | None, row: int
    ) -> tuple[Tensor, Tensor]:
        """`gate` by row `row`, then `norm` by the two rows after it, in one pass: the sum and its norm."""
        gate, shift, scale = rows[row : row + 3]
        if rows0 is None:
            return gated_residual_layer_norm(x, update, gate, shift, scale)
        gate0, shift0, scale0 = rows0[row : row + 3]
        return gated_residual_layer_norm(x, update, gate, shift, scale, mask, gate0, shift0, scale0)


class STDiT3Block(_Modulated):
    """Self-attention over space or time, text cross-attention, MLP: x [B, N, C] → [B, N, C]."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, qk_norm: bool, temporal: bool) -> None:
        super().__init__(6, width)
        self.temporal = temporal
        self.attn = SelfAttention(width, heads, qk_norm)
        self.cross_attn = TextCrossAttention(width, heads)
        self.mlp = Mlp(width, mlp_ratio)

    def forward(
        self,
        x: Tensor,
        modulation: Modulation,
        text: PackedText,
        frames: int,
        turns: Turns | None,
        kv: Tensor | None = None,
    ) -> Tensor:
        """`frames` = T splits N; `turns` the rotary angles of temporal blocks; `kv` the kept keys and values of the
        text."""
        rows, rows0 = modulation.rows(self.scale_shift_table)
        mask = modulation.mask
        m = _by_frame(self.norm(x, rows, rows0, mask, 0), frames)
        x = self.gate(x, self.attn(m, turns if self.temporal else None).flatten(1, 2), rows, rows0, mask, 2)
        x = x + self.cross_attn(x, text, kv)
        return self.gate(x, self.mlp(self.norm(x, rows, rows0, mask, 3)), rows, rows0, mask, 5)


class PriorResample(nn.Module):
    """The two unofficial uses of the prior: its tokens, resized to the query axis, shift and scale or are added.

    `modulate`: linear(C→2C) gives (shift, scale), out = q scale + shift. `addition`: out = linear(C→C), q is not used.
    """

    def __init__(self, width: int, use: str) -> None:
        super().__init__()
        self.use = use
        self.proj = nn.Linear(width, 2 * width if use == "modulate" else width)

    def forward(self, q: Tensor, prior: Tensor) -> Tensor:
        """q [B, G, Q, C] with Q the axis the prior [B, P, C] is resized to (nearest neighbour)."""
        resized = F.interpolate(prior.transpose(1, 2), size=q.shape[2], mode="nearest").transpose(1, 2)
        out = self.proj(resized)[:, None]
        if self.use == "addition":
            return out.expand_as(q)
        shift, scale = out.chunk(2, dim=-1)
        return q * scale + shift


class CrossSTDiT3Block(_Modulated):
    """The prior block: spatial prior, temporal prior, MLP, each modulated and gated: x [B, N, C] → [B, N, C]."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_ratio: float,
        use: str = "cross_attn",
        scope: Literal["batch", "sample"] = "batch",
    ) -> None:
        super().__init__(9, width)
        self.use, self.scope = use, scope
        self.spatial_cross_attn, self.temporal_cross_attn = (
            PriorCrossAttention(width, heads) if use == "cross_attn" else PriorResample(width, use) for _ in range(2)
        )
        self.mlp = Mlp(width, mlp_ratio)

    def keys_values(self, spatial_prior: Tensor, temporal_prior: Tensor) -> tuple[Tensor, Tensor] | None:
        """The priors' keys and values, for a caller that keeps them; None where the prior is not attended to."""
        spatial, temporal = self.spatial_cross_attn, self.temporal_cross_attn
        if isinstance(spatial, PriorResample) or isinstance(temporal, PriorResample):
            return None
        return spatial.keys_values(spatial_prior), temporal.keys_values(temporal_prior)

    def forward(
        self,
        x: Tensor,
        modulation: Modulation,
        spatial_prior: Tensor,
        temporal_prior: Tensor,
        frames: int,
        kv: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Priors are [B, P, C], already at the model's width; `frames` = T splits N; `kv` their kept keys and
        values."""
        spatial_kv, temporal_kv = (None, None) if kv is None else kv
        rows, rows0 = modulation.rows(self.scale_shift_table)
        mask = modulation.mask
        m = self.norm(x, rows, rows0, mask, 0)
        if self.use == "cross_attn":
            update = self.spatial_cross_attn(m, spatial_prior, self.scope, spatial_kv)
        else:
            update = self.spatial_cross_attn(_by_frame(m, frames), spatial_prior).flatten(1, 2)
        x, m = self.gate_norm(x, update, rows, rows0, mask, 2)
        if self.use == "cross_attn":
            update = self.temporal_cross_attn(m, temporal_prior, self.scope, temporal_kv)
        else:
            by_patch = _by_frame(m, frames).transpose(1, 2)
            update = self.temporal_cross_attn(by_patch, temporal_prior).transpose(1, 2).flatten(1, 2)
        x, m = self.gate_norm(x, update, rows, rows0, mask, 5)
        return self.gate(x, self.mlp(m), rows, rows0, mask, 8)


class CrossModalityBiAttentionBlock(nn.Module):
    """Video and audio tokens read each other; gains start at 0, so that a fresh block changes nothing."""

    def __init__(self, width1: int, width2: int, inner: int, heads: int) -> None:
        super().__init__()
        self.cross_attn = BidirectionalAttention(width1, width2, inner, heads)
        self.gamma_m1 = nn.Parameter(torch.zeros(width1))
        self.gamma_m2 = nn.Parameter(torch.zeros(width2))

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        update1, update2 = self.cross_attn(
            F.layer_norm(x1, x1.shape[-1:], eps=1e-6), F.layer_norm(x2, x2.shape[-1:], eps=1e-6)
        )
        return x1 + self.gamma_m1 * update1, x2 + self.gamma_m2 * update2


class T2IFinalLayer(_Modulated):
    """LN, modulation by the raw time embedding, linear: x [B, N, C] → [B, N, patch volume * channels].

    `given_frames`: the reference modulates frames that are given twice, LN(LN(x) (1+s)+b) (1+s0)+b0 ("twice"); "once"
    is LN(x) (1+s0)+b0. Nobody reads those frames: loss and sampler leave them out.
    """

    def __init__(self, width: int, patch_volume: int, out_channels: int, given_frames: str = "twice") -> None:
        super().__init__(2, width)
        self.given_frames = given_frames
        self.linear = nn.Linear(width, patch_volume * out_channels)

    def forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        """modulation.t is the time embedding [B, C] itself, not a time block's output."""

        def rows(t: Tensor) -> Tensor:
            return (self.scale_shift_table[:, None] + t[None]).to(x.dtype)

        t, t0, mask = modulation.t, modulation.t0, modulation.mask
        if t0 is None or mask is None:
            return self.linear(self.norm(x, rows(t), None, None, 0))
        if self.given_frames == "once":
            return self.linear(self.norm(x, rows(t), rows(t0), mask, 0))
        m = self.norm(x, rows(t), None, None, 0)
        again = self.norm(m, rows(t0), None, None, 0)
        per_token = mask.repeat_interleave(x.shape[1] // mask.shape[1], dim=1)[..., None]
        return self.linear(torch.where(per_token, m, again))

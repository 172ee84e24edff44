"""Many tokens become one vector: what a class token reads in one encoder layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Aggregation(nn.TransformerEncoderLayer):
    """(B,N,C) → (B,C): the class token in front of the tokens, after one pre-norm encoder layer; no norm follows.

    With `rows`, a learned table of so many positions is added to [class token, tokens]; shorter inputs take its first rows.
    """

    def __init__(self, width: int, heads: int, hidden: int, rows: int | None = None) -> None:
        super().__init__(width, heads, hidden, 0.0, nn.GELU(), layer_norm_eps=1e-6, batch_first=True, norm_first=True)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_emb = None if rows is None else nn.Parameter(torch.zeros(1, rows, width))
        for layer in (self.self_attn.out_proj, self.linear1, self.linear2):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        for table in (self.cls_token, self.pos_emb):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1)
        if self.pos_emb is not None:
            if x.shape[1] > self.pos_emb.shape[1]:
                raise ValueError(f"{x.shape[1] - 1} tokens, but positions for {self.pos_emb.shape[1] - 1}")
            x = x + self.pos_emb[:, : x.shape[1]]
        return super().forward(x)[:, 0]


class Mean(nn.Module):
    """(B,N,C) → (B,C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def aggregation(kind: str, width: int, heads: int, hidden: int) -> nn.Module:
    """One of `config.AGGREGATIONS`."""
    return Mean() if kind == "mean" else Aggregation(width, heads, hidden)

"""What is added to the feature grids: position tables; and what they are normalised with before.

Grids are channels-last: visual (B,T,H,W,C), audio (B,F,T,C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.trainer.models.sync.config import POSITIONS, PRE_NORMS, check_choice


def _rows(table: nn.Embedding, size: int, name: str) -> Tensor:
    """The first `size` rows (size, C'); raises IndexError where the table is shorter."""
    if size > table.num_embeddings:
        raise IndexError(
            f"{size} positions along {name}, but the table has {table.num_embeddings}: enlarge the model's shape"
        )
    return table.weight[:size]


class VisualPositions(nn.Module):
    """Learned tables of time, height and width; a channel count that does not split in three gives the rest to time."""

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        part = width // 3
        self.time_embed = nn.Embedding(shape[0], width - 2 * part)
        self.height_embed = nn.Embedding(shape[1], part)
        self.width_embed = nn.Embedding(shape[2], part)
        self.time_channels = slice(0, width - 2 * part)

    def forward(self, x: Tensor) -> Tensor:
        _, t, h, w, _ = x.shape
        time = _rows(self.time_embed, t, "time")[:, None, None].expand(t, h, w, -1)
        height = _rows(self.height_embed, h, "height")[None, :, None].expand(t, h, w, -1)
        across = _rows(self.width_embed, w, "width")[None, None].expand(t, h, w, -1)
        # The channels are laid out time, width, height: published weights were trained so.
        return x + torch.cat((time, across, height), -1)


class AudioPositions(nn.Module):
    """Learned tables of frequency and time; an odd channel goes to time."""

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        self.freq_embed = nn.Embedding(shape[0], width // 2)
        self.time_embed = nn.Embedding(shape[1], width - width // 2)
        self.time_channels = slice(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        _, f, t, _ = x.shape
        frequency = _rows(self.freq_embed, f, "frequency")[:, None].expand(f, t, -1)
        time = _rows(self.time_embed, t, "time")[None].expand(f, t, -1)
        return x + torch.cat((frequency, time), -1)


class FullTable(nn.Module):
    """One zero-initialised vector per cell; fits only inputs of exactly the table's shape."""

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        self.pos_emb = nn.Parameter(torch.zeros(1, *shape, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pos_emb


class L2Norm(nn.Module):
    """Unit length over the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=1e-6 if x.dtype is torch.half else 1e-12)


class SelectorPositions(nn.Module):
    """A learned vector per query."""

    def __init__(self, num_selectors: int, width: int) -> None:
        super().__init__()
        self.time_embed = nn.Embedding(num_selectors, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.time_embed.weight


def pre_norm(kind: str, width: int) -> nn.Module:
    check_choice("pre_norm", kind, PRE_NORMS)
    return nn.LayerNorm(width) if kind == "layer" else L2Norm() if kind == "l2" else nn.Identity()


def positions(kind: str, shape: Sequence[int], width: int) -> nn.Module:
    """The position module for a grid of `shape`: three numbers for pictures, two for sound."""
    check_choice("positions", kind, POSITIONS)
    if kind == "learned":
        return VisualPositions(shape, width) if len(shape) == 3 else AudioPositions(shape, width)
    return FullTable(shape, width) if kind == "zeroinit" else nn.Identity()


def init_positions(module: nn.Module, std: float) -> None:
    """Draw learned tables from N(0, std); a zero-initialised table stays."""
    for table in module.children():
        if isinstance(table, nn.Embedding):
            nn.init.normal_(table.weight, std=std)

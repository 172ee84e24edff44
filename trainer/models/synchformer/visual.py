"""The visual extractor: divided space-time attention over the patches of one short segment (after Motionformer).

Shapes: B segments, T time steps, N patches of a step, C width, H heads, D head size. Tokens lie as [class token, T·N patches],
time slowest, then rows, then columns.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from javisc.kernels.attention import attention
from javisc.trainer.models.synchformer.aggregation import aggregation
from javisc.trainer.models.synchformer.config import VisualConfig

_EPS = 1e-6


class DividedAttention(nn.Module):
    """The class token attends to everything; a patch to the class token and its group: the same place (`over` time) or step."""

    def __init__(self, width: int, heads: int, over: str) -> None:
        super().__init__()
        self.heads, self.over = heads, over
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        query, key, value = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).unbind(2)
        first = attention(query[:, :1], key, value)
        grouped = attention(
            self._groups(query[:, 1:], steps),
            *(torch.cat((self._repeated(t, steps), self._groups(t[:, 1:], steps)), 1) for t in (key, value)),
        )
        grouped = grouped.view(len(x), -1, *grouped.shape[1:])
        if self.over == "time":
            grouped = grouped.transpose(1, 2)
        return self.proj(torch.cat((first, grouped.flatten(1, 2)), 1).flatten(2))

    def _groups(self, x: Tensor, steps: int) -> Tensor:
        """(B,T·N,H,D) → (B·N,T,H,D) or (B·T,N,H,D)."""
        x = x.reshape(len(x), steps, -1, *x.shape[2:])
        return (x.transpose(1, 2) if self.over == "time" else x).flatten(0, 1)

    def _repeated(self, x: Tensor, steps: int) -> Tensor:
        """The class token's row for every group: (B,1+T·N,H,D) → (B·groups,1,H,D)."""
        groups = (x.shape[1] - 1) // steps if self.over == "time" else steps
        return x[:, :1].repeat_interleave(groups, 0)


class DropPath(nn.Module):
    """In training, a whole row of (B,…) is left out with probability `rate`, the others scaled up."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        return x * nn.functional.dropout(x.new_ones(len(x)), self.rate).view(-1, *[1] * (x.dim() - 1))


class MLP(nn.Module):
    """fc2(gelu(fc1)), four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm: attention over time (norm3; never dropped), over space (norm1), then the MLP (norm2)."""

    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPS)
        self.attn = DividedAttention(width, heads, "space")
        self.timeattn = DividedAttention(width, heads, "time")
        self.drop_path_space, self.drop_path_mlp = DropPath(drop_path), DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, _EPS)
        self.mlp = MLP(width)
        self.norm3 = nn.LayerNorm(width, _EPS)

    def forward(self, x: Tensor, steps: int) -> Tensor:
        x = x + self.timeattn(self.norm3(x), steps)
        x = x + self.drop_path_space(self.attn(self.norm1(x), steps))
        return x + self.drop_path_mlp(self.mlp(self.norm2(x)))


class _Patches(nn.Module):
    def __init__(self, conv: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.proj = conv

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,frames,H,W) → (B,T·N,C)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VisualExtractor(nn.Module):
    """vis (B,S,frames,3,H,W), normalised to [-1, 1] → (B,S,T,C): each segment alone, a vector for each of its time steps."""

    def __init__(self, config: VisualConfig | None = None) -> None:
        super().__init__()
        config = config or VisualConfig()
        self.config, width = config, config.width
        places = (config.image // config.patch) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + places, width))
        self.temp_embed = nn.Parameter(torch.zeros(1, config.steps, width))
        square = (config.patch, config.patch)
        # The image network's own patches: in every published checkpoint, in no forward pass.
        self.patch_embed = _Patches(nn.Conv2d(3, width, square, square)).requires_grad_(False)
        tube = (config.tubelet, *square)
        self.patch_embed_3d = _Patches(nn.Conv3d(3, width, tube, tube))
        last = max(config.depth - 1, 1)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.drop_path * number / last) for number in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, _EPS)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        for table in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(table, std=0.02)
        nn.init.zeros_(self.patch_embed_3d.proj.weight)
        self.spatial_attn_agg = aggregation(config.aggregation, width, config.heads, 4 * width)

    @property
    def shape(self) -> tuple[int, int]:
        """A segment's features: time steps and width."""
        return self.config.steps, self.config.width

    def forward(self, vis: Tensor) -> Tensor:
        config = self.config
        batch, segments = vis.shape[:2]
        wanted = (config.frames, 3, config.image, config.image)
        if vis.shape[2:] != wanted:
            raise ValueError(f"segments of {tuple(vis.shape[2:])}: this model's tables are for {wanted}")
        x = self.patch_embed_3d(vis.flatten(0, 1).transpose(1, 2))
        positions = (self.pos_embed[:, None, 1:] + self.temp_embed[:, :, None]).flatten(1, 2)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat((first.to(x.dtype), x + positions.to(x.dtype)), 1)
        for block in self.blocks:
            x = block(x, config.steps)
        x = self.norm(x[:, 1:]).view(len(x) * config.steps, -1, config.width)
        return self.spatial_attn_agg(x).view(batch, segments, config.steps, -1)

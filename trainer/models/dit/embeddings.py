"""From latents, times and captions to tokens.

Letters: B rows, C width, T/H/W video latent axes, R/M audio latent axes (time, frequency), L caption tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from javisc.trainer.engine.moving import to_device


class PatchEmbed3d(nn.Module):
    """Video patches: [B, c, T, H, W] → [B, t*h*w, C], zero-padded at the far edges, w fastest."""

    def __init__(self, patch: tuple[int, int, int], in_channels: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv3d(in_channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        pads = [-size % patch for size, patch in zip(x.shape[2:], self.patch)]
        if any(pads):
            x = F.pad(x, (0, pads[2], 0, pads[1], 0, pads[0]))
        # In one piece: sums keep the layout of their first term, and every block would copy what it reads.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


class PatchEmbed2d(nn.Module):
    """Audio patches: [B, c, R, M] → [B, r*m, C], zero-padded at the far edges, m fastest."""

    def __init__(self, patch: tuple[int, int], in_channels: int, width: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        pads = [-size % patch for size, patch in zip(x.shape[2:], self.patch)]
        if any(pads):
            x = F.pad(x, (0, pads[1], 0, pads[0]))
        # In one piece: sums keep the layout of their first term, and every block would copy what it reads.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


def inverse_frequencies(width: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[width/2] frequencies 10000^(-2i/width), rounded to `dtype` as the reference's cast module holds them."""
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    return (1.0 / (10000**exponents)).to(dtype)


def position_code_2d(
    height: int,
    width: int,
    channels: int,
    *,
    scale: float = 1.0,
    base_size: int | None = None,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[1, height*width, channels]: [sin col, cos col, sin row, cos row], positions divided by `scale` and fitted to
    `base_size`.

    Angles are float32 products of float32 positions with frequencies rounded to `dtype`.
    """
    frequencies = inverse_frequencies(channels // 2, device, dtype).float()

    def code(count: int) -> Tensor:
        positions = torch.arange(count, device=device, dtype=torch.float32) / scale
        if base_size is not None:
            positions = positions * (base_size / count)
        angles = positions[:, None] * frequencies[None]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)

    rows = code(height)[:, None].expand(-1, width, -1)
    columns = code(width)[None].expand(height, -1, -1)
    return torch.cat((columns, rows), dim=-1).reshape(1, height * width, channels).to(dtype)


def position_code_1d(length: int, channels: int, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """[1, length, channels]: [sin(m w), cos(m w)], w_i = 10000^(-i/(channels/2)), computed in `dtype` throughout."""
    frequencies = inverse_frequencies(channels, device, dtype)
    angles = torch.arange(length, device=device, dtype=dtype)[:, None] * frequencies[None]
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[None]


def video_position_code(
    height: int,
    width: int,
    channels: int,
    height_px: float,
    width_px: float,
    sq_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """The position code of one frame of height*width patches of a video of height_px*width_px pixels."""
    base = round(math.sqrt(height * width))
    scale = math.sqrt(height_px * width_px) / sq_size
    return position_code_2d(height, width, channels, scale=scale, base_size=base, device=device, dtype=dtype)


class TimestepEmbedder(nn.Module):
    """A number per row as a sinusoid of width 256 (cosines first), then linear, SiLU, linear: [B] → [B, C]."""

    sinusoid_width = 256

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.sinusoid_width, width), nn.SiLU(), nn.Linear(width, width))

    @classmethod
    def sinusoid(cls, values: Tensor) -> Tensor:
        """[B] → [B, 256] in float32."""
        half = cls.sinusoid_width // 2
        steps = torch.arange(half, device=values.device, dtype=torch.float32)
        angles = values.float()[:, None] * torch.exp(-math.log(10000) * steps / half)[None]
        return torch.cat((angles.cos(), angles.sin()), dim=-1)

    def forward(self, values: Tensor) -> Tensor:
        return self.mlp(self.sinusoid(values).to(next(self.parameters()).dtype))


class SizeEmbedder(TimestepEmbedder):
    """Several numbers per row, each embedded alone and joined: [B, k] or [k'] → [rows, k*C]; fewer rows are tiled."""

    def forward(self, values: Tensor, rows: int | None = None) -> Tensor:
        values = values[:, None] if values.ndim == 1 else values
        if rows is not None and len(values) != rows:
            values = values.repeat(rows // len(values), 1)
        return super().forward(values.flatten()).view(len(values), -1)


class _Projection(nn.Module):
    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_channels, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Caption-like tokens [..., L, c] → [..., L, C]; in training a row becomes the stored null embedding with a
    probability."""

    y_embedding: Tensor

    def __init__(self, in_channels: int, width: int, dropout: float, tokens: int) -> None:
        super().__init__()
        self.dropout = dropout
        self.register_buffer("y_embedding", torch.randn(tokens, in_channels) / in_channels**0.5)
        self.y_proj = _Projection(in_channels, width)

    def forward(self, y: Tensor, drop: Tensor | None = None) -> Tensor:
        """`drop` [B] bool decides which rows become null; without it the draw is made on y's device, in training
        only."""
        if drop is None and self.training and self.dropout > 0:
            drop = torch.rand(len(y), device=y.device) < self.dropout
        if drop is not None:
            if y.shape[-2:] != self.y_embedding.shape:
                shape = tuple(self.y_embedding.shape)
                raise ValueError(
                    f"rows to drop have (tokens, channels) {tuple(y.shape[-2:])}; the null embedding has {shape}"
                )
            y = torch.where(drop.bool().view(-1, *[1] * (y.ndim - 1)), self.y_embedding.to(y.dtype), y)
        return self.y_proj(y)


def keep_real_tokens(y: Tensor, mask: Tensor | None, lengths: Sequence[int] | None = None) -> tuple[Tensor, list[int]]:
    """The tokens [B, L, C] whose mask [B or B/k, L] is not 0, rows joined: ([sum, C], tokens per row). No mask keeps
    all, and so does a fake one, which has no values to read.

    `lengths` [B or B/k] say how many tokens of each row are real, the first ones: then the mask is not looked at, and no
    device is waited for. Without them it is read once per forward.
    """
    rows, length, _ = y.shape
    if lengths is not None:
        known = [min(int(count), length) for count in lengths] * (rows // len(lengths))
        places = torch.cat([torch.arange(count) + row * length for row, count in enumerate(known)])
        return y.flatten(0, 1).index_select(0, to_device(places, y.device)), known
    keep = None if mask is None else mask != 0
    if keep is None or is_fake(keep):
        return y.flatten(0, 1), [length] * rows
    if len(keep) != rows:
        keep = keep.repeat(rows // len(keep), 1)
    kept = keep.flatten().nonzero().squeeze(1).to(y.device, non_blocking=True)
    return y.flatten(0, 1).index_select(0, kept), keep.sum(1).tolist()

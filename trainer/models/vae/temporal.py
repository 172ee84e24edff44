"""OpenSora-VAE v1.2's temporal half: a causal 3-D autoencoder over the 2-D VAE's latents.

Letters: B rows, T frames, H, W latent height and width. 17 frames → 5; every convolution pads time in front only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv3d(nn.Module):
    """A 3-D convolution whose time padding lies all in front; zeros everywhere."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, time_stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__()
        space = kernel // 2
        # a strided one starts its windows later, so that the last one ends at the last frame
        self.pads = (space, space, space, space, kernel - time_stride, 0)
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride=(time_stride, 1, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.pads))


class _ResBlock(nn.Module):
    def __init__(self, in_channels: int, filters: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels)
        self.conv1 = CausalConv3d(in_channels, filters, 3, bias=False)
        self.norm2 = nn.GroupNorm(groups, filters)
        self.conv2 = CausalConv3d(filters, filters, 3, bias=False)
        if in_channels != filters:
            self.conv3 = CausalConv3d(in_channels, filters, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        inner = self.conv2(F.silu(self.norm2(inner)))
        return inner + (self.conv3(x) if hasattr(self, "conv3") else x)


class _Encoder(nn.Module):
    def __init__(
        self,
        in_channels: int,
        latent: int,
        res: int,
        mult: Sequence[int],
        down: Sequence[bool],
        filters: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(in_channels, filters, 3, bias=False)
        self.block_res_blocks, self.conv_blocks = nn.ModuleList(), nn.ModuleList()
        width = filters
        for level, factor in enumerate(mult):
            level_blocks = nn.ModuleList()
            for _ in range(res):
                level_blocks.append(_ResBlock(width, filters * factor, groups))
                width = filters * factor
            self.block_res_blocks.append(level_blocks)
            if level < len(mult) - 1:
                last = CausalConv3d(width, width, 3, time_stride=2) if down[level] else nn.Identity()
                self.conv_blocks.append(last)
        self.res_blocks = nn.ModuleList(_ResBlock(width, width, groups) for _ in range(res))
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv2 = CausalConv3d(width, latent, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level, blocks in enumerate(self.block_res_blocks):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x)
            if level < len(self.conv_blocks):
                x = self.conv_blocks[level](x)
        for block in self.res_blocks:
            x = block(x)
        return self.conv2(F.silu(self.norm1(x)))


class _Decoder(nn.Module):
    def __init__(
        self,
        out_channels: int,
        latent: int,
        res: int,
        mult: Sequence[int],
        down: Sequence[bool],
        filters: int,
        groups: int,
    ) -> None:
        super().__init__()
        width = filters * mult[-1]
        self.conv1 = CausalConv3d(latent, width, 3)
        self.res_blocks = nn.ModuleList(_ResBlock(width, width, groups) for _ in range(res))
        levels: list[tuple[nn.Module, nn.ModuleList]] = []
        for level in reversed(range(len(mult))):
            level_blocks = nn.ModuleList()
            for _ in range(res):
                level_blocks.append(_ResBlock(width, filters * mult[level], groups))
                width = filters * mult[level]
            up: nn.Module = nn.Identity()
            if level > 0 and down[level - 1]:
                up = CausalConv3d(width, 2 * width, 3)
            levels.insert(0, (up, level_blocks))
        self.block_res_blocks = nn.ModuleList(blocks for _, blocks in levels)
        self.conv_blocks = nn.ModuleList(up for up, _ in levels[1:])
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv_out = CausalConv3d(width, out_channels, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv1(z)
        for block in self.res_blocks:
            x = block(x)
        for level in reversed(range(len(self.block_res_blocks))):
            for block in self.block_res_blocks[level]:  # type: ignore[attr-defined]
                x = block(x)
            if level > 0 and not isinstance(up := self.conv_blocks[level - 1], nn.Identity):
                x = _two_frames_from_channels(up(x))
        return self.conv_out(F.silu(self.norm1(x)))


def _two_frames_from_channels(x: Tensor) -> Tensor:
    """[B, 2c, T, H, W] → [B, c, 2T, H, W]; the time factor is the outer half of the channels."""
    rows, channels, frames, height, width = x.shape
    split = x.view(rows, channels // 2, 2, frames, height, width)
    return split.permute(0, 1, 3, 2, 4, 5).reshape(rows, channels // 2, 2 * frames, height, width)


class TemporalVAE(nn.Module):
    """x [B, 4, T, H, W] ↔ latents [B, 4, ceil(T/4), H, W]; defaults are the published model's."""

    def __init__(
        self,
        *,
        filters: int = 128,
        res: int = 4,
        mult: Sequence[int] = (1, 2, 2, 4),
        down: Sequence[bool] = (False, True, True),
        groups: int = 32,
        channels: int = 4,
        latent: int = 4,
    ) -> None:
        super().__init__()
        self.factor = 2 ** sum(down)
        self.encoder = _Encoder(channels, 2 * latent, res, mult, down, filters, groups)
        self.quant_conv = CausalConv3d(2 * latent, 2 * latent, 1)
        self.post_quant_conv = CausalConv3d(latent, latent, 1)
        self.decoder = _Decoder(channels, latent, res, mult, down, filters, groups)

    def moments(self, x: Tensor) -> Tensor:
        """[B, 8, ceil(T/4), H, W]: mean and log variance of the posterior. Frames are padded in front with zeros to fours."""
        pad = -x.shape[2] % self.factor
        return self.quant_conv(self.encoder(F.pad(x, (0, 0, 0, 0, pad, 0))))

    def encode(self, x: Tensor, noise: Tensor | None = None, *, mode: bool = False) -> Tensor:
        """A draw from the posterior (ε = `noise` if given), or its mean with `mode`."""
        mean, logvar = self.moments(x).chunk(2, dim=1)
        if mode:
            return mean
        noise = torch.randn_like(mean) if noise is None else noise.to(mean)
        return mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * noise

    def decode(self, z: Tensor, frames: int) -> Tensor:
        """[B, 4, t, H, W] → [B, 4, frames, H, W]: the front padding that encoding added is cut off."""
        x = self.decoder(self.post_quant_conv(z))
        return x[:, :, x.shape[2] - frames :]

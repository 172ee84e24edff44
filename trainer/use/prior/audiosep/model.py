"""AudioSep's separator: six levels of residual blocks on the magnitudes of a short-time Fourier transform.

Before each convolution a shift is added that is linear in the condition. The last maps are a mask for the magnitude and a turn of
the phase. Sizes and the names of weights are those of the published checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE, WINDOW, HOP = 32000, 2048, 320
#: Channels and pooling (time, frequency) of the levels down, the middle, and the levels up.
WIDTHS = (32, 64, 128, 256, 384, 384, 384)
DOWN = ((2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (1, 2), (1, 1))
CONDITION, MOMENTUM, SLOPE = 512, 0.01, 0.01
#: Time steps are filled up to a multiple of this.
_STEPS = 32
Shifts = Mapping[str, Any]


class Block(nn.Module):
    """Two convolutions of 3 x 3 with normalisation, shift and leaky ReLU before each, and a way around them."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before, momentum=MOMENTUM)
        self.bn2 = nn.BatchNorm2d(after, momentum=MOMENTUM)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x: Tensor, shifts: Shifts) -> Tensor:
        """[B, before, T, F] → [B, after, T, F]."""
        made = self.conv1(F.leaky_relu(self.bn1(x) + shifts["beta1"], SLOPE))
        made = self.conv2(F.leaky_relu(self.bn2(made) + shifts["beta2"], SLOPE))
        return made + (x if self.shortcut is None else self.shortcut(x))


class Encoder(nn.Module):
    """A block, and its pooled result for the level below."""

    def __init__(self, before: int, after: int, pool: tuple[int, int]) -> None:
        super().__init__()
        self.conv_block1 = Block(before, after)
        self.pool = pool

    def forward(self, x: Tensor, shifts: Shifts) -> tuple[Tensor, Tensor]:
        """(pooled, whole)."""
        made = self.conv_block1(x, shifts["conv_block1"])
        return F.avg_pool2d(made, self.pool), made


class Decoder(nn.Module):
    """A transposed convolution up to the level above, joined with what was there on the way down, and a block."""

    def __init__(self, before: int, after: int, scale: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(before, after, scale, scale, bias=False)
        self.bn1 = nn.BatchNorm2d(before, momentum=MOMENTUM)
        self.conv_block2 = Block(2 * after, after)
        self.bn2 = nn.BatchNorm2d(before, momentum=MOMENTUM)  # unused, and in the checkpoint

    def forward(self, x: Tensor, beside: Tensor, shifts: Shifts) -> Tensor:
        """[B, before, t, f] and [B, after, T, F] → [B, after, T, F]."""
        x = self.conv1(F.leaky_relu(self.bn1(x) + shifts["beta1"], SLOPE))
        return self.conv_block2(torch.cat((x, beside), 1), shifts["conv_block2"])


class Base(nn.Module):
    """The U-Net from a wave and the shifts of all its blocks to the wave of what was asked for."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(WINDOW // 2 + 1, momentum=MOMENTUM)
        self.pre_conv = nn.Conv2d(1, widths[0], 1)
        before = widths[0]
        for number, (width, pool) in enumerate(zip(widths[:6], DOWN[:6], strict=True), 1):
            setattr(self, f"encoder_block{number}", Encoder(before, width, pool))
            before = width
        self.conv_block7a = Encoder(before, widths[6], DOWN[6])
        before = widths[6]
        for number, (width, scale) in enumerate(zip(reversed(widths[:6]), reversed(DOWN[:6]), strict=True), 1):
            setattr(self, f"decoder_block{number}", Decoder(before, width, scale))
            before = width
        self.after_conv = nn.Conv2d(before, 3, 1)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    def forward(self, wave: Tensor, shifts: Shifts) -> Tensor:
        """[B, n] at RATE → [B, n]."""
        window = self.get_buffer("window")
        mixture = torch.stft(wave, WINDOW, HOP, window=window, return_complex=True).transpose(1, 2)[:, None]
        magnitude = mixture.abs().clamp_min(1e-5)
        turn = mixture / magnitude
        steps = magnitude.shape[2]
        x = self.bn0(magnitude.transpose(1, 3)).transpose(1, 3)
        x = F.pad(x, (0, 0, 0, -steps % _STEPS))[..., :-1]  # 1024 bins halve evenly
        x = self.pre_conv(x)
        passed = []
        for number in range(1, 7):
            name = f"encoder_block{number}"
            x, whole = self.get_submodule(name)(x, shifts[name])
            passed.append(whole)
        x, _ = self.conv_block7a(x, shifts["conv_block7a"])
        for number in range(1, 7):
            name = f"decoder_block{number}"
            x = self.get_submodule(name)(x, passed[-number], shifts[name])
        x = F.pad(self.after_conv(x), (0, 1))[:, :, :steps]
        mask, real, imaginary = torch.sigmoid(x[:, 0]), torch.tanh(x[:, 1]), torch.tanh(x[:, 2])
        size = torch.sqrt(real**2 + imaginary**2).clamp_min(1e-10)
        out = magnitude[:, 0] * mask * turn[:, 0] * torch.complex(real / size, imaginary / size)
        return torch.istft(out.transpose(1, 2), WINDOW, HOP, window=window, length=wave.shape[1])


class Film(nn.Module):
    """A linear layer from the condition to each block's shifts; names are paths joined by "->", as in the checkpoint."""

    def __init__(self, base: Base, condition: int) -> None:
        super().__init__()
        for name, module in base.named_modules():
            path = name.replace(".", "->")
            if isinstance(module, Block):
                self.add_module(f"{path}->beta1", nn.Linear(condition, module.bn1.num_features))
                self.add_module(f"{path}->beta2", nn.Linear(condition, module.bn2.num_features))
            elif isinstance(module, Decoder):
                self.add_module(f"{path}->beta1", nn.Linear(condition, module.bn1.num_features))

    def forward(self, condition: Tensor) -> dict[str, Any]:
        """[B, c] → shifts [B, channels, 1, 1] by block."""
        made: dict[str, Any] = {}
        for name, layer in self.named_children():
            *path, last = name.split("->")
            place = made
            for step in path:
                place = place.setdefault(step, {})
            place[last] = layer(condition)[:, :, None, None]
        return made


class ResUNet30(nn.Module):
    """Mixture [B, n] at RATE and condition [B, 512] → what it describes [B, n]."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, condition: int = CONDITION) -> None:
        super().__init__()
        self.base = Base(widths)
        self.film = Film(self.base, condition)

    def forward(self, wave: Tensor, condition: Tensor) -> Tensor:
        return self.base(wave, self.film(condition))


def flops(seconds: float = 10.0) -> float:
    """FLOP of one query on a sound: two per multiplication and addition of its convolutions."""
    steps = -(-(int(seconds * RATE) // HOP + 1) // _STEPS) * _STEPS
    place, total, before = [steps, 1024], 2.0 * steps * 1024 * WIDTHS[0], WIDTHS[0]

    def block(first: int, second: int) -> float:
        return 2.0 * place[0] * place[1] * (9 * (first * second + second * second) + (first != second) * first * second)

    for width, pool in zip(WIDTHS, DOWN, strict=True):
        total += block(before, width)
        before = width
        place = [place[0] // pool[0], place[1] // pool[1]]
    for width, scale in zip(reversed(WIDTHS[:6]), reversed(DOWN[:6]), strict=True):
        total += 2.0 * place[0] * place[1] * before * width * scale[0] * scale[1]
        place = [place[0] * scale[0], place[1] * scale[1]]
        total += block(2 * width, width)
        before = width
    return total + 2.0 * place[0] * place[1] * before * 3

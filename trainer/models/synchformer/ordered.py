"""A start from which the transformer that joins the segments reads lags: what lets a small Synchformer learn in minutes.

From the published start a small model stays at chance, although a lag can be read off the extractors' features (see
benchmarks/results/synchformer.md). Here the first values of the same weights make the following out of them. In the first block
every segment attends to the segments of the other stream by how alike their features are, and takes from them codes of their
places; the block's MLP multiplies those with the code of the own place, which gives codes of lags; in the second block OFF
takes the mean of these. Which lag is which class, and all else, is learnt. Only initial values differ: the model, its names
and what it may learn are the published ones. (Cf. mimetic initialisation, Trockman and Kolter, 2023.)

Codes of places are cos and sin of a few frequencies (Vaswani et al., 2017), so that the code of a lag is a product of two:
cos(a - b) = cos a · cos b + sin a · sin b, sin(a - b) = sin a · cos b - cos a · sin b.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.models.sync.attention import EncoderBlock
from javisc.trainer.models.sync.ordered import QUIET

#: Amplitude of the codes of places, and the value by which a token says of which stream it is.
AMPLITUDE, STREAM = 0.7, 2.0
#: Of a segment's scores for the other stream: by how much a perfect likeness counts, and by how much the own stream is shunned.
LIKENESS, SHUN = 2.0, 2.0
#: By how much OFF's scores tell streams apart, and what the tokens OFF and MOD are known by.
READ, ALONE = 3.0, 3.0
#: What the codes of matched places are multiplied by, and what the MLP's inputs are.
GAIN, SMALL = 2.0, 0.5


@dataclass(frozen=True)
class _Layout:
    """What the channels of a token hold at the start: features, codes of the own place, of matched places and of lags, flags."""

    width: int
    features: int
    frequencies: int

    @property
    def place(self) -> int:
        return self.features

    @property
    def match(self) -> int:
        return self.features + 2 * self.frequencies

    @property
    def lag(self) -> int:
        return self.features + 4 * self.frequencies

    #: Flags: that a token belongs to no stream, and to which one it does.
    @property
    def alone(self) -> int:
        return self.width - 2

    @property
    def stream(self) -> int:
        return self.width - 1


@torch.no_grad()
def order_join(
    vproj: nn.Linear, aproj: nn.Linear, transformer: nn.Module, segments: int, steps: tuple[int, int], n_head: int
) -> None:
    """Give the projections and the transformer behind them their first values; all else of them is drawn wide already.

    steps: tokens of a segment in picture and sound. Segments overlap by half. Raises UserError where the transformer is too
    small: two blocks, two heads, and a width that holds the features and codes of two frequencies.
    """
    width, inputs = vproj.out_features, max(vproj.in_features, aproj.in_features)
    blocks = list(transformer.get_submodule("blocks").children())
    size = width // n_head
    # A head carries its share of the codes, the second block's heads for one stream each.
    frequencies = min((width - inputs - 2) // 6, 2 * segments, (size - 1) // 2 * (n_head // 2))
    if frequencies < 2 or len(blocks) < 2 or n_head < 2:
        raise UserError(
            f"model.initial=ordered needs model.transformer.width >= {inputs + 14}, n_layer >= 2 and n_head >= 2, here they are "
            f"{width}, {len(blocks)} and {n_head}: raise them, or set model.initial=wide"
        )
    if vproj.weight.is_meta:
        return  # a model that is only counted has no values
    layout = _Layout(width, inputs, frequencies)
    # The same projection for both streams: what is compared must be comparable.
    same = nn.init.orthogonal_(torch.empty(inputs, inputs))
    amount = math.sqrt(2 * frequencies * AMPLITUDE**2 / width)
    for proj, norm in ((vproj, "vis_in_lnorm"), (aproj, "aud_in_lnorm")):
        proj.weight.mul_(QUIET)
        proj.bias.zero_()
        proj.weight[:inputs] = same[:, : proj.in_features]
        transformer.get_parameter(f"{norm}.weight").fill_(amount)
    _place(transformer, layout, segments, steps)
    for block in blocks:
        assert isinstance(block, EncoderBlock)
        block.attn.proj.weight.mul_(QUIET)
        block.mlp[2].weight.mul_(QUIET)  # type: ignore[operator]
    _match(blocks[0], layout, n_head)
    _multiply(blocks[0], layout)
    _collect(blocks[1], layout, n_head)


def _place(transformer: nn.Module, layout: _Layout, segments: int, steps: tuple[int, int]) -> None:
    """Tables: the code of every token's place in time, in segments' lengths, and its flags."""
    table = transformer.get_parameter("pos_emb_cfg.pos_emb")[0]
    table.zero_()
    for token in ("OFF_tok", "MOD_tok"):
        transformer.get_parameter(token).mul_(QUIET)
    # Frequencies have whole cycles in twice the window, so that no two lags within it look alike.
    cycles = math.pi * torch.arange(1, layout.frequencies + 1) / (segments + 1)
    first = 1
    for count, stream in zip(steps, (STREAM, -STREAM), strict=True):
        inside = 2 * (torch.arange(count) + 0.5) / count
        angle = (torch.arange(segments)[:, None] + inside).flatten()[:, None] * cycles
        rows = table[first : first + segments * count]
        rows[:, layout.place : layout.match] = math.sqrt(2) * AMPLITUDE * torch.cat((angle.cos(), angle.sin()), 1)
        rows[:, layout.stream] = stream
        table[first - 1, layout.alone] = ALONE
        first += segments * count + 1


def _match(block: nn.Module, layout: _Layout, n_head: int) -> None:
    """Every head compares features and shuns the own stream; each carries its share of the codes of places."""
    assert isinstance(block, EncoderBlock)
    width, size = layout.width, layout.width // n_head
    query, key, value, proj = (torch.zeros(width, width) for _ in range(4))
    # The norm before makes features and codes of one size, and a token's length the root of its width.
    features = 2 * layout.frequencies * AMPLITUDE**2
    loud = (2 * features + STREAM**2) / width
    for head, codes in enumerate(torch.arange(2 * layout.frequencies).chunk(n_head)):
        first, flag = head * size, (head + 1) * size - 1
        compared = nn.init.orthogonal_(torch.empty(layout.features, layout.features))[: size - 1]
        rows = slice(first, first + len(compared))
        query[rows, : layout.features] = compared * math.sqrt(LIKENESS * math.sqrt(size) * loud / features)
        key[rows] = query[rows]
        query[flag, layout.stream] = -SHUN * size**0.25 * math.sqrt(loud) / STREAM
        key[flag] = -query[flag]
        for row, code in enumerate(codes.tolist(), first):
            value[row, layout.place + code] = 1
            proj[layout.match + code, row] = GAIN
    for layer, weight in zip(
        (block.attn.query, block.attn.key, block.attn.value, block.attn.proj), (query, key, value, proj), strict=True
    ):
        layer.weight.copy_(weight)


def _multiply(block: nn.Module, layout: _Layout) -> None:
    """Units of the MLP in fours: GELU(x+y) + GELU(-x-y) - GELU(x-y) - GELU(y-x) is nearly a multiple of x·y for small ones."""
    assert isinstance(block, EncoderBlock)
    into: Tensor = block.mlp[0].weight  # type: ignore[assignment]
    out: Tensor = block.mlp[2].weight  # type: ignore[assignment]
    n, unit = layout.frequencies, 0
    out[layout.lag : layout.lag + 2 * n] = 0
    for f in range(n):
        cos, sin = layout.place + f, layout.place + n + f
        other_cos, other_sin, lag_cos, lag_sin = (
            layout.match + f,
            layout.match + n + f,
            layout.lag + f,
            layout.lag + n + f,
        )
        products = ((cos, other_cos, lag_cos, 1), (sin, other_sin, lag_cos, 1), (cos, other_sin, lag_sin, 1))
        for x, y, product, sign in (*products, (sin, other_cos, lag_sin, -1)):
            for sign_x, sign_y in ((1, 1), (-1, -1), (1, -1), (-1, 1)):
                into[unit] = 0
                into[unit, x], into[unit, y] = sign_x * SMALL, sign_y * SMALL
                out[:, unit] = 0
                out[product, unit] = sign * sign_x * sign_y / SMALL**2
                unit += 1


def _collect(block: nn.Module, layout: _Layout, n_head: int) -> None:
    """OFF takes the mean lag of the sound's segments, and that of the picture's the other way round."""
    assert isinstance(block, EncoderBlock)
    size, attention, n = layout.width // n_head, block.attn, layout.frequencies
    for layer in (attention.query, attention.key, attention.value):
        layer.weight.mul_(QUIET)
    shares = torch.arange(n).chunk(n_head // 2)
    for head in range(n_head // 2 * 2):
        picture, flag = head % 2 == 1, (head + 1) * size - 1
        attention.query.weight[flag, layout.alone] = READ * size**0.25
        attention.key.weight[flag, layout.stream] = (READ if picture else -READ) * size**0.25
        for number, f in enumerate(shares[head // 2].tolist() if head // 2 < len(shares) else ()):
            for at, channel, sign in ((2 * number, layout.lag + f, 1), (2 * number + 1, layout.lag + n + f, -1)):
                attention.value.weight[head * size + at, channel] = 1
                attention.proj.weight[channel, head * size + at] = sign if picture else 1

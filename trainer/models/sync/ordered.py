"""A start from which the selectors read in the order of time: what lets SparseSync learn in minutes.

At the published start the attention of every query is nearly even. What the queries read is then a clip's mean, which hardly
tells when anything happened, and the step from there to offsets takes longer than a small run lasts. Here query s begins as a
reader of the s-th part of the clip, in both streams, and what it reads it passes on as it is. Only initial values differ: the
model, its names and what it may learn are the published ones. (Cf. mimetic initialisation, Trockman and Kolter, 2023, which
starts attention from a structure that training tends to find.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from javisc.trainer.models.sync.attention import Attention, SelectorBlock

#: What branches that shall not disturb the reading at the start are scaled by.
QUIET = 0.02
#: By what query and key weights of the fusion's attention are multiplied.
CHOICE = 2.0
#: Query and key weights of the readers: attention then falls off within one part of the clip.
SHARPNESS = 2.0


def time_code(steps: int, width: int, fastest: float) -> Tensor:
    """(steps, width) of variance 1: sinusoids of the middles of `steps` even parts, of 0.5 to `fastest` cycles.

    After Vaswani et al. (2017).
    """
    cycles = torch.logspace(math.log10(0.5), math.log10(fastest), width // 2)
    angle = 2 * math.pi * cycles * ((torch.arange(steps) + 0.5) / steps)[:, None]
    return nn.functional.pad(math.sqrt(2) * torch.cat((angle.sin(), angle.cos()), 1), (0, width % 2))


def widen(transformer: nn.Module) -> None:
    """Draw linear weights from N(0, 1/inputs) instead of the published N(0, 0.02²), which is meant for a width of 512."""
    for layer in transformer.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)


@torch.no_grad()
def order(selector: nn.Module, times: nn.Embedding, channels: slice, amplitude: float) -> None:
    """Make a Selector read in order. `times` is the table of its stream's time positions, which lie in these `channels`."""
    queries = selector.get_parameter("selectors")
    table = selector.get_submodule("selectors_pos_emb")
    fastest = 0.3 * len(queries)
    times.weight.copy_(amplitude * time_code(times.num_embeddings, times.embedding_dim, fastest))
    queries.zero_()
    queries[:, channels] = amplitude * time_code(len(queries), times.embedding_dim, fastest)
    for own in table.parameters():
        own.zero_()
    blocks = selector.get_submodule("blocks")
    for number, block in enumerate(blocks.children()):
        assert isinstance(block, SelectorBlock)
        _find(block.xattn, channels)
        block.attn.proj.weight.mul_(QUIET)
        block.mlp[2].weight.mul_(QUIET)  # type: ignore[operator]
        if number:
            block.xattn.proj.weight.mul_(QUIET)
        else:
            nn.init.eye_(block.xattn.value.weight)
            nn.init.eye_(block.xattn.proj.weight)


@torch.no_grad()
def sharpen(fusion: nn.Module) -> None:
    """Let the fused tokens choose whom they attend to: an even attention takes the mean of all, in which no moment counts."""
    for layer in fusion.modules():
        if isinstance(layer, Attention):
            layer.query.weight.mul_(CHOICE)
            layer.key.weight.mul_(CHOICE)


def _find(attention: Attention, channels: slice) -> None:
    """Queries find keys of their own time: every head compares its own projection of the time channels."""
    width = attention.query.out_features
    size, inputs = width // attention.n_head, len(range(width)[channels])
    weight = torch.zeros(width, width)
    for head in range(attention.n_head):
        weight[head * size : (head + 1) * size, channels] = nn.init.orthogonal_(torch.empty(size, inputs))
    attention.query.weight.copy_(SHARPNESS * weight)
    attention.key.weight.copy_(SHARPNESS * weight)

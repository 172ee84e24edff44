"""Attention, the two kinds of block, and a recorder of attention probabilities.

Shapes: B batch, S queries, N context tokens, H heads, D head size, C = H·D channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.kernels.selector_attention import selector_attention
from javisc.trainer.models.sync.config import StackConfig


def attend(query: Tensor, key: Tensor, value: Tensor, dropout: float, *, selects: bool) -> Tensor:
    """softmax(query · keyᵀ / √D) · value, with dropout on the probabilities. (B,S,H,D), (B,N,H,D) twice → (B,S,H,D).

    `selects`: few queries read many keys, which has a kernel of its own; it knows no dropout.
    """
    if selects and not dropout:
        return selector_attention(query, key, value)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention of x (B,S,C) over a context (B,N,C), itself if none is given. No mask."""

    def __init__(self, width: int, n_head: int, attn_pdrop: float, resid_pdrop: float) -> None:
        super().__init__()
        if width % n_head:
            raise ValueError(f"width {width} does not split into n_head={n_head} heads: choose a divisor")
        self.n_head = n_head
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.attn_pdrop = attn_pdrop
        self.resid_drop = nn.Dropout(resid_pdrop)
        self.proj = nn.Linear(width, width)

    def heads(self, x: Tensor) -> Tensor:
        """(B,N,C) → (B,N,H,D)."""
        return x.view(*x.shape[:-1], self.n_head, -1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        selects = context is not None
        context = x if context is None else context
        dropout = self.attn_pdrop if self.training else 0.0
        query, key, value = self.heads(self.query(x)), self.heads(self.key(context)), self.heads(self.value(context))
        mixed = attend(query, key, value, dropout, selects=selects)
        return self.resid_drop(self.proj(mixed.flatten(2)))

    def probabilities(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The attention probabilities before dropout, (B,H,S,N): what the fast path never stores."""
        query = self.heads(self.query(x)).transpose(1, 2)
        key = self.heads(self.key(x if context is None else context)).transpose(1, 2)
        return (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)


def mlp(width: int, resid_pdrop: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(resid_pdrop))


class EncoderBlock(nn.Module):
    """Pre-norm: self-attention, then the MLP."""

    def __init__(self, width: int, config: StackConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = Attention(width, config.n_head, config.attn_pdrop, config.resid_pdrop)
        self.mlp = mlp(width, config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class SelectorBlock(nn.Module):
    """Pre-norm for the queries; the context goes to the keys and values as it is and is never updated."""

    def __init__(self, width: int, config: StackConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.ln3 = nn.LayerNorm(width)
        self.attn = Attention(width, config.n_head, config.attn_pdrop, config.resid_pdrop)
        self.xattn = Attention(width, config.n_head, config.attn_pdrop, config.resid_pdrop)
        self.mlp = mlp(width, config.resid_pdrop)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        x = x + self.xattn(self.ln2(x), context)
        return x + self.mlp(self.ln3(x))


def init_weights(module: nn.Module) -> None:
    """N(0, 0.02) for linear layers and tables, zero biases; to be applied to a whole transformer when it is built."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


@contextmanager
def recorded_attention(model: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """While open, every forward pass of `model` puts the probabilities (B,H,S,N) of the named Attention modules into the dict.

    They are computed beside the fast path from the same inputs, so recording changes no result.
    """
    seen: dict[str, Tensor] = {}

    def recorder(name: str, module: Attention) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = module.probabilities(*inputs)

        return module.register_forward_pre_hook(hook)

    handles = []
    for name in names:
        module = model.get_submodule(name)
        if not isinstance(module, Attention):
            raise ValueError(f"{name} is a {type(module).__name__}, not an Attention: name an attention module")
        handles.append(recorder(name, module))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()

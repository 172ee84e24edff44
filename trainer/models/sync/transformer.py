"""The SparseSync transformer, and full attention beside it for comparison.

A few trained queries read each stream, and a small transformer looks at the queries alone: the cost is linear in the clip's
length. Shapes: B batch, T time, F frequency, S queries, N context tokens, C width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.models.sync.attention import EncoderBlock, SelectorBlock, init_weights
from javisc.trainer.models.sync.config import (
    FUSIONS,
    INITIALS,
    FullAttentionConfig,
    FusionConfig,
    SelectorConfig,
    SyncTransformerConfig,
    check_choice,
)
from javisc.trainer.models.sync.ordered import order, sharpen, widen
from javisc.trainer.models.sync.positions import (
    AudioPositions,
    SelectorPositions,
    VisualPositions,
    init_positions,
    positions,
    pre_norm,
)


class Selector(nn.Module):
    """Trained queries that read a stream: context (B,N,C) → (B,S,C)."""

    def __init__(self, width: int, config: SelectorConfig) -> None:
        super().__init__()
        self.selectors = nn.Parameter(torch.randn(config.num_selectors, width))
        self.selectors_pos_emb = SelectorPositions(config.num_selectors, width) if config.positions else nn.Identity()
        self.drop = nn.Dropout(config.embd_pdrop)
        self.context_drop = nn.Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList(SelectorBlock(width, config) for _ in range(config.n_layer))

    def forward(self, context: Tensor) -> Tensor:
        queries = self.selectors_pos_emb(self.selectors.expand(len(context), -1, -1))
        queries, context = self.drop(queries), self.context_drop(context)
        for block in self.blocks:
            queries = block(queries, context)
        return queries


class TokenDropout(nn.Module):
    """Drops whole tokens of (B,S,C), scaling the others."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * nn.functional.dropout(x.new_ones(x.shape[:-1]), self.p).unsqueeze(-1)


class FusionTransformer(nn.Module):
    """[OFF | visual | MOD | audio] through encoder blocks; (B,S,C) and (B,S',C) → (B, 2+S+S', C).

    `pos_emb_cfg` adds positions to the whole sequence: none here, where the tokens come with theirs.
    """

    def __init__(self, width: int, config: FusionConfig) -> None:
        super().__init__()
        self.OFF_tok = nn.Parameter(torch.randn(1, 1, width))
        self.MOD_tok = nn.Parameter(torch.randn(1, 1, width))
        self.vis_in_lnorm = nn.LayerNorm(width)
        self.aud_in_lnorm = nn.LayerNorm(width)
        self.tok_drop = TokenDropout(config.tok_pdrop)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.pos_emb_cfg: nn.Module = nn.Identity()
        self.blocks = nn.Sequential(*(EncoderBlock(width, config) for _ in range(config.n_layer)))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, vis: Tensor, aud: Tensor) -> Tensor:
        vis, aud = self.tok_drop(self.vis_in_lnorm(vis)), self.tok_drop(self.aud_in_lnorm(aud))
        off, mod = (token.expand(len(vis), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        return self.ln_f(self.blocks(self.drop(self.pos_emb_cfg(torch.cat((off, vis, mod, aud), 1)))))


class FusionMLP(nn.Module):
    """All tokens in a row, for a linear head: (B,S,C) and (B,S',C) → (B, 1, (S+S')·C)."""

    def __init__(self, width: int, config: FusionConfig) -> None:
        super().__init__()
        self.vis_in_lnorm = nn.LayerNorm(width)
        self.aud_in_lnorm = nn.LayerNorm(width)
        self.drop = nn.Dropout(config.embd_pdrop)

    def forward(self, vis: Tensor, aud: Tensor) -> Tensor:
        return self.drop(torch.cat((self.vis_in_lnorm(vis), self.aud_in_lnorm(aud)), 1).flatten(1).unsqueeze(1))


class SyncTransformer(nn.Module):
    """vis (B,T,C,H,W), aud (B·K,C,F,T') → logits over offsets (B·K, classes); K sounds per picture, which lie together."""

    def __init__(self, config: SyncTransformerConfig) -> None:
        super().__init__()
        check_choice("fusion.kind", config.fusion.kind, FUSIONS)
        check_choice("initial", config.initial, INITIALS)
        width = config.width
        self.pre_lnorm_vis = pre_norm(config.pre_norm, width)
        self.pre_lnorm_aud = pre_norm(config.pre_norm, width)
        self.vis_pos_emb = positions(config.visual_positions, config.visual_shape, width)
        self.aud_pos_emb = positions(config.audio_positions, config.audio_shape, width)
        self.v_selector = Selector(width, config.visual_selector)
        self.a_selector = Selector(width, config.audio_selector)
        if config.fusion.kind == "transformer":
            self.global_transformer: nn.Module = FusionTransformer(width, config.fusion)
            self.off_head = nn.Linear(width, config.classes, bias=False)
        else:
            tokens = config.visual_selector.num_selectors + config.audio_selector.num_selectors
            self.global_transformer = FusionMLP(width, config.fusion)
            self.off_head = nn.Linear(tokens * width, config.classes)
        self.apply(init_weights)
        init_positions(self.vis_pos_emb, config.position_std)
        init_positions(self.aud_pos_emb, config.position_std)
        if config.initial == "ordered":
            self._order(config.position_std)

    def _order(self, amplitude: float) -> None:
        """Let both selectors begin as readers in the order of time. Raises UserError without learned positions."""
        seen, heard = self.vis_pos_emb, self.aud_pos_emb
        if not isinstance(seen, VisualPositions) or not isinstance(heard, AudioPositions):
            raise UserError(
                "initial='ordered' needs learned positions of both streams: set them, or initial='published'"
            )
        widen(self)
        nn.init.normal_(self.off_head.weight, std=0.02)
        sharpen(self.global_transformer)
        order(self.v_selector, seen.time_embed, seen.time_channels, amplitude)
        order(self.a_selector, heard.time_embed, heard.time_channels, amplitude)

    def forward(self, vis: Tensor, aud: Tensor) -> Tensor:
        vis, aud = channels_last(vis, aud)
        vis = self.vis_pos_emb(self.pre_lnorm_vis(vis)).flatten(1, 3)
        aud = self.aud_pos_emb(self.pre_lnorm_aud(aud)).flatten(1, 2)
        chosen = self.v_selector(vis).repeat_interleave(len(aud) // len(vis), 0)
        return self.off_head(self.global_transformer(chosen, self.a_selector(aud))[:, 0])


class FullAttention(nn.Module):
    """The baseline: same inputs and outputs, every token attends to every other."""

    def __init__(self, config: FullAttentionConfig) -> None:
        super().__init__()
        width, stack = config.width, config.stack
        self.OFF_tok = nn.Parameter(torch.randn(1, 1, width))
        self.MOD_tok = nn.Parameter(torch.randn(1, 1, width))
        self.pre_lnorm_vis = pre_norm(config.pre_norm, width)
        self.pre_lnorm_aud = pre_norm(config.pre_norm, width)
        self.vis_pos_emb = positions(config.visual_positions, config.visual_shape, width)
        self.aud_pos_emb = positions(config.audio_positions, config.audio_shape, width)
        self.tok_drop = TokenDropout(stack.tok_pdrop)
        self.drop = nn.Dropout(stack.embd_pdrop)
        self.blocks = nn.Sequential(*(EncoderBlock(width, stack) for _ in range(stack.n_layer)))
        self.ln_f = nn.LayerNorm(width)
        self.off_head = nn.Linear(width, config.classes, bias=False)
        self.apply(init_weights)
        init_positions(self.vis_pos_emb, config.position_std)
        init_positions(self.aud_pos_emb, config.position_std)

    def forward(self, vis: Tensor, aud: Tensor) -> Tensor:
        vis, aud = channels_last(vis, aud)
        vis = self.tok_drop(self.vis_pos_emb(self.pre_lnorm_vis(vis)).flatten(1, 3))
        vis = vis.repeat_interleave(len(aud) // len(vis), 0)
        aud = self.tok_drop(self.aud_pos_emb(self.pre_lnorm_aud(aud)).flatten(1, 2))
        off, mod = (token.expand(len(vis), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        return self.off_head(self.ln_f(self.blocks(self.drop(torch.cat((off, vis, mod, aud), 1))))[:, 0])


def channels_last(vis: Tensor, aud: Tensor) -> tuple[Tensor, Tensor]:
    """(B,T,C,H,W) → (B,T,H,W,C) and (B,C,F,T) → (B,F,T,C)."""
    if vis.shape[2] != aud.shape[1]:
        raise ValueError(
            f"visual features have {vis.shape[2]} channels, audio features {aud.shape[1]}: bridge them to one width"
        )
    return vis.permute(0, 1, 3, 4, 2), aud.permute(0, 2, 3, 1)

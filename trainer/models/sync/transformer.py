"""The SparseSync transformer, and full attention beside it for comparison.

A few trained queries read each stream, and a small transformer looks at the queries alone: the cost is linear in the clip's
length. Shapes: B batch, T time, F frequency, S queries, N context tokens, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.manifests.errors import UserError
from javisc.trainer.models.sync.attention import EncoderBlock, SelectorBlock, init_weights
from javisc.trainer.models.sync.config import (
    FUSIONS,
    STARTS,
    FullAttentionConfig,
    FusionConfig,
    SelectorConfig,
    SyncTransformerConfig,
    check_choice,
)
from javisc.trainer.models.sync.positions import (
    AudioPositions,
    SelectorPositions,
    VisualPositions,
    init_positions,
    moments,
    positions,
    pre_norm,
    start_as_moments,
    time_channels,
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
    """[OFF | visual | MOD | audio] through encoder blocks; (B,S,C) and (B,S',C) → (B, 2+S+S', C)."""

    def __init__(self, width: int, config: FusionConfig) -> None:
        super().__init__()
        self.OFF_tok = nn.Parameter(torch.randn(1, 1, width))
        self.MOD_tok = nn.Parameter(torch.randn(1, 1, width))
        self.vis_in_lnorm = nn.LayerNorm(width)
        self.aud_in_lnorm = nn.LayerNorm(width)
        self.tok_drop = TokenDropout(config.tok_pdrop)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.blocks = nn.Sequential(*(EncoderBlock(width, config) for _ in range(config.n_layer)))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, vis: Tensor, aud: Tensor) -> Tensor:
        vis, aud = self.tok_drop(self.vis_in_lnorm(vis)), self.tok_drop(self.aud_in_lnorm(aud))
        off, mod = (token.expand(len(vis), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        return self.ln_f(self.blocks(self.drop(torch.cat((off, vis, mod, aud), 1))))


class FusionMLP(nn.Module):
    """All tokens in a row, for a linear head: (B,S,C) and (B,S',C) → (B, 1, (S+S')·C)."""

    def __init__(self, width: int, config: FusionConfig) -> None:
        super().__init__()
        self.vis_in_lnorm = nn.LayerNorm(width)
        self.aud_in_lnorm = nn.LayerNorm(width)
        self.drop = nn.Dropout(config.embd_pdrop)

    def forward(self, vis: Tensor, aud: Tensor) -> Tensor:
        return self.drop(torch.cat((self.vis_in_lnorm(vis), self.aud_in_lnorm(aud)), 1).flatten(1).unsqueeze(1))


#: Similarities lie in [-1, 1]; their softmax needs more room.
SHARPNESS = 10.0


def matching(shift: Tensor, count: int) -> Tensor:
    """(B,) shifts in crop lengths → (B, count): in which of `count` even parts of the sound each part of the picture has its middle.

    -1 where that lies outside the sound.
    """
    middles = (torch.arange(count, device=shift.device) + 0.5) / count
    found = ((middles - shift[:, None]) * count).floor().long()
    return found.masked_fill((found < 0) | (found >= count), -1)


class FusionCorrelation(nn.Module):
    """How alike the streams are at every lag, for a linear head: (B,S,C) twice → (B, 1, n_head · (2S - 1)).

    Tokens are projected and of unit length in each head; similarities of visual token i and audio token j are summed where
    j - i is the lag, over the root of how many there are, so that noise is as strong at every lag.
    """

    def __init__(self, width: int, selectors: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.vis_in_lnorm = nn.LayerNorm(width)
        self.aud_in_lnorm = nn.LayerNorm(width)
        self.vis_proj = nn.Linear(width, width)
        self.aud_proj = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(3.0))
        place = torch.arange(selectors)
        lag = place[None] - place[:, None] + selectors - 1
        ones = nn.functional.one_hot(lag.flatten(), 2 * selectors - 1).float()
        self.register_buffer("lags", ones / ones.sum(0).sqrt(), persistent=False)

    def forward(self, vis: Tensor, aud: Tensor) -> Tensor:
        return (self.scale * self.alike(vis, aud).flatten(2) @ self.lags).flatten(1).unsqueeze(1)

    def alike(self, vis: Tensor, aud: Tensor) -> Tensor:
        """(B,S,C) twice → (B, n_head, S, S) similarities in [-1, 1] of visual token i and audio token j."""
        vis, aud = self._units(self.vis_proj(self.vis_in_lnorm(vis))), self._units(self.aud_proj(self.aud_in_lnorm(aud)))
        return vis @ aud.transpose(2, 3)

    def alignment(self, vis: Tensor, aud: Tensor, shift: Tensor) -> Tensor:
        """How badly tokens tell which moment of the sound belongs to theirs of the picture: cross entropy, a mean over tokens.

        One label per pair tells trunks that start from nothing little; here every moment has its own. `shift` (B,): by how many
        crop lengths the sound was taken later. After contrastive predictive coding (van den Oord et al., 2018), as Synchformer
        pre-trains its trunks on segments. Tokens are taken to stand for evenly spaced moments.
        """
        wanted = matching(shift, vis.shape[1])
        alike = SHARPNESS * self.alike(vis, aud).float().mean(1)
        told = F.cross_entropy(alike.transpose(1, 2), wanted, ignore_index=-1, reduction="sum")
        return told / (wanted >= 0).sum().clamp(min=1)

    def _units(self, x: Tensor) -> Tensor:
        """(B,S,C) → (B,H,S,D) of length 1."""
        return nn.functional.normalize(x.unflatten(2, (self.n_head, -1)), dim=-1).transpose(1, 2)


@torch.no_grad()
def read_moments(selector: Selector, channels: tuple[int, int]) -> None:
    """Let every query start as a reader of its own moment, the clip's evenly spaced ones.

    Queries hold the codes of their moments in the channels [first, stop) that the context's time tables use, compare by them
    (query and key projections are twice the identity: 4 × the codes' product), and copy what they find.
    """
    first, stop = channels
    nn.init.zeros_(selector.selectors)
    selector.selectors[:, first:stop] = moments(len(selector.selectors), stop - first)
    if isinstance(selector.selectors_pos_emb, SelectorPositions):
        nn.init.zeros_(selector.selectors_pos_emb.time_embed.weight)
    for block in selector.blocks:
        assert isinstance(block, SelectorBlock)
        for linear, gain in ((block.xattn.query, 2.0), (block.xattn.key, 2.0), (block.xattn.value, 1.0), (block.xattn.proj, 1.0)):
            linear.weight.copy_(gain * torch.eye(len(linear.weight)))


class SyncTransformer(nn.Module):
    """vis (B,T,C,H,W), aud (B·K,C,F,T') → logits over offsets (B·K, classes): K sounds per picture, which lie together."""

    def __init__(self, config: SyncTransformerConfig) -> None:
        super().__init__()
        check_choice("fusion.kind", config.fusion.kind, FUSIONS)
        width = config.width
        self.pre_lnorm_vis = pre_norm(config.pre_norm, width)
        self.pre_lnorm_aud = pre_norm(config.pre_norm, width)
        self.vis_pos_emb = positions(config.visual_positions, config.visual_shape, width)
        self.aud_pos_emb = positions(config.audio_positions, config.audio_shape, width)
        self.v_selector = Selector(width, config.visual_selector)
        self.a_selector = Selector(width, config.audio_selector)
        chosen = config.visual_selector.num_selectors, config.audio_selector.num_selectors
        if config.fusion.kind == "transformer":
            self.global_transformer: nn.Module = FusionTransformer(width, config.fusion)
            self.off_head = nn.Linear(width, config.classes, bias=False)
        elif config.fusion.kind == "mlp":
            self.global_transformer = FusionMLP(width, config.fusion)
            self.off_head = nn.Linear(sum(chosen) * width, config.classes)
        else:
            if chosen[0] != chosen[1]:
                raise UserError(f"fusion.kind='correlation' wants as many visual as audio selectors, not {chosen}")
            self.global_transformer = FusionCorrelation(width, chosen[0], config.fusion.n_head)
            self.off_head = nn.Linear(config.fusion.n_head * (2 * chosen[0] - 1), config.classes)
        self.apply(init_weights)
        init_positions(self.vis_pos_emb, config.position_std)
        init_positions(self.aud_pos_emb, config.position_std)
        if check_choice("position_start", config.position_start, STARTS) == "moments":
            start_as_moments(self.vis_pos_emb, self.aud_pos_emb)
        for selector, positions_, options in (
            (self.v_selector, self.vis_pos_emb, config.visual_selector),
            (self.a_selector, self.aud_pos_emb, config.audio_selector),
        ):
            if check_choice("selector.start", options.start, STARTS) == "moments":
                if config.position_start != "moments" or options.n_head != 1:
                    raise UserError("selector.start='moments' needs n_head=1 and transformer.position_start='moments'")
                assert isinstance(positions_, VisualPositions | AudioPositions)
                read_moments(selector, time_channels(positions_))

    def forward(self, vis: Tensor, aud: Tensor) -> Tensor:
        return self._logits(*self._selected(vis, aud))

    def aligned(self, vis: Tensor, aud: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """(the alignment loss of the fusion by correlation, logits); see there."""
        assert isinstance(self.global_transformer, FusionCorrelation)
        chosen = self._selected(vis, aud)
        return self.global_transformer.alignment(*chosen, shift), self._logits(*chosen)

    def _selected(self, vis: Tensor, aud: Tensor) -> tuple[Tensor, Tensor]:
        vis, aud = _channels_last(vis, aud)
        vis = self.vis_pos_emb(self.pre_lnorm_vis(vis)).flatten(1, 3)
        aud = self.aud_pos_emb(self.pre_lnorm_aud(aud)).flatten(1, 2)
        return self.v_selector(vis).repeat_interleave(len(aud) // len(vis), 0), self.a_selector(aud)

    def _logits(self, vis: Tensor, aud: Tensor) -> Tensor:
        return self.off_head(self.global_transformer(vis, aud)[:, 0])


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
        vis, aud = _channels_last(vis, aud)
        vis = self.tok_drop(self.vis_pos_emb(self.pre_lnorm_vis(vis)).flatten(1, 3)).repeat_interleave(
            len(aud) // len(vis), 0
        )
        aud = self.tok_drop(self.aud_pos_emb(self.pre_lnorm_aud(aud)).flatten(1, 2))
        off, mod = (token.expand(len(vis), -1, -1) for token in (self.OFF_tok, self.MOD_tok))
        return self.off_head(self.ln_f(self.blocks(self.drop(torch.cat((off, vis, mod, aud), 1))))[:, 0])


def _channels_last(vis: Tensor, aud: Tensor) -> tuple[Tensor, Tensor]:
    """(B,T,C,H,W) → (B,T,H,W,C) and (B,C,F,T) → (B,F,T,C)."""
    if vis.shape[2] != aud.shape[1]:
        raise ValueError(
            f"visual features have {vis.shape[2]} channels, audio features {aud.shape[1]}: bridge them to one width"
        )
    return vis.permute(0, 1, 3, 4, 2), aud.permute(0, 2, 3, 1)

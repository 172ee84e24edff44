"""The models of Synchformer's three stages: extractors that learn from contrast, offsets, and whether a clip can be synchronised.

Shapes: B clips, S segments, T and t time steps of a segment in picture and sound, C width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from javisc.trainer.models.sync.attention import init_weights
from javisc.trainer.models.sync.ordered import widen
from javisc.trainer.models.sync.positions import FullTable
from javisc.trainer.models.sync.transformer import FusionTransformer
from javisc.trainer.models.synchformer.audio import AudioExtractor
from javisc.trainer.models.synchformer.config import JoinConfig, SegmentContrastConfig, SynchformerConfig
from javisc.trainer.models.synchformer.ordered import order_join
from javisc.trainer.models.synchformer.visual import VisualExtractor

#: What is added to tokens, or read by them, in the extractors.
_TABLES = ("cls_token", "pos_embed", "temp_embed", "position_embeddings", "distillation_token")


class JoinTransformer(FusionTransformer):
    """(B,N,C) of the picture and (B,N',C) of the sound → logits (B,classes)."""

    def __init__(self, config: JoinConfig) -> None:
        super().__init__(config.width, config)
        self.config = config
        self.pos_emb_cfg = table = FullTable((config.rows,), config.width)
        classes = config.classes if config.head == "offset" else 2
        self.head_name = "off_head" if config.head == "offset" else "sync_head"
        self.register_module(self.head_name, nn.Linear(config.width, classes))
        self.apply(init_weights)
        nn.init.normal_(table.pos_emb)

    def forward(self, vis: Tensor, aud: Tensor) -> Tensor:
        rows, tokens = self.config.rows, 2 + vis.shape[1] + aud.shape[1]
        if tokens != rows:
            raise ValueError(
                f"{tokens} tokens, but the position table has {rows} rows: take windows of the length it was trained for"
            )
        logits: Tensor = self.get_submodule(self.head_name)(super().forward(vis, aud)[:, 0])
        return logits


class Synchformer(nn.Module):
    """vis (B,S,frames,3,H,W), aud (B·K,S,1,mels,columns) → (loss or None, logits (B·K,classes)); a clip's K sounds lie together.

    `vis` is normalised to [-1, 1], `aud` a normalised log-mel. The loss is the mean cross entropy against `targets` (B·K,).
    `seen` (B,S,T,C) are the pictures' features where they are known; `vis` is then not looked at.
    """

    def __init__(self, config: SynchformerConfig | None = None) -> None:
        super().__init__()
        config = config or SynchformerConfig()
        self.config = config
        self.vfeat_extractor = VisualExtractor(config.visual)
        self.afeat_extractor = AudioExtractor(config.audio)
        self.vproj = nn.Linear(config.visual.width, config.transformer.width)
        self.aproj = nn.Linear(config.audio.width, config.transformer.width)
        self.transformer = JoinTransformer(config.transformer)
        if config.initial != "published":
            widen_all(self)
        if config.initial == "ordered":
            steps = (config.visual.steps, config.audio.grid[1])
            order_join(self.vproj, self.aproj, self.transformer, config.segments, steps, config.transformer.n_head)
        for extractor in self._resting():
            extractor.requires_grad_(False)

    def _resting(self) -> list[nn.Module]:
        return [] if self.config.train_extractors else [self.vfeat_extractor, self.afeat_extractor]

    def blocks(self) -> list[nn.Module]:
        """The repeated parts of all three networks."""
        return [*extractor_blocks(self.vfeat_extractor, self.afeat_extractor), *self.transformer.blocks]

    def train(self, mode: bool = True) -> Synchformer:
        super().train(mode)
        for extractor in self._resting():
            extractor.eval()
        return self

    def features(self, vis: Tensor, aud: Tensor) -> tuple[Tensor, Tensor]:
        """(B,S,T,C) and (B,S,t,C'): every segment alone, so that any batching of segments gives the same."""
        if self.config.train_extractors and torch.is_grad_enabled():
            return self.vfeat_extractor(vis), self.afeat_extractor(aud)
        with torch.no_grad():
            return self._rested(self.vfeat_extractor, vis), self._rested(self.afeat_extractor, aud)

    def _rested(self, extractor: VisualExtractor | AudioExtractor, segments: Tensor) -> Tensor:
        """A few segments at a time: what a window of the published size needs would be gigabytes."""
        if segments.shape[0] * segments.shape[1] <= self.config.segments_at_once:
            return extractor(segments)
        parts = torch.split(segments.flatten(0, 1).unsqueeze(1), self.config.segments_at_once)
        return torch.cat([extractor(part) for part in parts]).view(*segments.shape[:2], *extractor.shape)

    def join(self, vis: Tensor, aud: Tensor) -> Tensor:
        """Features of a window's segments (B,S,T,C), (B·K,S,t,C') → logits (B·K,classes). Raises ValueError for other lengths."""
        if self.config.centred:
            vis, aud = (features - features.mean(1, keepdim=True) for features in (vis, aud))
        seen, heard = self.vproj(vis).flatten(1, 2), self.aproj(aud).flatten(1, 2)
        return self.transformer(seen.repeat_interleave(len(heard) // len(seen), 0), heard)

    def forward(
        self, vis: Tensor, aud: Tensor, targets: Tensor | None = None, seen: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor]:
        if seen is None:
            logits = self.join(*self.features(vis, aud))
        else:
            with torch.no_grad():
                heard = self._rested(self.afeat_extractor, aud)
            logits = self.join(seen, heard)
        return (None if targets is None else F.cross_entropy(logits, targets)), logits


class SegmentContrast(nn.Module):
    """Stage 1: vis (B,S,frames,3,H,W), aud (B,S,1,mels,columns) → unit vectors (B·S,C) of picture and sound, and temperature."""

    def __init__(self, config: SegmentContrastConfig | None = None) -> None:
        super().__init__()
        config = config or SegmentContrastConfig()
        self.config = config
        self.logit_scale = nn.Parameter(torch.tensor(config.temperature))
        self.v_encoder = VisualExtractor(config.visual)
        self.a_encoder = AudioExtractor(config.audio)
        if config.initial == "wide":
            widen_all(self)

    def blocks(self) -> list[nn.Module]:
        """The repeated parts of both extractors."""
        return extractor_blocks(self.v_encoder, self.a_encoder)

    def forward(self, vis: Tensor, aud: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            self.logit_scale.clamp_(self.config.least, self.config.most)
        seen, heard = (self._unit(encoder(x).mean(2)) for encoder, x in ((self.v_encoder, vis), (self.a_encoder, aud)))
        return seen, heard, self.logit_scale

    def _unit(self, features: Tensor) -> Tensor:
        """(B,S,C) → (B·S,C) of length 1."""
        if self.config.centred:
            features = features - features.mean(1, keepdim=True)
        return F.normalize(features.flatten(0, 1), dim=-1)


@torch.no_grad()
def widen_all(model: nn.Module) -> None:
    """Weights from N(0, 1/inputs) and tables from N(0, ½²) instead of the published deviation of 0.02, which is meant for 768.

    From that, the features of a small model hardly differ from each other, and training ends where all are alike.
    """
    widen(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Conv3d):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        elif isinstance(layer, nn.MultiheadAttention):
            nn.init.normal_(layer.in_proj_weight, std=layer.embed_dim**-0.5)
    for name, table in model.named_parameters():
        if name.rsplit(".", 1)[-1] in _TABLES:
            nn.init.normal_(table, std=0.5)


def extractor_blocks(visual: VisualExtractor, audio: AudioExtractor) -> list[nn.Module]:
    """Both extractors' blocks."""
    return [*visual.blocks, *audio.ast.layers]

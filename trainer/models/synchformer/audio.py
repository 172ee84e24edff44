"""The audio extractor: transformers' Audio Spectrogram Transformer (Gong et al., 2021) on one short segment."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import ASTConfig, ASTModel

from javisc.trainer.models.synchformer.aggregation import aggregation
from javisc.trainer.models.synchformer.config import AudioConfig


class AudioExtractor(nn.Module):
    """aud (B,S,1,mels,columns), a normalised log-mel → (B,S,t,C): a vector for each of a segment's t time steps."""

    def __init__(self, config: AudioConfig | None = None) -> None:
        super().__init__()
        config = config or AudioConfig()
        self.config = config
        self.ast = ASTModel(
            ASTConfig(
                hidden_size=config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                intermediate_size=config.intermediate,
                max_length=config.columns,
                num_mel_bins=config.mels,
            )
        )
        # transformers reads numbers of positions from the settings: the two must agree, or its table is another one.
        assert self.ast.embeddings.position_embeddings.shape[1] == 2 + config.grid[0] * config.grid[1]
        self.freq_attn_agg = aggregation(config.aggregation, config.width, config.heads, config.intermediate)

    @property
    def shape(self) -> tuple[int, int]:
        """A segment's features: time steps and width."""
        return self.config.grid[1], self.config.width

    def forward(self, aud: Tensor) -> Tensor:
        config = self.config
        batch, segments = aud.shape[:2]
        wanted = (1, config.mels, config.columns)
        if aud.shape[2:] != wanted:
            raise ValueError(f"spectrograms of {tuple(aud.shape[2:])}: this model's tables are for {wanted}")
        x = self.ast(aud.flatten(0, 2).transpose(1, 2)).last_hidden_state
        x = x[:, 2:].view(len(x), *config.grid, config.width).transpose(1, 2).flatten(0, 1)
        return self.freq_attn_agg(x).view(batch, segments, config.grid[1], -1)

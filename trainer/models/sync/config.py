"""What a sync model is made of: typed settings with the published model's values as defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from javisc.manifests.errors import UserError

PRE_NORMS = ("layer", "l2", "identity")
POSITIONS = ("learned", "zeroinit", "none")
FUSIONS = ("transformer", "mlp")
BRIDGES = ("conv", "identity", "conv-norm")
INITIALS = ("published", "ordered")
TRUNK_SIZES = ("full", "small", "tiny")


@dataclass
class StackConfig:
    """A stack of transformer blocks over tokens of width `SyncTransformerConfig.width`."""

    n_layer: int = 3
    n_head: int = 8
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1


@dataclass
class SelectorConfig(StackConfig):
    """A stack whose few trained queries read a stream of context tokens."""

    num_selectors: int = 16
    positions: bool = True


@dataclass
class FusionConfig(StackConfig):
    """What joins the two streams: a transformer over [OFF | visual | MOD | audio], or the flattened tokens alone (mlp)."""

    kind: str = "transformer"
    tok_pdrop: float = 0.0


@dataclass
class SyncTransformerConfig:
    """From two feature grids to logits over offsets. Grids smaller than the tables use their first rows."""

    classes: int = 21
    width: int = 512
    visual_shape: tuple[int, int, int] = (16, 7, 7)
    audio_shape: tuple[int, int] = (9, 20)
    pre_norm: str = "layer"
    visual_positions: str = "learned"
    audio_positions: str = "learned"
    #: Deviation of the position tables at the start. The published 0.02 suits trunks that are trained already; from scratch,
    #: positions that small are hardly seen beside normalised features and nothing is learnt for long.
    position_std: float = 0.02
    #: Initial values: the published ones, or `ordered`, from which a small model learns in minutes.
    initial: str = "published"
    visual_selector: SelectorConfig = field(default_factory=SelectorConfig)
    audio_selector: SelectorConfig = field(default_factory=SelectorConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)


@dataclass
class FullAttentionConfig:
    """The baseline without selectors: one transformer over [OFF | all visual | MOD | all audio]."""

    classes: int = 21
    width: int = 512
    visual_shape: tuple[int, int, int] = (16, 7, 7)
    audio_shape: tuple[int, int] = (9, 20)
    pre_norm: str = "layer"
    visual_positions: str = "learned"
    audio_positions: str = "learned"
    #: Deviation of the position tables at the start. The published 0.02 suits trunks that are trained already; from scratch,
    #: positions that small are hardly seen beside normalised features and nothing is learnt for long.
    position_std: float = 0.02
    stack: FusionConfig = field(default_factory=FusionConfig)


@dataclass
class CorrelationConfig:
    """No transformer: how alike the streams are at every lag decides. It learns from nothing, in minutes.

    `moments`: into how many time steps both streams are resampled; the similarities are taken in `n_head` parts of the width.
    """

    classes: int = 21
    width: int = 512
    n_head: int = 8
    moments: int = 16


@dataclass
class TrunkConfig:
    """A feature extractor. One that is not trained keeps its norm statistics too."""

    size: str = "full"
    trained: bool = True


@dataclass
class AVSyncConfig:
    """The whole model: two trunks, two bridges to a common width, the transformer or, where given, what stands in its place."""

    visual_trunk: TrunkConfig = field(default_factory=TrunkConfig)
    audio_trunk: TrunkConfig = field(default_factory=TrunkConfig)
    visual_bridge: str = "conv"
    audio_bridge: str = "identity"
    #: Bridges that are not trained keep the space that their trunks were aligned in.
    train_bridges: bool = True
    transformer: SyncTransformerConfig = field(default_factory=SyncTransformerConfig)
    full_attention: FullAttentionConfig | None = None
    correlation: CorrelationConfig | None = None

    @property
    def head(self) -> SyncTransformerConfig | FullAttentionConfig | CorrelationConfig:
        """What joins the two streams."""
        return self.correlation or self.full_attention or self.transformer


def check_choice(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return `value`, or raise a UserError that names the option and what it may be."""
    if value not in allowed:
        raise UserError(f"{option}={value!r}: it may be {', '.join(allowed)}; set it to one of these")
    return value

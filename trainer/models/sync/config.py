"""What a sync model is made of: typed settings with the published model's values as defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from javisc.manifests.errors import UserError
from javisc.trainer.engine.settings import setting

PRE_NORMS = ("layer", "l2", "identity")
POSITIONS = ("learned", "zeroinit", "none")
FUSIONS = ("transformer", "mlp")
BRIDGES = ("conv", "identity", "conv-norm")
INITIALS = ("published", "ordered")
TRUNK_SIZES = ("full", "small", "tiny")


@dataclass
class StackConfig:
    """A stack of transformer blocks over tokens of width `SyncTransformerConfig.width`."""

    n_layer: int = setting(3, "Blocks.", least=0, most=1000)
    n_head: int = setting(8, "Heads of the attention.", least=1, most=4096)
    embd_pdrop: float = setting(0.1, "Dropout of the tokens.", least=0, most=1)
    attn_pdrop: float = setting(0.1, "Dropout of the attention.", least=0, most=1)
    resid_pdrop: float = setting(0.1, "Dropout of a block's output.", least=0, most=1)


@dataclass
class SelectorConfig(StackConfig):
    """A stack whose few trained queries read a stream of context tokens."""

    num_selectors: int = setting(16, "Trained queries.", least=1, most=100_000)
    positions: bool = setting(True, "Whether the queries have positions.")


@dataclass
class FusionConfig(StackConfig):
    """What joins the two streams: a transformer over [OFF | visual | MOD | audio], or the flattened tokens alone (mlp)."""

    kind: str = setting("transformer", "What joins the streams.", choices=FUSIONS)
    tok_pdrop: float = setting(0.0, "Dropout of whole tokens.", least=0, most=1)


@dataclass
class SyncTransformerConfig:
    """From two feature grids to logits over offsets. Grids smaller than the tables use their first rows."""

    classes: int = setting(21, "Offsets that are told apart: transforms.classes.", least=2, most=100_000)
    width: int = setting(512, "Width of the tokens.", least=1, most=65536)
    visual_shape: tuple[int, int, int] = setting(
        (16, 7, 7), "The position table's size: times, rows, columns.", least=1, most=100_000
    )
    audio_shape: tuple[int, int] = setting(
        (9, 20), "The position table's size: frequencies, times.", least=1, most=100_000
    )
    pre_norm: str = setting("layer", "What is done to features before.", choices=PRE_NORMS)
    visual_positions: str = setting("learned", "The picture's positions.", choices=POSITIONS)
    audio_positions: str = setting("learned", "The sound's positions.", choices=POSITIONS)
    position_std: float = setting(
        0.02, "Deviation of the position tables at the start; from scratch, 0.02 is hardly seen.", least=0
    )
    initial: str = setting(
        "published",
        "Initial values; from `ordered` a small model learns in minutes.",
        choices=INITIALS,
    )
    visual_selector: SelectorConfig = field(default_factory=SelectorConfig)
    audio_selector: SelectorConfig = field(default_factory=SelectorConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)


@dataclass
class FullAttentionConfig:
    """The baseline without selectors: one transformer over [OFF | all visual | MOD | all audio]."""

    classes: int = setting(21, "Offsets that are told apart: transforms.classes.", least=2, most=100_000)
    width: int = setting(512, "Width of the tokens.", least=1, most=65536)
    visual_shape: tuple[int, int, int] = setting(
        (16, 7, 7), "The position table's size: times, rows, columns.", least=1, most=100_000
    )
    audio_shape: tuple[int, int] = setting(
        (9, 20), "The position table's size: frequencies, times.", least=1, most=100_000
    )
    pre_norm: str = setting("layer", "What is done to features before.", choices=PRE_NORMS)
    visual_positions: str = setting("learned", "The picture's positions.", choices=POSITIONS)
    audio_positions: str = setting("learned", "The sound's positions.", choices=POSITIONS)
    position_std: float = setting(
        0.02, "Deviation of the position tables at the start; from scratch, 0.02 is hardly seen.", least=0
    )
    stack: FusionConfig = field(default_factory=FusionConfig)


@dataclass
class CorrelationConfig:
    """No transformer: how alike the streams are at every lag decides. It learns from nothing, in minutes.

    `moments`: into how many time steps both streams are resampled; the similarities are taken in `n_head` parts of the width.
    """

    classes: int = setting(21, "Offsets that are told apart: transforms.classes.", least=2, most=100_000)
    width: int = setting(512, "Width of the tokens.", least=1, most=65536)
    n_head: int = setting(8, "Parts of the width in which similarities are taken.", least=1, most=4096)
    moments: int = setting(16, "Time steps that both streams are resampled to.", least=1, most=100_000)


@dataclass
class TrunkConfig:
    """A feature extractor. One that is not trained keeps its norm statistics too."""

    size: str = setting("full", "The feature extractor's size.", choices=TRUNK_SIZES)
    trained: bool = setting(True, "Whether it learns; one that does not keeps its norm statistics too.")


@dataclass
class AVSyncConfig:
    """The whole model: two trunks, two bridges to a common width, the transformer or, where given, what stands in its place."""

    visual_trunk: TrunkConfig = field(default_factory=TrunkConfig)
    audio_trunk: TrunkConfig = field(default_factory=TrunkConfig)
    visual_bridge: str = setting("conv", "From the picture's features to the common width.", choices=BRIDGES)
    audio_bridge: str = setting("identity", "From the sound's features to the common width.", choices=BRIDGES)
    train_bridges: bool = setting(
        True, "Whether bridges learn; others keep the space that their trunks were aligned in."
    )
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

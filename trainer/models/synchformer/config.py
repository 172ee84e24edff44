"""What a Synchformer is made of: typed settings with the published model's values as defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from javisc.manifests.errors import UserError
from javisc.trainer.models.sync.config import FusionConfig, check_choice

AGGREGATIONS = ("transformer", "mean")
HEADS = ("offset", "sync")


@dataclass
class VisualConfig:
    """The visual extractor. `image` and `patch` in pixels, `frames` of a segment, `tubelet` frames of a token.

    `drop_path`: how often the last block's branches are left out in training; it grows from 0 at the first one.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    image: int = 224
    patch: int = 16
    frames: int = 16
    tubelet: int = 2
    drop_path: float = 0.2
    aggregation: str = "transformer"

    def __post_init__(self) -> None:
        check_choice("model.visual.aggregation", self.aggregation, AGGREGATIONS)
        _divides("model.visual.heads", self.heads, "model.visual.width", self.width)
        _divides("model.visual.patch", self.patch, "model.visual.image", self.image)
        _divides("model.visual.tubelet", self.tubelet, "model.visual.frames", self.frames)

    @property
    def steps(self) -> int:
        """Time steps of a segment, each of `tubelet` frames."""
        return self.frames // self.tubelet


@dataclass
class AudioConfig:
    """The audio extractor on spectrograms of `mels` bands and `columns`, in overlapping patches of 16 at every 10th place."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    intermediate: int = 3072
    mels: int = 128
    columns: int = 66
    aggregation: str = "transformer"

    def __post_init__(self) -> None:
        check_choice("model.audio.aggregation", self.aggregation, AGGREGATIONS)
        _divides("model.audio.heads", self.heads, "model.audio.width", self.width)
        for name, size in (("mels", self.mels), ("columns", self.columns)):
            if size < 16:
                raise UserError(f"model.audio.{name}={size}: a patch has 16, give at least that")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along frequency and along time."""
        return (self.mels - 16) // 10 + 1, (self.columns - 16) // 10 + 1


@dataclass
class JoinConfig(FusionConfig):
    """What joins the segments' tokens: a transformer over [OFF | picture | MOD | sound] with a learned table of `rows`.

    `head`: offset (classes of the grid) or sync (two classes: can the clip be synchronised at all).
    """

    width: int = 768
    rows: int = 198
    classes: int = 21
    head: str = "offset"

    def __post_init__(self) -> None:
        check_choice("model.transformer.head", self.head, HEADS)
        _divides("model.transformer.n_head", self.n_head, "model.transformer.width", self.width)


@dataclass
class SynchformerConfig:
    """The whole model. `train_extractors` false lets them rest, in eval mode: what both published stages after the first do."""

    visual: VisualConfig = field(default_factory=VisualConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    transformer: JoinConfig = field(default_factory=JoinConfig)
    train_extractors: bool = False

    @property
    def tokens(self) -> int:
        """Tokens of a segment, picture and sound together."""
        return self.visual.steps + self.audio.grid[1]

    @property
    def segments(self) -> int:
        """Segments that the position table has rows for: 14 in the published model of offsets, 13 in that of synchronizability."""
        return (self.transformer.rows - 2) // self.tokens


@dataclass
class SegmentContrastConfig:
    """Stage 1: both extractors and a learned temperature, held within [`least`, `most`]."""

    visual: VisualConfig = field(default_factory=VisualConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    temperature: float = 0.07
    least: float = 0.001
    most: float = 0.5


def _divides(name: str, part: int, of: str, whole: int) -> None:
    if part < 1 or whole < 1 or whole % part:
        raise UserError(f"{name}={part} does not divide {of}={whole}: change one of them")

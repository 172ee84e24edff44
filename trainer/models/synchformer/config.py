"""What a Synchformer is made of: typed settings with the published model's values as defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

from javisc.manifests.errors import UserError
from javisc.trainer.engine.settings import setting
from javisc.trainer.models.sync.config import FusionConfig

AGGREGATIONS = ("transformer", "mean")
HEADS = ("offset", "sync")
INITIALS = ("published", "wide")
_INITIAL = "How weights start: as published, or wide, from which a small model learns."
#: `ordered`: wide, and the transformer begins as a reader of lags between alike segments (models/synchformer/ordered.py).
JOIN_INITIALS = (*INITIALS, "ordered")


@dataclass
class VisualConfig:
    """The visual extractor. `image` and `patch` in pixels, `frames` of a segment, `tubelet` frames of a token.

    `drop_path`: how often the last block's branches are left out in training; it grows from 0 at the first one.
    """

    width: int = setting(768, "Width of a token.", least=1)
    depth: int = setting(12, "Blocks.", least=1)
    heads: int = setting(12, "Heads of attention.", least=1)
    image: int = setting(224, "Pixels of a picture's side.", least=1, most=4096)
    patch: int = setting(16, "Pixels of a patch's side.", least=1)
    frames: int = setting(16, "Frames of a segment.", least=1)
    tubelet: int = setting(2, "Frames of a token.", least=1)
    drop_path: float = setting(0.2, "Probability of leaving out the last block's branches.", least=0, most=0.99)
    aggregation: str = setting("transformer", "How a step's patches become one vector.", choices=AGGREGATIONS)

    def __post_init__(self) -> None:
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

    width: int = setting(768, "Width of a token.", least=1)
    depth: int = setting(12, "Layers.", least=1)
    heads: int = setting(12, "Heads of attention.", least=1)
    intermediate: int = setting(3072, "Width inside a layer's MLP.", least=1)
    mels: int = setting(128, "Bands of the spectrogram.", least=16)
    columns: int = setting(66, "Columns of the spectrogram.", least=16)
    aggregation: str = setting("transformer", "How a column's patches become one vector.", choices=AGGREGATIONS)

    def __post_init__(self) -> None:
        _divides("model.audio.heads", self.heads, "model.audio.width", self.width)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along frequency and along time."""
        return (self.mels - 16) // 10 + 1, (self.columns - 16) // 10 + 1


@dataclass
class JoinConfig(FusionConfig):
    """What joins the segments' tokens: a transformer over [OFF | picture | MOD | sound] with a learned table of `rows`.

    `head`: offset (classes of the grid) or sync (two classes: can the clip be synchronised at all).
    """

    width: int = setting(768, "Width of a token.", least=1)
    rows: int = setting(198, "Rows of the position table: 2 and every token of all segments.", least=4)
    classes: int = setting(21, "Offsets of the grid.", least=2)
    head: str = setting("offset", "What is told.", choices=HEADS)

    def __post_init__(self) -> None:
        _divides("model.transformer.n_head", self.n_head, "model.transformer.width", self.width)


@dataclass
class SynchformerConfig:
    """The whole model. `train_extractors` false lets them rest, in eval mode: what both published stages after the first do."""

    visual: VisualConfig = field(default_factory=VisualConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    transformer: JoinConfig = field(default_factory=JoinConfig)
    train_extractors: bool = setting(False, "Train the extractors too; false lets them rest.")
    centred: bool = setting(
        False,
        "Take what a window's segments have in common out of their features, where the first stage did so for a clip's.",
    )
    initial: str = setting(
        "published",
        "How weights start: as published, wide, or ordered, from which a small model learns.",
        choices=JOIN_INITIALS,
    )
    segments_at_once: int = setting(
        4, "Segments that resting extractors take together: 150 MB each at full size.", least=1
    )

    @property
    def tokens(self) -> int:
        """Tokens of a segment, picture and sound together."""
        return self.visual.steps + self.audio.grid[1]

    @property
    def segments(self) -> int:
        """Segments that the position table has rows for: 14 in the published model, 13 in that of synchronizability."""
        return (self.transformer.rows - 2) // self.tokens


@dataclass
class SegmentContrastConfig:
    """Stage 1: both extractors and a learned temperature, held within [`least`, `most`]."""

    visual: VisualConfig = field(default_factory=VisualConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    temperature: float = setting(0.07, "The temperature at the start.", above=0)
    least: float = setting(0.001, "The lowest temperature.", above=0)
    most: float = setting(0.5, "The highest temperature.", above=0)
    centred: bool = setting(
        False,
        "Take what a clip's segments have in common out of their features: for extractors that start from nothing.",
    )
    initial: str = setting("published", _INITIAL, choices=INITIALS)


def _divides(name: str, part: int, of: str, whole: int) -> None:
    if part < 1 or whole < 1 or whole % part:
        raise UserError(f"{name}={part} does not divide {of}={whole}: change one of them")
